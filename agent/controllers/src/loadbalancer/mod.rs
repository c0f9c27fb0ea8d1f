//! LoadBalancer Services without a cloud. With a pool of addresses each Service gets its own of it; that packets for them come to
//! a node is the network's business (a route, or an address on a link). Without a pool every node answers for all of them,
//! so their addresses are the nodes' InternalIPs.

mod pool;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Change, EventKind, EventRecorder, Key, WorkQueue, run_workers};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::errors::{Context, ControllerError, unless_gone};
use pool::{NoAddress, Pool};

const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

struct Controller {
    shared: Arc<Shared>,
    queue: WorkQueue<Key>,
    recorder: EventRecorder,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pool: Pool,
    /// They wait for an address.
    waiting: HashSet<Key>,
}

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let mut tasks = JoinSet::new();
    let client = shared.client.clone();
    let recorder = EventRecorder::start(client, "service-controller", "", &mut tasks, &token);
    let queue = WorkQueue::new();
    let add = queue.clone();
    shared
        .informers
        .services
        .on_change(move |change| add.add(Key::of(&**change.object())));
    let add = queue.clone();
    let services = shared.informers.services.clone();
    shared.informers.nodes.on_change(move |change| {
        let same = match change {
            Change::Applied {
                old: Some(old),
                new,
            } => addresses_of(old) == addresses_of(new),
            _ => false,
        };
        if !same {
            for service in services.list() {
                add.add(Key::of(&*service));
            }
        }
    });
    if !crate::synced(&shared, &token).await {
        return;
    }
    let ranges = shared.config.load_balancer_ranges.clone();
    let controller = Arc::new(Controller {
        state: Mutex::new(State {
            pool: adopt(Pool::new(ranges), shared.informers.services.list()),
            waiting: HashSet::new(),
        }),
        shared,
        queue: queue.clone(),
        recorder,
    });
    // One worker: what one Service is given the next one cannot get.
    run_workers("loadbalancer", queue, 1, token, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    })
    .await;
    tasks.shutdown().await;
}

/// Notes the addresses that Services have, those of the oldest first.
fn adopt(mut pool: Pool, mut services: Vec<Arc<Service>>) -> Pool {
    services.sort_by_key(|service| service.metadata.creation_timestamp.clone());
    for service in services.iter().filter(|service| is_ours(service)) {
        let ips = ingress_of(service).iter();
        for ip in ips.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()) {
            pool.adopt(&Key::of(&**service), ip);
        }
    }
    pool
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ControllerError> {
        let informers = &self.shared.informers;
        let service = informers.services.get(key);
        let Some(ingress) = self.plan(key, service.as_deref()) else {
            return Ok(None);
        };
        let api: Api<Service> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        let result = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        unless_gone(result).context("update status of service", key)?;
        Ok(None)
    }

    /// The list to write; none when what is there is right, or not ours to change.
    fn plan(&self, key: &Key, service: Option<&Service>) -> Option<Vec<LoadBalancerIngress>> {
        let mut state = self.state.lock();
        if !state.pool.is_configured() {
            return plan_ingress(service?, &self.shared.informers.nodes.list());
        }
        let before = state.pool.held_by(key);
        let ours = service.filter(|service| is_ours(service));
        let assigned = ours.map(|service| state.pool.assign(key, service));
        let (ips, waits) = match (ours, assigned) {
            (_, Some(Ok(ips))) => (ips, false),
            (Some(service), Some(Err(why))) => {
                self.complain(service, &why);
                (Vec::new(), true)
            }
            _ => (Vec::new(), false),
        };
        if waits {
            state.waiting.insert(key.clone());
        } else {
            state.waiting.remove(key);
        }
        if ips.is_empty() {
            state.pool.release(key);
        }
        if before.iter().any(|ip| !ips.contains(ip)) {
            let others = state.waiting.iter().filter(|waiting| *waiting != key);
            others.for_each(|waiting| self.queue.add(waiting.clone()));
        }
        let service = service?;
        if ours.is_none() && is_balancer(service) {
            return None;
        }
        let wanted = ingress_for(ips.iter().map(IpAddr::to_string));
        (ingress_of(service) != wanted.as_slice()).then_some(wanted)
    }

    fn complain(&self, service: &Service, why: &NoAddress) {
        let message = format!("Error syncing load balancer: {why}");
        self.recorder.event(
            service,
            EventKind::Warning,
            "SyncLoadBalancerFailed",
            message,
        );
    }
}

fn is_balancer(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

/// A class is another controller's.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    is_balancer(service)
        && spec.is_some_and(|spec| spec.load_balancer_class.is_none())
        && service.metadata.deletion_timestamp.is_none()
}

fn ingress_of(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref();
    status
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_deref())
        .unwrap_or_default()
}

fn ingress_for(ips: impl Iterator<Item = String>) -> Vec<LoadBalancerIngress> {
    ips.map(|ip| LoadBalancerIngress {
        ip: Some(ip),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    })
    .collect()
}

/// Addresses of a node that takes traffic.
fn addresses_of(node: &Node) -> Vec<&str> {
    if node
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(EXCLUDE_LABEL))
    {
        return Vec::new();
    }
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
    let internal = addresses
        .into_iter()
        .flatten()
        .filter(|a| a.type_ == "InternalIP");
    internal.map(|a| a.address.as_str()).collect()
}

/// The nodes' addresses as the list to write; none when what is there is right, or not ours to change.
fn plan_ingress(service: &Service, nodes: &[Arc<Node>]) -> Option<Vec<LoadBalancerIngress>> {
    let spec = service.spec.as_ref()?;
    let current = ingress_of(service);
    if !is_balancer(service) {
        return (!current.is_empty()).then(Vec::new);
    }
    if spec.load_balancer_class.is_some() {
        return None;
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let serves = |address: &str| {
        let family = if address.contains(':') {
            "IPv6"
        } else {
            "IPv4"
        };
        families.is_empty() || families.iter().any(|f| f == family)
    };
    let addresses: BTreeSet<&str> = nodes
        .iter()
        .flat_map(|n| addresses_of(n))
        .filter(|a| serves(a))
        .collect();
    let wanted = ingress_for(addresses.into_iter().map(str::to_owned));
    (current != wanted.as_slice()).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        LoadBalancerStatus, NodeAddress, NodeStatus, ServiceSpec, ServiceStatus,
    };

    use super::*;

    fn node(ip: &str) -> Arc<Node> {
        let address = |type_: &str, address: &str| NodeAddress {
            type_: type_.to_owned(),
            address: address.to_owned(),
        };
        let status = NodeStatus {
            addresses: Some(vec![address("Hostname", "h"), address("InternalIP", ip)]),
            ..NodeStatus::default()
        };
        Arc::new(Node {
            status: Some(status),
            ..Node::default()
        })
    }

    fn service(type_: &str) -> Service {
        let spec = ServiceSpec {
            type_: Some(type_.to_owned()),
            ..ServiceSpec::default()
        };
        Service {
            spec: Some(spec),
            ..Service::default()
        }
    }

    #[test]
    fn nodes_answer_for_load_balancers_until_the_type_changes() {
        let nodes = [node("10.0.0.2"), node("10.0.0.1")];
        let mut s = service("LoadBalancer");
        let ingress = plan_ingress(&s, &nodes).unwrap();
        let ips: Vec<_> = ingress.iter().filter_map(|i| i.ip.as_deref()).collect();
        assert_eq!(ips, ["10.0.0.1", "10.0.0.2"]);
        s.status = Some(ServiceStatus {
            load_balancer: Some(LoadBalancerStatus {
                ingress: Some(ingress),
            }),
            ..ServiceStatus::default()
        });
        assert_eq!(plan_ingress(&s, &nodes), None);
        s.spec = service("ClusterIP").spec;
        assert_eq!(plan_ingress(&s, &nodes), Some(Vec::new()));
    }

    #[test]
    fn another_class_is_somebody_elses() {
        let mut s = service("LoadBalancer");
        if let Some(spec) = &mut s.spec {
            spec.load_balancer_class = Some("example.com/lb".to_owned());
        }
        assert_eq!(plan_ingress(&s, &[node("10.0.0.1")]), None);
    }
}
