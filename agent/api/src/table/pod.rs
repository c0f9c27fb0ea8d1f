//! Pods: upstream's STATUS and RESTARTS logic.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::or;
use crate::duration::age;
use crate::object::{at, int_at, items, text};

/// What the containers add up to.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn cells(object: &Value, name: Value, pod_age: Value, now: Timestamp) -> Vec<Value> {
    let summary = summarise(object);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, age(last, now))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = match items(object, &["status", "podIPs"]).first() {
        Some(first) => text(first, &["ip"]),
        None => text(object, &["status", "podIP"]),
    };
    vec![
        name,
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        pod_age,
        or(ip, "<none>").into(),
        or(text(object, &["spec", "nodeName"]), "<none>").into(),
        or(text(object, &["status", "nominatedNodeName"]), "<none>").into(),
        readiness_gates(object).into(),
    ]
}

/// Upstream marks rows of finished Pods.
pub(super) fn row_condition(object: &Value) -> Option<Value> {
    let (reason, message) = match text(object, &["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": reason, "message": message}))
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, &["status", "conditions"])
        .iter()
        .find(|c| text(c, &["type"]) == kind)
}

fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| text(c, &["status"]) == "True")
}

fn readiness_gates(object: &Value) -> String {
    let gates = items(object, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates
        .iter()
        .filter(|g| is_true(object, text(g, &["conditionType"])))
        .count();
    format!("{open}/{}", gates.len())
}

fn is_sidecar(object: &Value, name: &str) -> bool {
    items(object, &["spec", "initContainers"])
        .iter()
        .any(|c| text(c, &["name"]) == name && text(c, &["restartPolicy"]) == "Always")
}

/// `Error`, or `Signal:9`, or `ExitCode:1`.
fn termination(terminated: &Value) -> String {
    let reason = text(terminated, &["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match int_at(terminated, &["signal"]).unwrap_or_default() {
        0 => format!(
            "ExitCode:{}",
            int_at(terminated, &["exitCode"]).unwrap_or_default()
        ),
        signal => format!("Signal:{signal}"),
    }
}

fn last_finished(status: &Value) -> Option<Timestamp> {
    text(status, &["lastState", "terminated", "finishedAt"])
        .parse()
        .ok()
}

fn restart_count(status: &Value) -> i64 {
    int_at(status, &["restartCount"]).unwrap_or_default()
}

fn summarise(object: &Value) -> Summary {
    let mut reason = text(object, &["status", "phase"]);
    reason = or(text(object, &["status", "reason"]), reason);
    if condition(object, "PodScheduled").is_some_and(|c| text(c, &["reason"]) == "SchedulingGated")
    {
        reason = "SchedulingGated";
    }
    let init = items(object, &["spec", "initContainers"]);
    let sidecars = init
        .iter()
        .filter(|c| text(c, &["restartPolicy"]) == "Always")
        .count();
    let mut summary = Summary {
        ready: 0,
        total: items(object, &["spec", "containers"]).len() + sidecars,
        reason: reason.to_owned(),
        restarts: 0,
        last_restart: None,
    };
    let (initializing, sidecar_restarts, sidecar_last) = init_state(object, &mut summary);
    if !initializing || is_true(object, "Initialized") {
        summary.restarts = sidecar_restarts;
        summary.last_restart = sidecar_last;
        containers_state(object, &mut summary);
    }
    if at(object, &["metadata", "deletionTimestamp"]).is_some() {
        let phase = text(object, &["status", "phase"]);
        if text(object, &["status", "reason"]) == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

/// Whether init containers are still at it, and the restarts of sidecars.
fn init_state(object: &Value, summary: &mut Summary) -> (bool, i64, Option<Timestamp>) {
    let total = items(object, &["spec", "initContainers"]).len();
    let mut sidecar_restarts = 0;
    let mut sidecar_last = None;
    for (index, status) in items(object, &["status", "initContainerStatuses"])
        .iter()
        .enumerate()
    {
        let sidecar = is_sidecar(object, text(status, &["name"]));
        summary.restarts += restart_count(status);
        summary.last_restart = summary.last_restart.max(last_finished(status));
        if sidecar {
            sidecar_restarts += restart_count(status);
            sidecar_last = sidecar_last.max(last_finished(status));
        }
        let terminated = at(status, &["state", "terminated"]);
        let is = |key: &str| at(status, &[key]) == Some(&Value::Bool(true));
        if terminated.is_some_and(|t| int_at(t, &["exitCode"]).unwrap_or_default() == 0) {
            continue;
        }
        if sidecar && is("started") {
            summary.ready += usize::from(is("ready"));
            continue;
        }
        let waiting = text(status, &["state", "waiting", "reason"]);
        summary.reason = match terminated {
            Some(terminated) => format!("Init:{}", termination(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => {
                format!("Init:{waiting}")
            }
            None => format!("Init:{index}/{total}"),
        };
        return (true, sidecar_restarts, sidecar_last);
    }
    (false, sidecar_restarts, sidecar_last)
}

fn containers_state(object: &Value, summary: &mut Summary) {
    let mut running = false;
    // Backwards, so that the first container has the last word.
    for status in items(object, &["status", "containerStatuses"]).iter().rev() {
        summary.restarts += restart_count(status);
        summary.last_restart = summary.last_restart.max(last_finished(status));
        let waiting = text(status, &["state", "waiting", "reason"]);
        let ready = at(status, &["ready"]) == Some(&Value::Bool(true));
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if let Some(terminated) = at(status, &["state", "terminated"]) {
            summary.reason = termination(terminated);
        } else if ready && at(status, &["state", "running"]).is_some() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let reason = if is_true(object, "Ready") {
            "Running"
        } else {
            "NotReady"
        };
        summary.reason = reason.to_owned();
    }
}
