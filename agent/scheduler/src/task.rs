//! The task that owns cache and queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client};
use skiff_client::{Change, EventKind, EventRecorder, Informer, chain};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bind::{self, BindError};
use crate::cache::Cache;
use crate::filter::{self, Rejection, Topology};
use crate::pod_info::{PodInfo, is_finished, wants_scheduling};
use crate::queue::{Popped, Queue};
use crate::score;

/// Bindings under way at once; more only queue up in the API server.
const MAX_BINDINGS: usize = 256;
/// Enough nodes that fit to choose among. Upstream's floor; a larger share of a large cluster
/// costs time and improves the choice little.
const ENOUGH_NODES: usize = 100;
/// Changes taken before the next pod is scheduled.
const MAX_CHANGES: usize = 4096;

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
}

struct Outcome {
    popped: Popped,
    node: String,
    result: Result<(), BindError>,
}

/// Runs the scheduler until `token` is cancelled.
pub async fn run(client: Client, token: CancellationToken) {
    let mut tasks = JoinSet::new();
    let recorder =
        EventRecorder::start(client.clone(), "default-scheduler", "", &mut tasks, &token);
    let (tx, inputs) = mpsc::unbounded_channel();
    let pods = Informer::builder().transform(shrink_pod).start(
        Api::<Pod>::all(client.clone()),
        &mut tasks,
        &token,
    );
    let nodes = Informer::builder().transform(shrink_node).start(
        Api::<Node>::all(client.clone()),
        &mut tasks,
        &token,
    );
    let pod_tx = tx.clone();
    pods.on_change(move |change| drop(pod_tx.send(Input::Pod(change.clone()))));
    nodes.on_change(move |change| drop(tx.send(Input::Node(change.clone()))));
    // Before all nodes and pods are known, every node looks emptier than it is.
    tokio::select! {
        () = token.cancelled() => return,
        _ = async { pods.synced().await && nodes.synced().await } => {}
    }
    let mut scheduler = Scheduler {
        client,
        pods,
        recorder,
        cache: Cache::default(),
        queue: Queue::default(),
        bindings: JoinSet::new(),
        reports: JoinSet::new(),
    };
    scheduler.schedule_loop(inputs, &token).await;
    tasks.shutdown().await;
}

/// Keeps of a pod what `PodInfo` reads.
fn shrink_pod(pod: &mut Pod) {
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        for c in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            *c = k8s_openapi::api::core::v1::Container {
                resources: c.resources.take(),
                ports: c.ports.take(),
                restart_policy: c.restart_policy.take(),
                ..Default::default()
            };
        }
    }
    if let Some(status) = &mut pod.status {
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            ..Default::default()
        };
    }
}

fn shrink_node(node: &mut Node) {
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        *status = k8s_openapi::api::core::v1::NodeStatus {
            allocatable: status.allocatable.take(),
            ..Default::default()
        };
    }
}

fn node_name(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .unwrap_or_default()
}

struct Scheduler {
    client: Client,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    cache: Cache,
    queue: Queue,
    bindings: JoinSet<Outcome>,
    reports: JoinSet<()>,
}

impl Scheduler {
    async fn schedule_loop(
        &mut self,
        mut inputs: mpsc::UnboundedReceiver<Input>,
        token: &CancellationToken,
    ) {
        while !token.is_cancelled() {
            for _ in 0..MAX_CHANGES {
                match inputs.try_recv() {
                    Ok(input) => self.take_in(input),
                    Err(_) => break,
                }
            }
            while let Some(done) = self.bindings.try_join_next() {
                self.settle(done.ok());
            }
            while self.reports.try_join_next().is_some() {}
            if self.bindings.len() < MAX_BINDINGS
                && let Some(popped) = self.queue.pop(Instant::now())
            {
                self.schedule(popped);
                // Bindings and informers run on this runtime too.
                tokio::task::consume_budget().await;
                continue;
            }
            let wake = self.queue.next_wake();
            tokio::select! {
                () = token.cancelled() => {}
                input = inputs.recv() => match input {
                    Some(input) => self.take_in(input),
                    None => break,
                },
                done = self.bindings.join_next(), if !self.bindings.is_empty() => {
                    self.settle(done.and_then(Result::ok));
                }
                () = sleep_until(wake), if wake.is_some() => {}
            }
        }
        // What is under way is finished: the pod would be bound twice otherwise after a restart.
        while self.bindings.join_next().await.is_some() {}
    }

    fn take_in(&mut self, input: Input) {
        match input {
            Input::Node(Change::Applied { new, .. }) => {
                if self.cache.node_applied(&new) {
                    self.queue.cluster_changed(Instant::now());
                }
            }
            Input::Node(Change::Deleted(node)) => {
                self.cache
                    .node_deleted(node.metadata.name.as_deref().unwrap_or_default());
            }
            Input::Pod(Change::Applied { old, new }) => self.pod_applied(old.as_deref(), &new),
            Input::Pod(Change::Deleted(pod)) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                self.queue.remove(uid);
                if self.cache.remove(uid) {
                    self.queue.cluster_changed(Instant::now());
                }
            }
        }
    }

    fn pod_applied(&mut self, old: Option<&Pod>, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if is_finished(pod) {
            self.queue.remove(uid);
            if self.cache.remove(uid) {
                self.queue.cluster_changed(Instant::now());
            }
            return;
        }
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .unwrap_or_default();
        if !node.is_empty() {
            self.queue.remove(uid);
            let here = self.cache.node_of(uid) == Some(node);
            let known = here
                && old.is_some_and(|old| {
                    let was_unbound = node_name(old).is_empty();
                    let same_labels = old.metadata.labels == pod.metadata.labels;
                    same_labels && (was_unbound || old.spec == pod.spec)
                });
            if !known {
                self.cache.place(Arc::new(PodInfo::new(pod)), node);
                self.queue.pod_placed(Instant::now());
                // An in-place resize may have made room.
                if here {
                    self.queue.cluster_changed(Instant::now());
                }
            }
            return;
        }
        if !wants_scheduling(pod) {
            self.queue.remove(uid);
            return;
        }
        // Assumed: its binding is under way.
        if self.cache.node_of(uid).is_some() {
            return;
        }
        let changed = old
            .is_none_or(|old| old.spec != pod.spec || old.metadata.labels != pod.metadata.labels);
        if changed || !self.queue.contains(uid) {
            self.queue.add(PodInfo::new(pod), Instant::now());
        }
    }

    fn schedule(&mut self, popped: Popped) {
        match select(&popped.pod, &mut self.cache) {
            Ok(node) => {
                self.cache.place(Arc::new(popped.pod.clone()), &node);
                self.queue.pod_placed(Instant::now());
                let client = self.client.clone();
                self.bindings.spawn(async move {
                    let result = bind::bind(&client, &popped.pod, &node).await;
                    Outcome {
                        popped,
                        node,
                        result,
                    }
                });
            }
            Err(message) => self.unschedulable(popped, message),
        }
    }

    fn unschedulable(&mut self, mut popped: Popped, message: String) {
        if popped.pod.reported.as_ref() != Some(&message) {
            popped.pod.reported = Some(message.clone());
            let (client, pod, text) = (self.client.clone(), popped.pod.clone(), message.clone());
            self.reports.spawn(async move {
                if let Err(error) = bind::report_unschedulable(&client, &pod, &text).await
                    && !skiff_client::is_not_found(&error)
                {
                    tracing::debug!(pod = %pod.key, error = %chain(&error), "condition not written");
                }
            });
        }
        let about = bind::reference(&popped.pod);
        self.recorder
            .record(about, EventKind::Warning, "FailedScheduling", message);
        self.queue.park(popped, Instant::now());
    }

    fn settle(&mut self, outcome: Option<Outcome>) {
        let Some(Outcome {
            popped,
            node,
            result,
        }) = outcome
        else {
            return;
        };
        let pod = &popped.pod;
        match result {
            Ok(()) => {
                let text = format!(
                    "Successfully assigned {}/{} to {node}",
                    pod.key.namespace, pod.key.name
                );
                self.recorder
                    .record(bind::reference(pod), EventKind::Normal, "Scheduled", text);
            }
            Err(error) => {
                self.cache.remove(&pod.uid);
                self.queue.cluster_changed(Instant::now());
                let current = self.pods.get(&pod.key).filter(|current| {
                    current.metadata.uid.as_deref() == Some(&pod.uid) && !is_finished(current)
                });
                let Some(current) = current.filter(|_| !error.is_gone()) else {
                    return;
                };
                if !wants_scheduling(&current) {
                    // Bound after all, by us or somebody else.
                    self.pod_applied(None, &current);
                    return;
                }
                tracing::warn!(pod = %pod.key, node, error = %chain(&error), "not bound");
                self.queue.retry(popped, Instant::now());
            }
        }
    }
}

/// The node for the pod, or why there is none.
pub(crate) fn select(pod: &PodInfo, cache: &mut Cache) -> Result<String, String> {
    let topology = Topology::of(pod, cache);
    let nodes = cache.nodes();
    let mut fitting = Vec::with_capacity(ENOUGH_NODES.min(nodes.len()));
    let mut rejections: HashMap<Rejection, usize> = HashMap::new();
    let (mut existing, mut seen) = (0, 0);
    let start = cache.next_start % nodes.len().max(1);
    for index in (start..nodes.len()).chain(0..start) {
        seen += 1;
        let node = &nodes[index];
        if !node.exists {
            continue;
        }
        existing += 1;
        match filter::check(pod, node, &topology) {
            Ok(()) => {
                fitting.push(index);
                if fitting.len() >= ENOUGH_NODES {
                    break;
                }
            }
            Err(found) => {
                for rejection in found {
                    *rejections.entry(rejection).or_default() += 1;
                }
            }
        }
    }
    let chosen = score::choose(pod, nodes, &fitting, start);
    let name = chosen
        .and_then(|index| nodes.get(index))
        .map(|node| node.name.clone());
    let total = nodes.len();
    cache.next_start = (start + seen) % total.max(1);
    name.ok_or_else(|| filter::explain(existing, &rejections))
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
