//! Nodes, workloads and events.

use jiff::Timestamp;
use serde_json::Value;

use super::or;
use crate::duration::age_of;
use crate::object::{at, entries, int_at, items, str_at, text};
use crate::selector::LabelSelector;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) fn node(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let info = |key: &str| Value::from(or(text(object, &["status", "nodeInfo", key]), "<unknown>"));
    vec![
        name,
        node_status(object).into(),
        node_roles(object).into(),
        age,
        text(object, &["status", "nodeInfo", "kubeletVersion"]).into(),
        node_address(object, "InternalIP").into(),
        node_address(object, "ExternalIP").into(),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn node_status(object: &Value) -> String {
    let ready = items(object, &["status", "conditions"])
        .iter()
        .find(|c| text(c, &["type"]) == "Ready");
    let mut status = match ready.map(|c| text(c, &["status"])) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if at(object, &["spec", "unschedulable"]) == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(object: &Value) -> String {
    let mut roles: Vec<&str> = entries(object, &["metadata", "labels"])
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or(&roles.join(","), "<none>").to_owned()
}

fn node_address<'a>(object: &'a Value, kind: &str) -> &'a str {
    let address = items(object, &["status", "addresses"])
        .iter()
        .find(|a| text(a, &["type"]) == kind);
    address.map_or("<none>", |a| text(a, &["address"]))
}

/// Names of the template's containers, their images, the selector.
fn template(object: &Value) -> [Value; 3] {
    let containers = items(object, &["spec", "template", "spec", "containers"]);
    let join = |key: &str| {
        let list: Vec<&str> = containers.iter().map(|c| text(c, &[key])).collect();
        Value::from(list.join(","))
    };
    let selector = match at(object, &["spec", "selector"]).map(LabelSelector::from_object) {
        None => "<none>".to_owned(),
        Some(Ok(selector)) if selector.is_empty() => "<none>".to_owned(),
        Some(Ok(selector)) => selector.to_string(),
        Some(Err(_)) => "<invalid>".to_owned(),
    };
    [join("name"), join("image"), selector.into()]
}

pub(super) fn deployment(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let status = |key: &str| int_at(object, &["status", key]).unwrap_or_default();
    let wanted = int_at(object, &["spec", "replicas"]).unwrap_or_default();
    let mut cells = vec![
        name,
        format!("{}/{wanted}", status("readyReplicas")).into(),
        status("updatedReplicas").into(),
        status("availableReplicas").into(),
        age,
    ];
    cells.extend(template(object));
    cells
}

pub(super) fn replica_set(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let status = |key: &str| int_at(object, &["status", key]).unwrap_or_default();
    let wanted = int_at(object, &["spec", "replicas"]).unwrap_or_default();
    let mut cells = vec![
        name,
        wanted.into(),
        status("replicas").into(),
        status("readyReplicas").into(),
        age,
    ];
    cells.extend(template(object));
    cells
}

/// An event in its stored (core `v1`) form.
pub(super) fn event(object: &Value, name: Value, now: Timestamp) -> Vec<Value> {
    let time = |path: &[&str]| str_at(object, path).map(|t| age_of(Some(t), now));
    let first = time(&["firstTimestamp"])
        .or_else(|| time(&["eventTime"]))
        .unwrap_or_else(|| age_of(None, now));
    let (last, count) = match at(object, &["series"]) {
        Some(series) => (
            age_of(str_at(series, &["lastObservedTime"]), now),
            int_at(series, &["count"]).unwrap_or_default(),
        ),
        None => (
            time(&["lastTimestamp"]).unwrap_or_else(|| first.clone()),
            int_at(object, &["count"]).unwrap_or_default().max(1),
        ),
    };
    let about = text(object, &["involvedObject", "kind"]).to_lowercase();
    let about = match text(object, &["involvedObject", "name"]) {
        "" => about,
        name => format!("{about}/{name}"),
    };
    let component = or(
        text(object, &["source", "component"]),
        text(object, &["reportingComponent"]),
    );
    let instance = or(
        text(object, &["source", "host"]),
        text(object, &["reportingInstance"]),
    );
    let source = if instance.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {instance}")
    };
    vec![
        last.into(),
        text(object, &["type"]).into(),
        text(object, &["reason"]).into(),
        about.into(),
        text(object, &["involvedObject", "fieldPath"]).into(),
        source.into(),
        text(object, &["message"]).trim().into(),
        first.into(),
        count.into(),
        name,
    ]
}
