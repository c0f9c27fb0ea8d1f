//! The Node object: registration and its status.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node as NodeObject, NodeAddress, NodeCondition,
    NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_client::{chain, is_already_exists};
use tokio_util::sync::CancellationToken;

use crate::context::NodeContext;
use crate::env::Allocatable;
use crate::network::first_node_cidr;
use crate::{NodeConfig, system};

/// How often the status is written although nothing changed.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How often the node looks at itself.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// What the node has at start.
pub(crate) fn allocatable(config: &NodeConfig) -> Allocatable {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Allocatable {
        cpu_millis: i64::try_from(cpus).unwrap_or(1) * 1000,
        memory: system::memory_total().unwrap_or(0),
        ephemeral_storage: system::disk(&config.data_dir).map_or(0, |disk| disk.total),
    }
}

/// The node's addresses: the configured one, or what its namespace has.
pub(crate) async fn find_host_ips(config: &NodeConfig) -> Vec<IpAddr> {
    if !config.node_ips.is_empty() {
        return config.node_ips.clone();
    }
    let cluster = config.cluster_cidrs.clone();
    let found = config
        .node_netns
        .run_blocking(move || local_ip(&cluster))
        .await;
    vec![found.ok().flatten().unwrap_or(IpAddr::from([127, 0, 0, 1]))]
}

/// The address that packets to elsewhere leave from; else the first that is neither loopback nor a pod
/// bridge's. Nothing is sent.
fn local_ip(cluster: &[IpNetwork]) -> Option<IpAddr> {
    let far: SocketAddr = ([192, 0, 2, 1], 9).into();
    let routed = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect(far).and_then(|()| socket.local_addr()))
        .map(|address| address.ip());
    if let Ok(ip) = routed
        && !ip.is_loopback()
        && !ip.is_unspecified()
    {
        return Some(ip);
    }
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    interfaces
        .filter_map(|interface| {
            interface
                .address?
                .as_sockaddr_in()
                .map(|address| address.ip())
        })
        .map(IpAddr::from)
        .find(|ip| !ip.is_loopback() && !cluster.iter().any(|range| range.contains(*ip)))
}

/// Creates the Node object or brings it up to date; its pod ranges. Tries until it succeeds.
pub(crate) async fn register(
    ctx: &Arc<NodeContext>,
    token: &CancellationToken,
) -> Option<Vec<IpNetwork>> {
    loop {
        match try_register(ctx).await {
            Ok(cidrs) => return Some(cidrs),
            Err(error) => {
                tracing::warn!(node = ctx.config.node_name, error = %chain(&error), "registering the node");
            }
        }
        tokio::select! {
            () = token.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn try_register(ctx: &Arc<NodeContext>) -> kube::Result<Vec<IpNetwork>> {
    let config = &ctx.config;
    let api: Api<NodeObject> = Api::all(ctx.client.clone());
    let cidrs = match &config.pod_cidrs[..] {
        [] => config
            .cluster_cidrs
            .iter()
            .copied()
            .map(first_node_cidr)
            .collect(),
        own => own.to_vec(),
    };
    let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    let object = NodeObject {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: texts.first().cloned(),
            pod_cidrs: Some(texts.clone()),
            ..NodeSpec::default()
        }),
        status: None,
    };
    let existing = match api.get_opt(&config.node_name).await? {
        Some(existing) => existing,
        None => match api.create(&PostParams::default(), &object).await {
            Ok(created) => created,
            Err(error) if is_already_exists(&error) => api.get(&config.node_name).await?,
            Err(error) => return Err(error),
        },
    };
    let own = own_cidrs(&existing);
    let mut patch = json!({ "metadata": { "labels": labels(config) } });
    if own.is_empty() {
        patch["spec"] = json!({ "podCIDR": texts.first(), "podCIDRs": texts });
    }
    api.patch(
        &config.node_name,
        &PatchParams::default(),
        &Patch::Merge(patch),
    )
    .await?;
    let status = node_status(ctx, existing.status.as_ref(), ctx.clock.now()).await;
    patch_status(&api, &config.node_name, &status).await?;
    Ok(if own.is_empty() { cidrs } else { own })
}

/// The ranges that the Node object has.
fn own_cidrs(node: &NodeObject) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let listed = spec.pod_cidrs.as_deref().unwrap_or_default().iter();
    let first = spec.pod_cidr.iter().filter(|_| listed.len() == 0);
    listed
        .clone()
        .chain(first)
        .filter_map(|text| text.parse().ok())
        .collect()
}

async fn patch_status(api: &Api<NodeObject>, name: &str, status: &NodeStatus) -> kube::Result<()> {
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .map(|_| ())
}

fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let arch = system::architecture();
    let standard = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    let standard = standard.map(|(key, value)| (key.to_owned(), value.to_owned()));
    standard
        .into_iter()
        .chain(config.node_labels.iter().cloned())
        .collect()
}

/// Writes the status at intervals and when it changes, until cancelled.
pub(crate) async fn status_loop(ctx: Arc<NodeContext>, token: CancellationToken) {
    let api: Api<NodeObject> = Api::all(ctx.client.clone());
    let mut shown: Option<NodeStatus> = None;
    let mut written_at = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(LOOK_PERIOD) => {}
        }
        let status = node_status(&ctx, shown.as_ref(), ctx.clock.now()).await;
        let changed = shown
            .as_ref()
            .is_none_or(|old| without_heartbeat(old) != without_heartbeat(&status));
        if !changed && written_at.elapsed() < STATUS_PERIOD {
            continue;
        }
        match patch_status(&api, &ctx.config.node_name, &status).await {
            Ok(()) => {
                shown = Some(status);
                written_at = tokio::time::Instant::now();
            }
            // Somebody deleted the Node: register again.
            Err(error) if skiff_client::is_not_found(&error) => {
                let _cidrs = register(&ctx, &token).await;
            }
            Err(error) => {
                tracing::warn!(node = ctx.config.node_name, error = %chain(&error), "writing the node's status");
            }
        }
    }
}

fn without_heartbeat(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

/// The node's status now.
async fn node_status(
    ctx: &Arc<NodeContext>,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let config = &ctx.config;
    let quantities = BTreeMap::from([
        (
            "cpu".to_owned(),
            Quantity((ctx.allocatable.cpu_millis / 1000).to_string()),
        ),
        (
            "memory".to_owned(),
            Quantity(format!("{}Ki", ctx.allocatable.memory / 1024)),
        ),
        (
            "ephemeral-storage".to_owned(),
            Quantity(format!("{}Ki", ctx.allocatable.ephemeral_storage / 1024)),
        ),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ]);
    let ips = ctx.host_ips();
    let address = |type_: &str, address: String| NodeAddress {
        type_: type_.to_owned(),
        address,
    };
    let mut addresses: Vec<NodeAddress> = ips
        .iter()
        .map(|ip| address("InternalIP", ip.to_string()))
        .collect();
    addresses.push(address("Hostname", config.node_name.clone()));
    let images = ctx
        .images
        .list()
        .await
        .unwrap_or_default()
        .into_iter()
        .take(50);
    let images = images.map(|image| ContainerImage {
        names: Some(image.names),
        size_bytes: i64::try_from(image.size).ok(),
    });
    NodeStatus {
        capacity: Some(quantities.clone()),
        allocatable: Some(quantities),
        addresses: Some(addresses),
        conditions: Some(conditions(config, previous, now)),
        node_info: Some(node_info()),
        images: Some(images.collect()),
        daemon_endpoints: (config.kubelet_port != 0).then(|| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(config.kubelet_port),
            }),
        }),
        ..NodeStatus::default()
    }
}

fn conditions(
    config: &NodeConfig,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let low_memory = system::memory_available().is_some_and(|bytes| bytes < 100 << 20);
    let low_disk = system::disk(&config.data_dir).is_some_and(|disk| disk.free * 10 < disk.total);
    let low_pids = system::pids_left().is_some_and(|left| left < 100);
    let pressure = |type_, on, good: &'static str, bad: &'static str, what: &str| {
        let message = if on {
            format!("kubelet has insufficient {what} available")
        } else {
            match what {
                "disk" => "kubelet has no disk pressure".to_owned(),
                _ => format!("kubelet has sufficient {what} available"),
            }
        };
        (type_, on, if on { bad } else { good }, message)
    };
    let all = [
        pressure(
            "MemoryPressure",
            low_memory,
            "KubeletHasSufficientMemory",
            "KubeletHasInsufficientMemory",
            "memory",
        ),
        pressure(
            "DiskPressure",
            low_disk,
            "KubeletHasNoDiskPressure",
            "KubeletHasDiskPressure",
            "disk",
        ),
        pressure(
            "PIDPressure",
            low_pids,
            "KubeletHasSufficientPID",
            "KubeletHasInsufficientPID",
            "PID",
        ),
        (
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
    ];
    let old = previous
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    all.into_iter()
        .map(|(type_, on, reason, message)| {
            let status = if on { "True" } else { "False" };
            let unchanged = old
                .iter()
                .find(|condition| condition.type_ == type_ && condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(unchanged.unwrap_or(Time(now))),
            }
        })
        .collect()
}

fn node_info() -> NodeSystemInfo {
    let version = env!("CARGO_PKG_VERSION");
    NodeSystemInfo {
        architecture: system::architecture().to_owned(),
        boot_id: system::read_trimmed("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("skiff://{version}"),
        kernel_version: system::read_trimmed("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: format!("v1.36.0+skiff{version}"),
        machine_id: system::read_trimmed("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: system::os_image(),
        system_uuid: system::read_trimmed("/sys/class/dmi/id/product_uuid"),
        swap: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;

    const PATH: &str = "/api/v1/nodes/n1";

    #[tokio::test(start_paused = true)]
    async fn a_node_registers_itself_with_a_pod_range() {
        let node = TestNode::new().await;
        let cidrs = register(&node.context, &node.token).await.unwrap();
        assert_eq!(cidrs, ["10.244.0.0/24".parse().unwrap()]);
        let object = node.api.get(PATH).unwrap();
        assert_eq!(object["spec"]["podCIDR"], "10.244.0.0/24");
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/os"], "linux");
        let status = &object["status"];
        assert_eq!(status["capacity"]["cpu"], "4");
        assert_eq!(status["allocatable"]["pods"], "110");
        assert_eq!(
            status["addresses"],
            json!([{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}])
        );
        let conditions = status["conditions"].as_array().unwrap();
        let kinds: Vec<&str> = conditions
            .iter()
            .filter_map(|c| c["type"].as_str())
            .collect();
        assert_eq!(
            kinds,
            ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        );
        assert_eq!(conditions[3]["status"], "True");
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_that_the_node_has_is_kept() {
        let node = TestNode::new().await;
        let spec = json!({"podCIDR": "10.244.7.0/24"});
        node.api
            .put(PATH, json!({"metadata": {"name": "n1"}, "spec": spec}));
        let cidrs = register(&node.context, &node.token).await.unwrap();
        assert_eq!(cidrs, ["10.244.7.0/24".parse().unwrap()]);
        assert_eq!(
            node.api.get(PATH).unwrap()["spec"]["podCIDR"],
            "10.244.7.0/24"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_status_is_written_at_intervals_and_the_node_made_anew_if_it_is_gone() {
        let node = TestNode::new().await;
        register(&node.context, &node.token).await.unwrap();
        let task = tokio::spawn(status_loop(Arc::clone(&node.context), node.token.clone()));
        let patches = || {
            let requests = node.api.requests();
            requests
                .iter()
                .filter(|r| *r == "PATCH /api/v1/nodes/n1/status")
                .count()
        };
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert!(
            patches() <= 3,
            "unchanged, so hardly written: {}",
            patches()
        );
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert!(patches() >= 3, "{}", patches());
        node.api.remove(PATH);
        node.api
            .until("registration", |api| api.get(PATH).is_some())
            .await;
        node.token.cancel();
        task.await.unwrap();
    }
}
