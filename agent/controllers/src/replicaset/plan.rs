//! What a ReplicaSet needs: pods more or fewer, which ones go first, and its status. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

/// At most this many pods are created or deleted in one reconcile, as upstream.
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What to do about the number of pods.
#[derive(Clone, Debug)]
pub(crate) enum Scale {
    Keep,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Compares wanted and active pods. `related` are the active pods of all replica sets of the same
/// owner: doubled-up nodes are thinned out first.
pub(crate) fn plan_scale(rs: &ReplicaSet, active: &[Arc<Pod>], related: &[Arc<Pod>]) -> Scale {
    let wanted = usize::try_from(wanted_replicas(rs)).unwrap_or(0);
    if active.len() < wanted {
        return Scale::Create((wanted - active.len()).min(BURST));
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus == 0 {
        return Scale::Keep;
    }
    let mut victims = active.to_vec();
    if surplus < victims.len() {
        let mut per_node: HashMap<&str, usize> = HashMap::new();
        for pod in related {
            if let Some(node) = pods::node_name(pod) {
                *per_node.entry(node).or_default() += 1;
            }
        }
        victims.sort_by_cached_key(|pod| deletion_order(pod, &per_node));
        victims.truncate(surplus);
    }
    Scale::Delete(victims)
}

pub(crate) fn wanted_replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The least goes first.
fn deletion_order(pod: &Pod, per_node: &HashMap<&str, usize>) -> impl Ord + use<> {
    let node = pods::node_name(pod);
    let phase = match pods::phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let annotations = pod.metadata.annotations.as_ref();
    let cost: i32 = annotations
        .and_then(|a| a.get(DELETION_COST))
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    let neighbours = node.and_then(|n| per_node.get(n)).copied().unwrap_or(0);
    (
        node.is_some(),
        phase,
        pods::is_ready(pod),
        cost,
        Reverse(neighbours),
        Reverse(pods::ready_since(pod)),
        Reverse(pods::restarts(pod)),
        Reverse(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
        pod.metadata.name.clone(),
    )
}

/// The status, and when it will change by the mere passing of time (`minReadySeconds`).
pub(crate) fn plan_status(
    rs: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = rs.spec.clone().unwrap_or_default();
    let min_ready = pods::min_ready(spec.min_ready_seconds);
    let template_labels = spec
        .template
        .and_then(|t| t.metadata)
        .and_then(|m| m.labels)
        .unwrap_or_default();
    let (mut replicas, mut labeled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut next = None::<Duration>;
    for pod in owned {
        if pods::is_terminating(pod) {
            terminating += i32::from(!pods::is_finished(pod));
            continue;
        }
        if pods::is_finished(pod) {
            continue;
        }
        replicas += 1;
        let labels = pod.metadata.labels.as_ref();
        let full = template_labels
            .iter()
            .all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
        labeled += i32::from(full);
        ready += i32::from(pods::is_ready(pod));
        match pods::is_available(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(left) => next = [next, left].into_iter().flatten().min(),
        }
    }
    let old = rs.status.clone().unwrap_or_default();
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: Some(labeled),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        terminating_replicas: Some(terminating),
        observed_generation: rs.metadata.generation,
        conditions: plan_conditions(old.conditions, failure, now),
    };
    (status, next)
}

fn plan_conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    match failure {
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        // It stays as it is while it lasts.
        Some(_) if conditions.iter().any(|c| c.type_ == "ReplicaFailure") => {}
        Some((reason, message)) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(now.into()),
        }),
    }
    Some(conditions).filter(|c| !c.is_empty())
}

/// Whether writing `new` would change anything a reader sees.
pub(crate) fn status_differs(old: Option<&ReplicaSetStatus>, new: &ReplicaSetStatus) -> bool {
    let Some(old) = old else { return true };
    let zero = |n: Option<i32>| n.unwrap_or(0);
    old.replicas != new.replicas
        || zero(old.fully_labeled_replicas) != zero(new.fully_labeled_replicas)
        || zero(old.ready_replicas) != zero(new.ready_replicas)
        || zero(old.available_replicas) != zero(new.available_replicas)
        || zero(old.terminating_replicas) != zero(new.terminating_replicas)
        || old.observed_generation != new.observed_generation
        || old.conditions.as_deref().unwrap_or_default()
            != new.conditions.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;
    use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};
    use k8s_openapi::jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    fn rs(replicas: i32, min_ready: i32) -> ReplicaSet {
        ReplicaSet {
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: Some(min_ready),
                ..ReplicaSetSpec::default()
            }),
            ..ReplicaSet::default()
        }
    }

    fn pod(name: &str, node: Option<&str>, phase: &str, ready_at: Option<i64>) -> Pod {
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
        pod.metadata.creation_timestamp = Some(at(0).into());
        if let (Some(status), Some(seconds)) = (&mut pod.status, ready_at) {
            status.conditions = Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(at(seconds).into()),
                ..PodCondition::default()
            }]);
        }
        pod
    }

    fn doomed(pods: &[Pod], keep: i32) -> Vec<String> {
        let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
        match plan_scale(&rs(keep, 0), &pods, &pods) {
            Scale::Delete(v) => v.iter().filter_map(|p| p.metadata.name.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn deletion_order_is_upstreams() {
        let mut cheap = pod("cheap", Some("n1"), "Running", Some(1));
        cheap.metadata.annotations = Some(
            [(DELETION_COST.to_owned(), "-5".to_owned())]
                .into_iter()
                .collect(),
        );
        let pods = [
            pod("old-ready", Some("n2"), "Running", Some(1)),
            pod("new-ready", Some("n2"), "Running", Some(9)),
            cheap,
            pod("alone", Some("n3"), "Running", Some(9)),
            pod("not-ready", Some("n1"), "Running", None),
            pod("pending", Some("n1"), "Pending", None),
            pod("unassigned", None, "Pending", None),
        ];
        assert_eq!(
            doomed(&pods, 1),
            [
                "unassigned",
                "pending",
                "not-ready",
                "cheap",
                "new-ready",
                "old-ready"
            ]
        );
    }

    #[test]
    fn min_ready_seconds_delays_availability_and_asks_to_be_woken() {
        let owned = [Arc::new(pod("p", Some("n"), "Running", Some(10)))];
        let (status, wake) = plan_status(&rs(1, 5), &owned, None, at(12));
        assert_eq!(
            (status.ready_replicas, status.available_replicas),
            (Some(1), Some(0))
        );
        assert_eq!(wake, Some(Duration::from_secs(3)));
        let (status, wake) = plan_status(&rs(1, 5), &owned, None, at(15));
        assert_eq!((status.available_replicas, wake), (Some(1), None));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_ends() {
        let mut set = rs(1, 0);
        let failure = Some(("FailedCreate", "no".to_owned()));
        set.status = Some(plan_status(&set, &[], failure.clone(), at(1)).0);
        let (again, _) = plan_status(&set, &[], failure, at(2));
        assert!(!status_differs(set.status.as_ref(), &again));
        let (healed, _) = plan_status(&set, &[], None, at(3));
        assert!(healed.conditions.is_none());
        assert!(status_differs(set.status.as_ref(), &healed));
    }

    proptest! {
        #[test]
        fn prop_scale_moves_straight_to_the_wanted_count(wanted in 0i32..700, have in 0usize..700) {
            let pods: Vec<_> = (0..have)
                .map(|i| Arc::new(pod(&format!("p{i}"), None, "Pending", None)))
                .collect();
            let wanted_n = usize::try_from(wanted).unwrap();
            match plan_scale(&rs(wanted, 0), &pods, &pods) {
                Scale::Keep => prop_assert_eq!(have, wanted_n),
                Scale::Create(n) => {
                    prop_assert!(n <= BURST && have + n <= wanted_n && n > 0);
                }
                Scale::Delete(victims) => {
                    prop_assert!(victims.len() <= BURST && have - victims.len() >= wanted_n);
                    prop_assert!(!victims.is_empty());
                }
            }
        }
    }
}
