//! The node lifecycle controller: a node whose lease is not renewed is called Unknown, conditions
//! become taints, and taints drive pods away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Change, EventKind, EventRecorder, Key, WorkQueue, run_workers};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::errors::{Context, ControllerError, unless_gone};
use crate::informers::BY_NODE;
use crate::{Shared, pods};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

struct Controller {
    shared: Arc<Shared>,
    queue: WorkQueue<Key>,
    recorder: EventRecorder,
    /// When we last saw a sign of life, by our own clock: clocks of nodes differ.
    heard: Mutex<HashMap<String, Instant>>,
}

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let mut tasks = JoinSet::new();
    let recorder = EventRecorder::start(
        shared.client.clone(),
        "node-controller",
        "",
        &mut tasks,
        &token,
    );
    let controller = Arc::new(Controller {
        shared,
        queue: WorkQueue::new(),
        recorder,
        heard: Mutex::default(),
    });
    controller.watch();
    if !crate::synced(&controller.shared, &token).await {
        return;
    }
    let queue = controller.queue.clone();
    run_workers("node", queue, 2, token, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    })
    .await;
    tasks.shutdown().await;
}

impl Controller {
    fn watch(self: &Arc<Self>) {
        let this = Arc::clone(self);
        self.shared
            .informers
            .nodes
            .on_change(move |change| this.node_changed(change));
        let this = Arc::clone(self);
        self.shared
            .informers
            .leases
            .on_change(move |change| this.lease_changed(change));
        // A pod that comes to a tainted node may have to leave it.
        let queue = self.queue.clone();
        self.shared.informers.pods.on_change(move |change| {
            if let Change::Applied { old: None, new } = change
                && let Some(node) = pods::node_name(new)
            {
                queue.add(Key::new("", node));
            }
        });
    }

    fn hear(&self, node: &str) {
        self.heard.lock().insert(node.to_owned(), Instant::now());
    }

    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        match change {
            Change::Deleted(_) => {
                self.heard.lock().remove(name);
            }
            Change::Applied { old, new } => {
                let beat = |n: &Node| ready(n).and_then(|c| c.last_heartbeat_time.clone());
                if old.as_ref().is_none_or(|old| beat(old) != beat(new)) {
                    self.hear(name);
                }
            }
        }
        self.queue.add(Key::new("", name));
    }

    fn lease_changed(&self, change: &Change<Lease>) {
        if let Change::Applied { old, new } = change {
            let renewed = |l: &Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
            let name = new.metadata.name.as_deref().unwrap_or_default();
            if old.as_ref().is_none_or(|old| renewed(old) != renewed(new)) {
                self.hear(name);
                // Only a node that was given up has news in a renewed lease.
                let node = self.shared.informers.nodes.get(&Key::new("", name));
                if node.is_some_and(|n| ready(&n).is_none_or(|c| c.status == "Unknown")) {
                    self.queue.add(Key::new("", name));
                }
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ControllerError> {
        let Some(node) = self.shared.informers.nodes.get(key) else {
            return Ok(None);
        };
        let grace = self.shared.config.node_monitor_grace_period;
        let heard = *self
            .heard
            .lock()
            .entry(key.name.clone())
            .or_insert_with(Instant::now);
        let silent = heard.elapsed();
        let mut wake = grace.checked_sub(silent).filter(|left| !left.is_zero());
        let is_unknown = ready(&node).is_some_and(|c| c.status == "Unknown");
        if wake.is_none() && !is_unknown {
            self.give_up(key, &node).await?;
            return Ok(None);
        }
        if let Some(taints) = plan_taints(&node, Timestamp::now()) {
            self.write_taints(key, &node, &taints).await?;
            return Ok(wake);
        }
        for pod in self.shared.informers.pods.by_index(BY_NODE, &key.name) {
            match plan_eviction(&pod, &node, Timestamp::now()) {
                Eviction::Stay => {}
                Eviction::Later(left) => wake = Some(wake.map_or(left, |w| w.min(left))),
                Eviction::Now => self.evict(&pod).await?,
            }
        }
        Ok(wake)
    }

    async fn give_up(&self, key: &Key, node: &Node) -> Result<(), ControllerError> {
        let now = Timestamp::now();
        let mut conditions: Vec<serde_json::Value> = Vec::new();
        for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
            let known = condition(node, kind);
            if kind != "Ready" && known.is_none() {
                continue;
            }
            let (reason, message) = match known {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                ),
            };
            conditions.push(json!({
                "type": kind,
                "status": "Unknown",
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": known.and_then(|c| c.last_heartbeat_time.clone()),
                "lastTransitionTime": now.to_string(),
            }));
        }
        let api: Api<Node> = Api::all(self.shared.client.clone());
        let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
        let result = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        unless_gone(result).context("update status of node", key)?;
        let text = format!("Node {} status is now: NodeNotReady", key.name);
        self.recorder
            .event(node, EventKind::Normal, "NodeNotReady", text);
        for pod in self.shared.informers.pods.by_index(BY_NODE, &key.name) {
            self.mark_not_ready(&pod).await?;
        }
        Ok(())
    }

    /// What runs on a silent node must get no more traffic.
    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), ControllerError> {
        if !pods::is_ready(pod) {
            return Ok(());
        }
        let key = Key::of(pod);
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let patch = Patch::Strategic(json!({"status": {"conditions": [{
            "type": "Ready",
            "status": "False",
            "lastTransitionTime": Timestamp::now().to_string(),
        }]}}));
        let result = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        unless_gone(result).context("mark pod not ready", &key)?;
        Ok(())
    }

    async fn write_taints(
        &self,
        key: &Key,
        node: &Node,
        taints: &[Taint],
    ) -> Result<(), ControllerError> {
        let api: Api<Node> = Api::all(self.shared.client.clone());
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        }));
        let result = api.patch(&key.name, &PatchParams::default(), &patch).await;
        unless_gone(result).context("taint node", key)?;
        Ok(())
    }

    async fn evict(&self, pod: &Pod) -> Result<(), ControllerError> {
        let key = Key::of(pod);
        let text = format!("Marking for deletion Pod {key}");
        self.recorder
            .event(pod, EventKind::Normal, "TaintManagerEviction", text);
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        unless_gone(api.delete(&key.name, &params).await).context("evict pod", &key)?;
        Ok(())
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let status = node.status.as_ref()?;
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    condition(node, "Ready")
}

/// The node's taints as its conditions have them; none when they are so already.
fn plan_taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let current = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready(node).map(|c| c.status.as_str()) {
        Some("True") => {}
        Some("False") => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some(_) => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        // It has just registered: nothing goes there yet, nothing is driven away.
        None => wanted.push((NOT_READY, "NoSchedule")),
    }
    if spec.and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    for (kind, taint) in PRESSURES {
        if condition(node, kind).is_some_and(|c| c.status == "True") {
            wanted.push((taint, "NoSchedule"));
        }
    }
    let ours = |key: &str| {
        key == NOT_READY
            || key == UNREACHABLE
            || key == UNSCHEDULABLE
            || PRESSURES.iter().any(|(_, taint)| *taint == key)
    };
    let is = |t: &Taint, (key, effect): &(&str, &str)| t.key == *key && t.effect == *effect;
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|t| !ours(&t.key) || wanted.iter().any(|w| is(t, w)))
        .cloned()
        .collect();
    for want in &wanted {
        if !taints.iter().any(|t| is(t, want)) {
            taints.push(Taint {
                key: want.0.to_owned(),
                effect: want.1.to_owned(),
                time_added: (want.1 == "NoExecute").then(|| now.into()),
                value: None,
            });
        }
    }
    (taints != current).then_some(taints)
}

#[derive(Debug, Eq, PartialEq)]
enum Eviction {
    Stay,
    Later(Duration),
    Now,
}

/// What the node's NoExecute taints mean for a pod on it.
fn plan_eviction(pod: &Pod, node: &Node, now: Timestamp) -> Eviction {
    if pods::is_terminating(pod) || pods::is_finished(pod) {
        return Eviction::Stay;
    }
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default();
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default();
    let mut result = Eviction::Stay;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let mut matching = tolerations
            .iter()
            .filter(|t| tolerates(t, taint))
            .peekable();
        if matching.peek().is_none() {
            return Eviction::Now;
        }
        // Without a time it is tolerated for ever; the shortest of several times counts.
        let Some(seconds) = matching.filter_map(|t| t.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let been = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        match allowed.checked_sub(been) {
            None | Some(Duration::ZERO) => return Eviction::Now,
            Some(left) => {
                result = match result {
                    Eviction::Later(earlier) => Eviction::Later(earlier.min(left)),
                    _ => Eviction::Later(left),
                };
            }
        }
    }
    result
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    toleration
        .effect
        .as_deref()
        .is_none_or(|e| e.is_empty() || e == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists
            || toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    fn node(ready: Option<&str>, taints: &serde_json::Value) -> Node {
        let conditions = ready.map(|status| json!([{"type": "Ready", "status": status}]));
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"taints": taints},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        Some(
            taints?
                .iter()
                .map(|t| format!("{}:{}", t.key, t.effect))
                .collect(),
        )
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let own = json!([{"key": "mine", "effect": "NoSchedule"}]);
        assert_eq!(keys(plan_taints(&node(Some("True"), &own), now)), None);
        let unknown = plan_taints(&node(Some("Unknown"), &own), now).unwrap();
        assert_eq!(
            keys(Some(unknown.clone())).unwrap(),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        let mut back = node(Some("True"), &own);
        if let Some(spec) = &mut back.spec {
            spec.taints = Some(unknown);
        }
        assert_eq!(keys(plan_taints(&back, now)).unwrap(), ["mine:NoSchedule"]);
        assert_eq!(
            keys(plan_taints(&node(None, &json!([])), now)).unwrap(),
            ["node.kubernetes.io/not-ready:NoSchedule"]
        );
    }

    #[test]
    fn eviction_waits_as_long_as_the_pod_tolerates() {
        let now = Timestamp::UNIX_EPOCH;
        let tainted = node(
            Some("Unknown"),
            &json!([
                {"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": now.to_string()},
            ]),
        );
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"},
                "spec": {"containers": [], "tolerations": tolerations},
            }))
            .unwrap()
        };
        let none = pod(json!([]));
        let some =
            pod(json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300}]));
        let ever = pod(json!([{"operator": "Exists"}]));
        assert_eq!(plan_eviction(&none, &tainted, now), Eviction::Now);
        assert_eq!(
            plan_eviction(&some, &tainted, now),
            Eviction::Later(Duration::from_secs(300))
        );
        let later = now + SignedDuration::from_secs(300);
        assert_eq!(plan_eviction(&some, &tainted, later), Eviction::Now);
        assert_eq!(plan_eviction(&ever, &tainted, later), Eviction::Stay);
    }
}
