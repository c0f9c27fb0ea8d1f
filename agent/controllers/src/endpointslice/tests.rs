use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Backend, SliceChanges};
use super::*;

fn service(extra: &Value) -> Service {
    let mut spec = json!({
        "clusterIP": "10.96.0.5", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "svc", "labels": {"team": "a"}},
        "spec": spec,
    }))
    .unwrap()
}

fn pod(n: usize, ready: bool, deleting: bool, port: u16) -> Arc<Pod> {
    let pod = json!({
        "metadata": {
            "name": format!("p{n}"), "namespace": "ns", "uid": format!("u{n}"),
            "labels": {"app": "web"},
            "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
        },
        "spec": {"nodeName": "n", "containers": [
            {"name": "c", "ports": [{"name": "web", "containerPort": port}]},
        ]},
        "status": {
            "phase": "Running",
            "podIP": format!("10.0.{}.{}", n / 250, n % 250),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn backends(service: &Service, pods: &[Arc<Pod>]) -> Vec<Backend> {
    plan_backends(service, pods, |_| Some("z".to_owned()))
}

fn apply(slices: &mut Vec<Arc<EndpointSlice>>, changes: SliceChanges) {
    for gone in changes.delete {
        slices.retain(|s| s.metadata.name != gone.metadata.name);
    }
    for updated in changes.update {
        for slice in slices
            .iter_mut()
            .filter(|s| s.metadata.name == updated.metadata.name)
        {
            *slice = Arc::new(updated.clone());
        }
    }
    slices.extend(changes.create.into_iter().map(Arc::new));
}

fn sync(service: &Service, pods: &[Arc<Pod>], slices: &mut Vec<Arc<EndpointSlice>>) -> usize {
    let changes = plan_slices(service, backends(service, pods), slices);
    let writes = changes.create.len() + changes.update.len() + changes.delete.len();
    apply(slices, changes);
    writes
}

#[test]
fn conditions_tell_ready_serving_and_terminating() {
    let table = [
        (true, false, false, (true, true, false)),
        (false, false, false, (false, false, false)),
        (true, true, false, (false, true, true)),
        (false, false, true, (true, false, false)),
        (false, true, true, (true, false, true)),
    ];
    for (ready, deleting, publish, expected) in table {
        let s = service(&json!({"publishNotReadyAddresses": publish}));
        let found = backends(&s, &[pod(1, ready, deleting, 80)]);
        let c = found[0].endpoint.conditions.clone().unwrap();
        let got = (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap());
        assert_eq!(got, expected, "{ready} {deleting} {publish}");
        assert_eq!(found[0].endpoint.zone.as_deref(), Some("z"));
    }
}

#[test]
fn hints_follow_the_traffic_distribution() {
    let zone = json!({"forZones": [{"name": "z"}]});
    let node = json!({"forNodes": [{"name": "n"}]});
    let both = json!({"forNodes": [{"name": "n"}], "forZones": [{"name": "z"}]});
    // Distribution, whether the node has a zone, whether the pod is ready, hints.
    let table = [
        (json!(null), true, true, json!(null)),
        (json!("PreferClose"), true, true, zone.clone()),
        (json!("PreferSameZone"), true, true, zone),
        (json!("PreferSameZone"), false, true, json!(null)),
        (json!("PreferSameNode"), true, true, both),
        (json!("PreferSameNode"), false, true, node),
        (json!("PreferSameZone"), true, false, json!(null)),
    ];
    for (distribution, zoned, ready, expected) in table {
        let s = service(&json!({"trafficDistribution": distribution}));
        let zone = |_: &str| zoned.then(|| "z".to_owned());
        let found = plan_backends(&s, &[pod(1, ready, false, 80)], zone);
        let hints = serde_json::to_value(&found[0].endpoint.hints).unwrap();
        assert_eq!(hints, expected, "{distribution} {zoned} {ready}");
    }
}

#[test]
fn a_dual_stack_service_has_slices_of_both_address_types() {
    let s = service(&json!({"ipFamilies": ["IPv6", "IPv4"]}));
    let mut both = (*pod(1, true, false, 80)).clone();
    both.status.as_mut().unwrap().pod_ips = serde_json::from_value(json!([
        {"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "fd00::2"},
    ]))
    .unwrap();
    let mut slices = Vec::new();
    sync(&s, &[Arc::new(both), pod(2, true, false, 80)], &mut slices);
    let said = |slices: &[Arc<EndpointSlice>]| {
        let mut said: Vec<_> = slices
            .iter()
            .flat_map(|s| {
                s.endpoints
                    .iter()
                    .flatten()
                    .map(|e| (s.address_type.clone(), e.addresses.clone()))
            })
            .collect();
        said.sort();
        said
    };
    let entry = |family: &str, address: &str| (family.to_owned(), vec![address.to_owned()]);
    let expected = [
        entry("IPv4", "10.0.0.1"),
        entry("IPv4", "10.0.0.2"),
        entry("IPv6", "fd00::1"),
    ];
    assert_eq!(said(&slices), expected);
    // Of one family again: the other's slice goes.
    let s = service(&json!({"ipFamilies": ["IPv4"]}));
    sync(&s, &[pod(1, true, false, 80)], &mut slices);
    assert_eq!(said(&slices), [entry("IPv4", "10.0.0.1")]);
    assert!(slices.iter().all(|s| s.address_type == "IPv4"));
}

#[test]
fn pods_without_address_or_finished_are_no_endpoints() {
    let mut unborn = (*pod(1, false, false, 80)).clone();
    unborn.status.as_mut().unwrap().pod_ip = None;
    let mut done = (*pod(2, false, false, 80)).clone();
    done.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    assert!(backends(&service(&json!({})), &[Arc::new(unborn), Arc::new(done)]).is_empty());
}

#[test]
fn named_ports_split_slices_where_pods_differ() {
    let s = service(&json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}));
    let mut slices = Vec::new();
    sync(
        &s,
        &[pod(1, true, false, 80), pod(2, true, false, 81)],
        &mut slices,
    );
    let mut ports: Vec<_> = slices
        .iter()
        .map(|s| s.ports.as_ref().unwrap()[0].port.unwrap())
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, [80, 81]);
}

#[test]
fn a_hundred_per_slice_and_one_write_per_change() {
    let s = service(&json!({}));
    let mut pods: Vec<_> = (0..250).map(|n| pod(n, true, false, 80)).collect();
    let mut slices = Vec::new();
    assert_eq!(sync(&s, &pods, &mut slices), 3);
    assert_eq!(sync(&s, &pods, &mut slices), 0, "settled");
    pods[7] = pod(7, false, false, 80);
    assert_eq!(sync(&s, &pods, &mut slices), 1);
    pods.push(pod(250, true, false, 80));
    assert_eq!(sync(&s, &pods, &mut slices), 1);
    let names: std::collections::HashSet<_> = slices
        .iter()
        .filter_map(|s| s.metadata.name.clone())
        .collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|n| n.starts_with("web-") && n.len() == 9));
}

#[test]
fn without_endpoints_one_empty_slice_remains() {
    let s = service(&json!({"clusterIP": "None"}));
    let mut slices = Vec::new();
    assert_eq!(sync(&s, &[], &mut slices), 1);
    assert_eq!(sync(&s, &[], &mut slices), 0);
    let labels = slices[0].metadata.labels.clone().unwrap();
    assert!(labels.contains_key("service.kubernetes.io/headless"));
    assert_eq!(
        (labels["team"].as_str(), labels[MANAGED_BY_LABEL].as_str()),
        ("a", MANAGED_BY)
    );
    sync(&s, &[pod(1, true, false, 80)], &mut slices);
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].endpoints.as_ref().map(Vec::len), Some(1));
}

#[test]
fn a_second_reconcile_on_an_old_cache_asks_for_the_same_name() {
    let s = service(&json!({}));
    let pods = [pod(1, true, false, 80)];
    let name = || {
        let changes = plan_slices(&s, backends(&s, &pods), &[]);
        changes.create[0].metadata.name.clone()
    };
    assert_eq!(name(), name());
}

#[test]
fn endpoints_mirror_leaves_terminating_pods_out() {
    let s = service(&json!({}));
    let pods = [
        pod(1, true, false, 80),
        pod(2, false, false, 80),
        pod(3, true, true, 80),
    ];
    let endpoints = plan_endpoints(&s, &backends(&s, &pods), &pods);
    let subsets = endpoints.subsets.as_ref().unwrap();
    assert_eq!(subsets.len(), 1);
    assert_eq!(subsets[0].addresses.as_ref().map(Vec::len), Some(1));
    assert_eq!(
        subsets[0].not_ready_addresses.as_ref().map(Vec::len),
        Some(1)
    );
    assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
    assert!(!endpoints_differ(&endpoints, &endpoints));
}

proptest! {
    #[test]
    fn prop_slices_say_exactly_what_the_pods_are(
        rounds in proptest::collection::vec(
            proptest::collection::btree_map(0usize..300, any::<bool>(), 0..280), 1..5),
    ) {
        let s = service(&json!({}));
        let mut slices = Vec::new();
        for round in rounds {
            let pods: Vec<_> = round.iter().map(|(n, ready)| pod(*n, *ready, false, 80)).collect();
            sync(&s, &pods, &mut slices);
            let mut said: Vec<_> = slices
                .iter()
                .flat_map(|s| s.endpoints.clone().unwrap_or_default())
                .map(|e| (e.addresses[0].clone(), e.conditions.and_then(|c| c.ready)))
                .collect();
            let mut meant: Vec<_> = backends(&s, &pods)
                .into_iter()
                .map(|b| (b.endpoint.addresses[0].clone(), b.endpoint.conditions.and_then(|c| c.ready)))
                .collect();
            said.sort();
            meant.sort();
            prop_assert_eq!(said, meant);
            let sizes = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len));
            prop_assert!(sizes.max().unwrap_or(0) <= 100);
            prop_assert_eq!(sync(&s, &pods, &mut slices), 0, "settled");
        }
    }
}
