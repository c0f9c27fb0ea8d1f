//! The pod garbage collector: pods that no kubelet will ever finish, and too many finished ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use skiff_client::{Key, chain};
use tokio_util::sync::CancellationToken;

use crate::errors::{Context, ControllerError, unless_gone};
use crate::{Shared, pods};

/// Upstream's interval.
const INTERVAL: Duration = Duration::from_secs(20);
/// A node must be away this long before its pods are given up: it may be re-registering.
const QUARANTINE: Duration = Duration::from_secs(40);

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    if !crate::synced(&shared, &token).await {
        return;
    }
    let mut missing: HashMap<String, Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let all = shared.informers.pods.list();
        let has_node = |name: &str| shared.informers.nodes.get(&Key::new("", name)).is_some();
        note_missing(&mut missing, &all, has_node, Instant::now());
        let threshold = shared.config.terminated_pod_gc_threshold;
        for doomed in plan(&all, &missing, threshold, Instant::now()) {
            if let Err(error) = remove(&shared, &doomed).await {
                tracing::warn!(error = %chain(&error), "pod not collected");
            }
        }
    }
}

fn note_missing(
    missing: &mut HashMap<String, Instant>,
    all: &[Arc<Pod>],
    has_node: impl Fn(&str) -> bool,
    now: Instant,
) {
    missing.retain(|node, _| !has_node(node));
    for node in all
        .iter()
        .filter_map(|p| pods::node_name(p))
        .filter(|n| !has_node(n))
    {
        missing.entry(node.to_owned()).or_insert(now);
    }
}

#[derive(Debug)]
struct Doomed {
    pod: Arc<Pod>,
    /// Its node is gone: whoever waits for the pod's end must see it failed.
    orphaned: bool,
}

fn plan(
    all: &[Arc<Pod>],
    missing: &HashMap<String, Instant>,
    threshold: usize,
    now: Instant,
) -> Vec<Doomed> {
    let mut doomed = Vec::new();
    let mut finished = Vec::new();
    for pod in all {
        let gone_since = pods::node_name(pod).and_then(|node| missing.get(node));
        let orphaned = gone_since.is_some_and(|since| now.duration_since(*since) >= QUARANTINE);
        let never_scheduled = pods::is_terminating(pod) && pods::node_name(pod).is_none();
        if orphaned || never_scheduled {
            doomed.push(Doomed {
                pod: Arc::clone(pod),
                orphaned,
            });
        } else if pods::is_finished(pod) && !pods::is_terminating(pod) {
            finished.push(Arc::clone(pod));
        }
    }
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        finished.truncate(finished.len() - threshold);
        doomed.extend(finished.into_iter().map(|pod| Doomed {
            pod,
            orphaned: false,
        }));
    }
    doomed
}

async fn remove(shared: &Shared, doomed: &Doomed) -> Result<(), ControllerError> {
    let pod = &doomed.pod;
    let key = Key::of(&**pod);
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &key.namespace);
    if doomed.orphaned && !pods::is_finished(pod) {
        let patch = Patch::Merge(json!({"status": {"phase": "Failed"}}));
        let result = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        unless_gone(result).context("fail pod", &key)?;
    }
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    unless_gone(api.delete(&key.name, &params).await).context("delete pod", &key)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str, age: i64) -> Arc<Pod> {
        let mut pod = Pod {
            spec: Some(PodSpec {
                node_name: node.map(str::to_owned),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        pod.metadata.name = Some(name.to_owned());
        let created = jiff::Timestamp::from_second(1_000_000 - age).unwrap();
        pod.metadata.creation_timestamp = Some(created.into());
        Arc::new(pod)
    }

    fn names(doomed: &[Doomed]) -> Vec<&str> {
        doomed
            .iter()
            .filter_map(|d| d.pod.metadata.name.as_deref())
            .collect()
    }

    #[test]
    fn pods_of_a_vanished_node_go_after_the_quarantine() {
        let all = [
            pod("a", Some("gone"), "Running", 0),
            pod("b", Some("here"), "Running", 0),
        ];
        let mut missing = HashMap::new();
        let start = Instant::now();
        note_missing(&mut missing, &all, |node| node == "here", start);
        assert!(plan(&all, &missing, 0, start).is_empty());
        assert_eq!(names(&plan(&all, &missing, 0, start + QUARANTINE)), ["a"]);
        note_missing(&mut missing, &all, |_| true, start);
        assert!(missing.is_empty(), "the node is back");
    }

    #[test]
    fn the_oldest_finished_pods_beyond_the_threshold_go() {
        let all = [
            pod("old", Some("n"), "Failed", 30),
            pod("new", Some("n"), "Succeeded", 10),
            pod("run", Some("n"), "Running", 99),
        ];
        let none = HashMap::new();
        assert_eq!(names(&plan(&all, &none, 1, Instant::now())), ["old"]);
        assert!(plan(&all, &none, 2, Instant::now()).is_empty());
    }
}
