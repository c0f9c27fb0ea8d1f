//! All nodes and what is spoken for on each, kept up to date change by change.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The nodes, and where each placed pod is. A pod that we have placed ourselves is here (assumed)
/// before the API says so.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Node name by pod UID.
    placed: HashMap<String, String>,
    /// How many placed pods keep others away.
    with_anti_affinity: usize,
    /// Where the next search begins, so that all nodes get their turn.
    pub(crate) next_start: usize,
}

impl Cache {
    pub(crate) fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub(crate) fn has_anti_affinity(&self) -> bool {
        self.with_anti_affinity > 0
    }

    fn entry(&mut self, name: &str) -> &mut NodeInfo {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => {
                self.nodes.push(NodeInfo::named(name));
                self.by_name.insert(name.to_owned(), self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        &mut self.nodes[index]
    }

    /// Tells whether a pod that did not fit might fit now.
    pub(crate) fn node_applied(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.entry(name).update(node)
    }

    pub(crate) fn node_deleted(&mut self, name: &str) {
        let Some(index) = self.by_name.get(name).copied() else {
            return;
        };
        self.nodes[index].exists = false;
        if self.nodes[index].pods.is_empty() {
            self.forget_node(name);
        }
    }

    fn forget_node(&mut self, name: &str) {
        let Some(index) = self.by_name.remove(name) else {
            return;
        };
        self.nodes.swap_remove(index);
        if let Some(moved) = self.nodes.get(index) {
            self.by_name.insert(moved.name.clone(), index);
        }
    }

    /// The pod is on that node, or is about to be. Its labels may have changed.
    pub(crate) fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove(&pod.uid);
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.placed.insert(pod.uid.clone(), node.to_owned());
        self.entry(node).add(pod);
    }

    /// The pod is gone, finished, or could not be bound; tells whether it was here.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some(name) = self.placed.remove(uid) else {
            return false;
        };
        let Some(index) = self.by_name.get(&name).copied() else {
            return false;
        };
        let node = &mut self.nodes[index];
        let kept_away = node
            .pods
            .get(uid)
            .is_some_and(|p| !p.anti_affinity.is_empty());
        self.with_anti_affinity -= usize::from(kept_away);
        node.remove(uid);
        if !node.exists && node.pods.is_empty() {
            self.forget_node(&name);
        }
        true
    }

    pub(crate) fn node_of(&self, uid: &str) -> Option<&str> {
        self.placed.get(uid).map(String::as_str)
    }
}
