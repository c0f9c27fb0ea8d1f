//! LoadBalancer Services without a cloud: every node answers for them, so their addresses are the
//! nodes' InternalIPs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_client::{Change, Key, WorkQueue, run_workers};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::errors::{Context, ControllerError, unless_gone};

const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
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
    run_workers("loadbalancer", queue, 1, token, move |key| {
        let shared = Arc::clone(&shared);
        async move { reconcile(&shared, &key).await }
    })
    .await;
}

async fn reconcile(shared: &Shared, key: &Key) -> Result<Option<Duration>, ControllerError> {
    let Some(service) = shared.informers.services.get(key) else {
        return Ok(None);
    };
    let nodes = shared.informers.nodes.list();
    let Some(ingress) = plan_ingress(&service, &nodes) else {
        return Ok(None);
    };
    let api: Api<Service> = Api::namespaced(shared.client.clone(), &key.namespace);
    let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    let result = api
        .patch_status(&key.name, &PatchParams::default(), &patch)
        .await;
    unless_gone(result).context("update status of service", key)?;
    Ok(None)
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

/// The list to write; none when what is there is right, or not ours to change.
fn plan_ingress(service: &Service, nodes: &[Arc<Node>]) -> Option<Vec<LoadBalancerIngress>> {
    let spec = service.spec.as_ref()?;
    let current = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_deref())
        .unwrap_or_default();
    if spec.type_.as_deref() != Some("LoadBalancer") {
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
    let wanted: Vec<_> = addresses
        .into_iter()
        .map(|ip| LoadBalancerIngress {
            ip: Some(ip.to_owned()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        })
        .collect();
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
