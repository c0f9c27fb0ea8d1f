//! Upstream's defaulting, kind by kind.

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

use crate::object::{at, ensure_map, map_mut, set_default, set_default_zero, text};
use crate::resource::Kind;

mod pod;
mod service;

pub(crate) fn apply(kind: Kind, object: &mut Value) {
    match kind {
        Kind::Pod => pod::pod(object),
        Kind::Service => service::service(object),
        Kind::Endpoints => endpoints(object),
        Kind::EndpointSlice => endpoint_slice(object),
        Kind::Node => node(object),
        Kind::Namespace => namespace(object),
        Kind::Secret => secret(object),
        Kind::Deployment => deployment(object),
        Kind::ReplicaSet => replica_set(object),
        Kind::NetworkPolicy => network_policy(object),
        Kind::ConfigMap | Kind::ServiceAccount | Kind::CoreEvent | Kind::Event | Kind::Lease => {}
    }
}

/// Runs `f` on every element of a list that is a map.
fn each(object: &mut Value, key: &str, mut f: impl FnMut(&mut Value)) {
    if let Some(list) = object.get_mut(key).and_then(Value::as_array_mut) {
        list.iter_mut()
            .filter(|element| element.is_object())
            .for_each(&mut f);
    }
}

fn default_protocol(port: &mut Value) {
    if let Some(port) = port.as_object_mut() {
        set_default_zero(port, "protocol", "TCP");
    }
}

fn endpoints(object: &mut Value) {
    each(object, "subsets", |subset| {
        each(subset, "ports", default_protocol)
    });
}

fn endpoint_slice(object: &mut Value) {
    each(object, "ports", |port| {
        default_protocol(port);
        if let Some(port) = port.as_object_mut() {
            set_default(port, "name", "");
        }
    });
}

fn node(object: &mut Value) {
    if at(object, &["status", "allocatable"]).is_none()
        && let Some(capacity) = at(object, &["status", "capacity"]).cloned()
        && let Some(status) = map_mut(object, &["status"])
    {
        status.insert("allocatable".to_owned(), capacity);
    }
}

fn namespace(object: &mut Value) {
    let name = text(object, &["metadata", "name"]).to_owned();
    if !name.is_empty()
        && let Some(labels) = ensure_map(object, &["metadata", "labels"])
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
    ensure_map(object, &["spec"]);
    if let Some(status) = ensure_map(object, &["status"]) {
        set_default_zero(status, "phase", "Active");
    }
}

/// `stringData` is write-only: it goes into `data`.
fn secret(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    if let Some(Value::Object(strings)) = map.remove("stringData")
        && !strings.is_empty()
    {
        let data = map.entry("data").or_insert(Value::Null);
        if data.is_null() {
            *data = Value::Object(Map::new());
        }
        if let Some(data) = data.as_object_mut() {
            for (key, value) in strings {
                let bytes = value.as_str().unwrap_or_default().as_bytes().to_vec();
                data.insert(
                    key,
                    serde_json::to_value(ByteString(bytes)).unwrap_or_default(),
                );
            }
        }
    }
    set_default_zero(map, "type", "Opaque");
}

fn deployment(object: &mut Value) {
    let Some(spec) = ensure_map(object, &["spec"]) else {
        return;
    };
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    set_default(spec, "strategy", json!({}));
    if let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) {
        set_default_zero(strategy, "type", "RollingUpdate");
        if strategy.get("type").is_some_and(|t| t == "RollingUpdate") {
            set_default(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy
                .get_mut("rollingUpdate")
                .and_then(Value::as_object_mut)
            {
                set_default(rolling, "maxUnavailable", "25%");
                set_default(rolling, "maxSurge", "25%");
            }
        }
    }
    pod::template(object);
}

fn replica_set(object: &mut Value) {
    if let Some(spec) = ensure_map(object, &["spec"]) {
        set_default(spec, "replicas", 1);
    }
    pod::template(object);
}

/// A policy that names no types is about what comes in; about what goes out too if it has rules for that.
fn network_policy(object: &mut Value) {
    let Some(spec) = ensure_map(object, &["spec"]) else {
        return;
    };
    let is_empty = |list: Option<&Value>| list.and_then(Value::as_array).is_none_or(Vec::is_empty);
    if is_empty(spec.get("policyTypes")) {
        let types = if is_empty(spec.get("egress")) {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
        spec.insert("policyTypes".to_owned(), types);
    }
    for direction in ["ingress", "egress"] {
        if let Some(spec) = object.get_mut("spec") {
            each(spec, direction, |rule| {
                each(rule, "ports", default_protocol)
            });
        }
    }
}

#[cfg(test)]
mod tests;
