//! A Deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure.
//! Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::rolling::max_unavailable;
use super::sets::{Sets, available, spec_replicas, status_replicas, wanted};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";

fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.into()),
        last_transition_time: Some(now.into()),
    }
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = find(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time
                .clone_from(&old.last_transition_time);
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// The counts and the condition Available; other conditions stay as they are.
fn counts(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |f: fn(&ReplicaSet) -> i32| -> i32 { sets.all().map(|rs| f(rs)).sum() };
    let available = sum(available);
    let ready = sum(|rs| {
        rs.status
            .as_ref()
            .and_then(|s| s.ready_replicas)
            .unwrap_or(0)
    });
    let terminating = sum(|rs| {
        rs.status
            .as_ref()
            .and_then(|s| s.terminating_replicas)
            .unwrap_or(0)
    });
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(status_replicas)),
        updated_replicas: Some(sets.new.as_deref().map_or(0, status_replicas)),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(spec_replicas) - available).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = available >= wanted(deployment) - max_unavailable(deployment);
    let new = if enough {
        let text = "Deployment has minimum availability.".to_owned();
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", text, now)
    } else {
        let text = "Deployment does not have minimum availability.".to_owned();
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", text, now)
    };
    set(&mut status, new);
    status
}

/// `progressDeadlineSeconds`; the largest number stands for none.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment
        .spec
        .as_ref()
        .and_then(|s| s.progress_deadline_seconds)?;
    let seconds = u64::try_from(seconds)
        .ok()
        .filter(|s| *s < i32::MAX.unsigned_abs().into())?;
    Some(Duration::from_secs(seconds))
}

pub(crate) fn is_paused(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.paused)
        .unwrap_or(false)
}

/// Everything wanted is there, is new and is available.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let target = Some(wanted(deployment));
    status.updated_replicas == target
        && status.replicas == target
        && status.available_replicas == target
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let old_sets = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || old_sets(new) < old_sets(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// The status to write, and when to look again because the progress deadline may have passed.
/// `created` says that this very reconcile made the new set.
pub(crate) fn plan_status(
    deployment: &Deployment,
    sets: &Sets,
    created: bool,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, sets, now);
    match deadline(deployment) {
        None => remove(&mut status, PROGRESSING),
        Some(_) if is_paused(deployment) || is_marked_paused(&status) => {
            mark_paused(&mut status, is_paused(deployment), now);
        }
        Some(limit) => progress(deployment, &old, &mut status, sets, created, limit, now),
    }
    let failing = sets.new.iter().chain(&sets.old).find_map(|rs| {
        let conditions = rs.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .find(|c| c.type_ == REPLICA_FAILURE)
    });
    match failing {
        None => remove(&mut status, REPLICA_FAILURE),
        Some(f) => {
            let reason = f.reason.as_deref().unwrap_or_default();
            let message = f.message.clone().unwrap_or_default();
            set(
                &mut status,
                condition(REPLICA_FAILURE, &f.status, reason, message, now),
            );
        }
    }
    let wake = wake_at_deadline(deployment, &status, now);
    (status, wake)
}

fn is_marked_paused(status: &DeploymentStatus) -> bool {
    find(status, PROGRESSING).and_then(|c| c.reason.as_deref()) == Some("DeploymentPaused")
}

fn mark_paused(status: &mut DeploymentStatus, paused: bool, now: Timestamp) {
    let reason = find(status, PROGRESSING).and_then(|c| c.reason.as_deref());
    if reason == Some(DEADLINE_EXCEEDED) {
        return;
    }
    let (reason, text) = if paused {
        ("DeploymentPaused", "Deployment is paused")
    } else {
        ("DeploymentResumed", "Deployment is resumed")
    };
    set(
        status,
        condition(PROGRESSING, "Unknown", reason, text.to_owned(), now),
    );
}

fn progress(
    deployment: &Deployment,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    sets: &Sets,
    created: bool,
    limit: Duration,
    now: Timestamp,
) {
    let subject = match sets
        .new
        .as_deref()
        .and_then(|rs| rs.metadata.name.as_deref())
    {
        Some(name) => format!("ReplicaSet \"{name}\""),
        None => {
            format!(
                "Deployment \"{}\"",
                deployment.metadata.name.as_deref().unwrap_or_default()
            )
        }
    };
    let current = find(status, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref());
    if created && let Some(rs) = &sets.new {
        let name = rs.metadata.name.as_deref().unwrap_or_default();
        let text = format!("Created new replica set \"{name}\"");
        set(
            status,
            condition(PROGRESSING, "True", "NewReplicaSetCreated", text, now),
        );
    } else if status.replicas == status.updated_replicas && reason == Some(NEW_AVAILABLE) {
        // Done before; a pod that is restarted later is no rollout.
    } else if is_complete(deployment, status) {
        let text = format!("{subject} has successfully progressed.");
        set(
            status,
            condition(PROGRESSING, "True", NEW_AVAILABLE, text, now),
        );
    } else if current.is_none() && sets.new.is_some() {
        let name = sets
            .new
            .as_deref()
            .and_then(|rs| rs.metadata.name.as_deref());
        let text = format!("Found new replica set \"{}\"", name.unwrap_or_default());
        set(
            status,
            condition(PROGRESSING, "True", "FoundNewReplicaSet", text, now),
        );
    } else if has_progressed(old, status) || (sets.new.is_some() && reason == Some(NEW_AVAILABLE)) {
        // The second: an old set became the new one again. The update time restarts the deadline.
        let text = format!("{subject} is progressing.");
        let mut new = condition(PROGRESSING, "True", "ReplicaSetUpdated", text, now);
        if let Some(current) = current.filter(|c| c.status == "True") {
            new.last_transition_time = current.last_transition_time;
        }
        remove(status, PROGRESSING);
        status.conditions.get_or_insert_default().push(new);
    } else if timed_out(current.as_ref(), limit, now) {
        let text = format!("{subject} has timed out progressing.");
        set(
            status,
            condition(PROGRESSING, "False", DEADLINE_EXCEEDED, text, now),
        );
    }
}

fn left_of_deadline(
    current: &DeploymentCondition,
    limit: Duration,
    now: Timestamp,
) -> Option<Duration> {
    let since = current.last_update_time.as_ref()?.0;
    let been = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    limit.checked_sub(been)
}

fn timed_out(current: Option<&DeploymentCondition>, limit: Duration, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(DEADLINE_EXCEEDED) => true,
        _ => left_of_deadline(current, limit, now).is_none(),
    }
}

fn wake_at_deadline(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let limit = deadline(deployment)?;
    let current = find(status, PROGRESSING)?;
    let waits = !matches!(
        current.reason.as_deref(),
        Some(NEW_AVAILABLE | DEADLINE_EXCEEDED)
    );
    if !waits || is_paused(deployment) || is_complete(deployment, status) {
        return None;
    }
    // A second on top, so that the deadline has surely passed then.
    left_of_deadline(current, limit, now).map(|left| left + Duration::from_secs(1))
}

/// Whether writing `new` would change anything a reader sees.
pub(crate) fn status_differs(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let normal = |s: &DeploymentStatus| {
        let mut s = s.clone();
        for n in [
            &mut s.replicas,
            &mut s.updated_replicas,
            &mut s.ready_replicas,
            &mut s.available_replicas,
            &mut s.unavailable_replicas,
            &mut s.terminating_replicas,
        ] {
            n.get_or_insert(0);
        }
        s.conditions.get_or_insert_default();
        s
    };
    old.is_none_or(|old| normal(old) != normal(new))
}
