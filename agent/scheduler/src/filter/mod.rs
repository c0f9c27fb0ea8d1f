//! Whether a pod may run on a node. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::cache::Cache;
use crate::node_info::NodeInfo;
use crate::pod_info::{HostPort, PodInfo};

/// Why a node will not do; its text is upstream's.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Rejection {
    Unschedulable,
    NodeAffinity,
    Taint(String, String),
    TooManyPods,
    Insufficient(Cow<'static, str>),
    HostPorts,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
    Spread,
    SpreadLabel,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rejection::Unschedulable => "node(s) were unschedulable",
            Rejection::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Rejection::Taint(key, value) => {
                return write!(f, "node(s) had untolerated taint {{{key}: {value}}}");
            }
            Rejection::TooManyPods => "Too many pods",
            Rejection::Insufficient(what) => return write!(f, "Insufficient {what}"),
            Rejection::HostPorts => "node(s) didn't have free ports for the requested pod ports",
            Rejection::PodAffinity => "node(s) didn't match pod affinity rules",
            Rejection::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Rejection::ExistingAntiAffinity => {
                "node(s) didn't satisfy existing pods anti-affinity rules"
            }
            Rejection::Spread => "node(s) didn't match pod topology spread constraints",
            Rejection::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
        })
    }
}

/// What must be counted over all nodes, once per pod, and only for pods that ask for it.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    /// Per affinity term: how many matching pods each topology value has.
    near: Vec<HashMap<String, usize>>,
    /// No pod matches any affinity term yet, but this one does itself: the first of its kind.
    first_of_its_kind: bool,
    apart: Vec<HashMap<String, usize>>,
    /// Topology key and value that placed pods keep this one away from.
    keep_out: Vec<(String, String)>,
    /// Per constraint: matching pods of each value, and the fewest.
    spread: Vec<(HashMap<String, i64>, i64)>,
}

impl Topology {
    pub(crate) fn of(pod: &PodInfo, cache: &Cache) -> Topology {
        let mut topology = Topology::default();
        for (terms, counts) in [
            (&pod.affinity, &mut topology.near),
            (&pod.anti_affinity, &mut topology.apart),
        ] {
            for term in terms {
                let mut count = HashMap::new();
                for node in cache.nodes() {
                    let Some(value) = node.labels.get(&term.topology_key) else {
                        continue;
                    };
                    let matching = node.pods.values();
                    let n = matching
                        .filter(|p| term.selects(&p.key.namespace, &p.labels))
                        .count();
                    if n > 0 {
                        *count.entry(value.clone()).or_default() += n;
                    }
                }
                counts.push(count);
            }
        }
        topology.first_of_its_kind = topology.near.iter().all(HashMap::is_empty)
            && pod
                .affinity
                .iter()
                .all(|t| t.selects(&pod.key.namespace, &pod.labels));
        if cache.has_anti_affinity() {
            topology.keep_out = keep_out(pod, cache);
        }
        topology.spread = spread_counts(pod, cache);
        topology
    }
}

fn keep_out(pod: &PodInfo, cache: &Cache) -> Vec<(String, String)> {
    let mut result = Vec::new();
    for node in cache.nodes() {
        for term in node.pods.values().flat_map(|p| &p.anti_affinity) {
            if term.selects(&pod.key.namespace, &pod.labels)
                && let Some(value) = node.labels.get(&term.topology_key)
            {
                result.push((term.topology_key.clone(), value.clone()));
            }
        }
    }
    result.sort();
    result.dedup();
    result
}

fn spread_counts(pod: &PodInfo, cache: &Cache) -> Vec<(HashMap<String, i64>, i64)> {
    let counts = pod.spread.iter().map(|constraint| {
        let mut counts: HashMap<String, i64> = HashMap::new();
        for node in cache
            .nodes()
            .iter()
            .filter(|n| n.exists && affinity_matches(pod, n))
        {
            let Some(value) = node.labels.get(&constraint.topology_key) else {
                continue;
            };
            let count = counts.entry(value.clone()).or_default();
            for placed in node.pods.values() {
                if placed.key.namespace == pod.key.namespace && constraint.counts(&placed.labels) {
                    *count += 1;
                }
            }
        }
        let fewest = counts.values().copied().min().unwrap_or(0);
        (counts, fewest)
    });
    counts.collect()
}

/// Whether the node will do for the pod. Cheap checks come first; the first that fails gives its reasons.
pub(crate) fn check(
    pod: &PodInfo,
    node: &NodeInfo,
    topology: &Topology,
) -> Result<(), Vec<Rejection>> {
    check_node(pod, node).map_err(|rejection| vec![rejection])?;
    fits(pod, node)?;
    check_ports(pod, node)
        .and_then(|()| check_topology(pod, node, topology))
        .map_err(|rejection| vec![rejection])
}

fn check_node(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    if node.unschedulable && !tolerates_unschedulable(pod) {
        return Err(Rejection::Unschedulable);
    }
    if let Some(taint) = node
        .taints
        .iter()
        .find(|t| (t.effect == "NoSchedule" || t.effect == "NoExecute") && !pod.tolerates(t))
    {
        return Err(Rejection::Taint(
            taint.key.clone(),
            taint.value.clone().unwrap_or_default(),
        ));
    }
    if !affinity_matches(pod, node) {
        return Err(Rejection::NodeAffinity);
    }
    Ok(())
}

fn check_ports(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    if pod
        .host_ports
        .iter()
        .any(|wanted| node.host_ports.iter().any(|used| clash(wanted, used)))
    {
        return Err(Rejection::HostPorts);
    }
    Ok(())
}

fn tolerates_unschedulable(pod: &PodInfo) -> bool {
    pod.tolerates(&k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    })
}

fn affinity_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value))
        && pod
            .required_nodes
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
}

/// Names everything that there is too little of, as upstream does.
fn fits(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Rejection>> {
    let mut missing = Vec::new();
    if node.pods.len() + 1 > node.max_pods {
        missing.push(Rejection::TooManyPods);
    }
    let (wants, used, has) = (&pod.requests, &node.requested, &node.allocatable);
    let lacks = |want: i64, used: i64, has: i64| want > 0 && want > has - used;
    for (name, want, used, has) in [
        ("cpu", wants.cpu, used.cpu, has.cpu),
        ("memory", wants.memory, used.memory, has.memory),
        (
            "ephemeral-storage",
            wants.ephemeral,
            used.ephemeral,
            has.ephemeral,
        ),
    ] {
        if lacks(want, used, has) {
            missing.push(Rejection::Insufficient(Cow::Borrowed(name)));
        }
    }
    for (name, want) in &wants.extended {
        let of = |map: &BTreeMap<String, i64>| map.get(name).copied().unwrap_or(0);
        if lacks(*want, of(&used.extended), of(&has.extended)) {
            missing.push(Rejection::Insufficient(Cow::Owned(name.clone())));
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(missing)
    }
}

fn clash(a: &HostPort, b: &HostPort) -> bool {
    a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || a.2.is_empty() || b.2.is_empty())
}

fn check_topology(pod: &PodInfo, node: &NodeInfo, topology: &Topology) -> Result<(), Rejection> {
    let kept_out = topology
        .keep_out
        .iter()
        .any(|(key, value)| node.labels.get(key) == Some(value));
    if kept_out {
        return Err(Rejection::ExistingAntiAffinity);
    }
    for (term, counts) in pod.anti_affinity.iter().zip(&topology.apart) {
        if node
            .labels
            .get(&term.topology_key)
            .is_some_and(|v| counts.contains_key(v))
        {
            return Err(Rejection::PodAntiAffinity);
        }
    }
    for (term, counts) in pod.affinity.iter().zip(&topology.near) {
        match node.labels.get(&term.topology_key) {
            Some(value) if topology.first_of_its_kind || counts.contains_key(value) => {}
            _ => return Err(Rejection::PodAffinity),
        }
    }
    for (constraint, (counts, fewest)) in pod.spread.iter().zip(&topology.spread) {
        let Some(value) = node.labels.get(&constraint.topology_key) else {
            return Err(Rejection::SpreadLabel);
        };
        let here = counts.get(value).copied().unwrap_or(0);
        let own = i64::from(constraint.counts(&pod.labels));
        if here + own - fewest > constraint.max_skew {
            return Err(Rejection::Spread);
        }
    }
    Ok(())
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
pub(crate) fn explain(nodes: usize, rejections: &HashMap<Rejection, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut reasons: Vec<String> = rejections
        .iter()
        .map(|(rejection, count)| format!("{count} {rejection}"))
        .collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

#[cfg(test)]
mod tests;
