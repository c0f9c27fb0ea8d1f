//! Which of the nodes that will do is the best. Pure.

use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

const MAX: i64 = 100;
/// What a pod that asks for nothing is counted as, as upstream: else they would all be put on one
/// node.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

const WEIGHT_TAINTS: i64 = 3;
const WEIGHT_AFFINITY: i64 = 2;
const WEIGHT_SPREADING: i64 = 2;

/// Raw values of one candidate; those that need the other candidates are put in proportion later.
struct Raw {
    index: usize,
    resources: i64,
    taints: i64,
    affinity: i64,
    siblings: i64,
}

/// The best of the candidates (indices into `nodes`). Of equals, the one that `tie_break` points
/// at.
pub(crate) fn choose(
    pod: &PodInfo,
    nodes: &[NodeInfo],
    candidates: &[usize],
    tie_break: usize,
) -> Option<usize> {
    let raw: Vec<Raw> = candidates
        .iter()
        .filter_map(|&index| Some(measure(pod, index, nodes.get(index)?)))
        .collect();
    let most = |f: fn(&Raw) -> i64| raw.iter().map(f).max().unwrap_or(0);
    let (taints, affinity, siblings) = (
        most(|r| r.taints),
        most(|r| r.affinity),
        most(|r| r.siblings),
    );
    let more_is_better = |value: i64, most: i64| if most == 0 { 0 } else { MAX * value / most };
    let fewer_is_better = |value: i64, most: i64| MAX - more_is_better(value, most);
    let mut best: Vec<usize> = Vec::new();
    let mut best_score = i64::MIN;
    for r in &raw {
        let score = r.resources
            + WEIGHT_TAINTS * fewer_is_better(r.taints, taints)
            + WEIGHT_AFFINITY * more_is_better(r.affinity, affinity)
            + WEIGHT_SPREADING * fewer_is_better(r.siblings, siblings);
        if score > best_score {
            best.clear();
            best_score = score;
        }
        if score == best_score {
            best.push(r.index);
        }
    }
    if best.is_empty() {
        None
    } else {
        best.get(tie_break % best.len()).copied()
    }
}

fn measure(pod: &PodInfo, index: usize, node: &NodeInfo) -> Raw {
    let untolerated = node
        .taints
        .iter()
        .filter(|t| t.effect == "PreferNoSchedule" && !pod.tolerates(t))
        .count();
    let affinity = pod
        .preferred_nodes
        .iter()
        .filter(|(_, term)| term.matches(&node.name, &node.labels))
        .map(|(weight, _)| weight)
        .sum();
    let siblings = pod
        .controller
        .and_then(|c| node.per_controller.get(&c))
        .copied()
        .unwrap_or(0);
    Raw {
        index,
        resources: resources(pod, node),
        taints: i64::try_from(untolerated).unwrap_or(MAX),
        affinity,
        siblings: i64::from(siblings),
    }
}

/// Least allocated plus balanced allocation, 0 to 200.
fn resources(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let cpu = share(
        node.requested.cpu,
        pod.requests.cpu,
        DEFAULT_CPU,
        node.allocatable.cpu,
    );
    let memory = share(
        node.requested.memory,
        pod.requests.memory,
        DEFAULT_MEMORY,
        node.allocatable.memory,
    );
    let free = (1000 - cpu + 1000 - memory) / 20;
    // For two resources the standard deviation is half their distance.
    let balanced = MAX - (cpu - memory).abs() / 20;
    free + balanced
}

/// Thousandths in use once the pod is there.
fn share(requested: i64, wanted: i64, default: i64, allocatable: i64) -> i64 {
    if allocatable <= 0 {
        return 1000;
    }
    let wanted = if wanted == 0 { default } else { wanted };
    let used = i128::from(requested) + i128::from(wanted);
    i64::try_from(used.saturating_mul(1000) / i128::from(allocatable))
        .unwrap_or(1000)
        .min(1000)
}
