//! A node and what is spoken for on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use skiff_api::quantity::Quantity as Amount;

use crate::pod_info::{HostPort, PodInfo};
use crate::resources::Resources;

/// A node. It may be known by its pods before it is known itself; then it `exists` not.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) name: String,
    pub(crate) exists: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    pub(crate) allocatable: Resources,
    pub(crate) max_pods: usize,
    pub(crate) requested: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) pods: HashMap<String, Arc<PodInfo>>,
    pub(crate) per_controller: HashMap<u64, u32>,
}

impl NodeInfo {
    pub(crate) fn named(name: &str) -> NodeInfo {
        NodeInfo {
            name: name.to_owned(),
            ..NodeInfo::default()
        }
    }

    /// Takes over the node object; tells whether a pod that did not fit might fit now.
    pub(crate) fn update(&mut self, node: &Node) -> bool {
        let spec = node.spec.as_ref();
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let new = NodeInfo {
            exists: true,
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            allocatable: Resources::parse(allocatable),
            max_pods: allocatable
                .and_then(|a| a.get("pods"))
                .and_then(|q| Amount::parse(&q.0).ok())
                .and_then(|a| usize::try_from(a.value()).ok())
                .unwrap_or(0),
            ..NodeInfo::default()
        };
        let changed = !self.exists
            || self.labels != new.labels
            || self.taints != new.taints
            || self.unschedulable != new.unschedulable
            || self.allocatable != new.allocatable
            || self.max_pods != new.max_pods;
        self.exists = true;
        self.labels = new.labels;
        self.taints = new.taints;
        self.unschedulable = new.unschedulable;
        self.allocatable = new.allocatable;
        self.max_pods = new.max_pods;
        changed
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        if let Some(controller) = pod.controller {
            *self.per_controller.entry(controller).or_default() += 1;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        self.requested.subtract(&pod.requests);
        for port in &pod.host_ports {
            if let Some(index) = self.host_ports.iter().position(|p| p == port) {
                self.host_ports.swap_remove(index);
            }
        }
        if let Some(controller) = pod.controller
            && let Some(count) = self.per_controller.get_mut(&controller)
        {
            *count -= 1;
            if *count == 0 {
                self.per_controller.remove(&controller);
            }
        }
    }
}
