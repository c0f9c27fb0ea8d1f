//! What a pod wants of the plugins beyond an address: ports of the node and limits of its bandwidth. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Map, Value, json};
use skiff_client::chain;
use skiff_cni::libcni::{Conflist, PluginConf};
use skiff_spec::parse_bytes;

use crate::plan::is_sidecar;

const PORT_MAPPINGS: &str = "portMappings";
const BANDWIDTH: &str = "bandwidth";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What upstream takes, in bits a second.
const RATES: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;
/// The bucket is as large as the plugin takes: the pod's rate is limited, not its bursts.
const BURST: u32 = u32::MAX;

/// The capability arguments of a pod's plugins.
///
/// # Errors
/// The annotation that cannot be read.
pub(crate) fn capability_args(pod: &Pod) -> Result<Map<String, Value>, String> {
    let mut args = Map::new();
    let ports = port_mappings(pod);
    if !ports.is_empty() {
        args.insert(PORT_MAPPINGS.to_owned(), ports.into());
    }
    let mut limits = Map::new();
    for (annotation, direction) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
        if let Some(rate) = rate(pod, annotation)? {
            limits.insert(format!("{direction}Rate"), rate.into());
            limits.insert(format!("{direction}Burst"), BURST.into());
        }
    }
    if !limits.is_empty() {
        args.insert(BANDWIDTH.to_owned(), limits.into());
    }
    Ok(args)
}

fn port_mappings(pod: &Pod) -> Vec<Value> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| is_sidecar(container));
    let all = spec.containers.iter().chain(sidecars);
    let wanted: BTreeSet<(i32, String, String, i32)> = all.flat_map(host_ports).collect();
    let wanted = wanted.into_iter().map(|(host, protocol, ip, port)| {
        let mut mapping = json!({"hostPort": host, "containerPort": port, "protocol": protocol});
        if !ip.is_empty() {
            mapping["hostIP"] = ip.into();
        }
        mapping
    });
    wanted.collect()
}

fn host_ports(container: &Container) -> impl Iterator<Item = (i32, String, String, i32)> {
    let ports = container.ports.iter().flatten();
    ports.filter_map(|port| {
        let host = port.host_port.filter(|port| *port > 0)?;
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
        let ip = port.host_ip.clone().unwrap_or_default();
        Some((host, protocol, ip, port.container_port))
    })
}

fn rate(pod: &Pod, annotation: &str) -> Result<Option<i64>, String> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|all| all.get(annotation)) else {
        return Ok(None);
    };
    match parse_bytes(text) {
        Ok(rate) if RATES.contains(&rate) => Ok(Some(rate)),
        Ok(_) => Err(format!("{annotation}: {text} is not between 1k and 1P")),
        Err(error) => Err(format!("{annotation}: {}", chain(&error))),
    }
}

/// The list without the plugins that would do nothing but cost a process: stock ones that only act on a capability,
/// and for which there is none.
pub(crate) fn without_idle(list: &Conflist, args: &Map<String, Value>) -> Conflist {
    list.only(|plugin| !is_idle(plugin, args))
}

fn is_idle(plugin: &PluginConf, args: &Map<String, Value>) -> bool {
    let idle = |capability| plugin.has_capability(capability) && !args.contains_key(capability);
    match plugin.plugin_type.as_str() {
        "portmap" => idle(PORT_MAPPINGS),
        "bandwidth" => {
            // These limit every container of the network.
            let fixed = ["ingressRate", "egressRate"];
            idle(BANDWIDTH) && !fixed.iter().any(|key| plugin.raw.contains_key(*key))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: Value, spec: Value) -> Pod {
        let json = json!({"metadata": {"annotations": annotations}, "spec": spec});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pod_without_wishes_has_no_arguments() {
        let plain = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]});
        assert_eq!(capability_args(&pod(json!({}), plain)), Ok(Map::new()));
        assert_eq!(capability_args(&Pod::default()), Ok(Map::new()));
    }

    #[test]
    fn ports_of_containers_and_sidecars_are_mapped() {
        let spec = json!({
            "containers": [
                {"name": "a", "ports": [
                    {"containerPort": 80, "hostPort": 8080},
                    {"containerPort": 80, "hostPort": 8080, "protocol": "TCP"},
                    {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
                ]},
                {"name": "b"},
            ],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 90, "hostPort": 9090}]},
                {"name": "i", "ports": [{"containerPort": 91, "hostPort": 9191}]},
            ],
        });
        let args = capability_args(&pod(json!({}), spec)).unwrap();
        assert_eq!(
            Value::Object(args),
            json!({"portMappings": [
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 9090, "containerPort": 90, "protocol": "tcp"},
            ]})
        );
    }

    #[test]
    fn bandwidth_comes_from_the_annotations() {
        let of = |annotations| capability_args(&pod(annotations, json!({"containers": []})));
        let args = of(json!({INGRESS: "10M", EGRESS: "1Ki"})).unwrap();
        let limits = json!({
            "ingressRate": 10_000_000, "ingressBurst": BURST, "egressRate": 1024, "egressBurst": BURST,
        });
        assert_eq!(args[BANDWIDTH], limits);
        for bad in ["fast", "", "100", "2P", "-1M"] {
            let error = of(json!({EGRESS: bad})).unwrap_err();
            assert!(error.starts_with(EGRESS), "{error}");
        }
    }

    #[test]
    fn plugins_without_work_are_left_out() {
        let list = Conflist::parse(
            br#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"},
                {"type":"portmap","capabilities":{"portMappings":true}},
                {"type":"bandwidth","capabilities":{"bandwidth":true}},
                {"type":"bandwidth","capabilities":{"bandwidth":true},"egressRate":1000},
                {"type":"tuning","capabilities":{"mac":true}}]}"#,
        )
        .unwrap();
        let types = |args: Value| -> Vec<String> {
            let args = args.as_object().unwrap().clone();
            let plugins = without_idle(&list, &args).plugins.into_iter();
            plugins
                .map(|plugin| plugin.plugin_type.to_string())
                .collect()
        };
        assert_eq!(types(json!({})), ["bridge", "bandwidth", "tuning"]);
        assert_eq!(
            types(json!({"portMappings": []})),
            ["bridge", "portmap", "bandwidth", "tuning"]
        );
        assert_eq!(
            types(json!({"bandwidth": {}})),
            ["bridge", "bandwidth", "bandwidth", "tuning"]
        );
    }
}
