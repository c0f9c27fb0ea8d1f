//! What create, update and status update may change: upstream's registry strategies.

use serde_json::{Map, Value};

use super::{Kind, Resource, service};
use crate::object::{at, ensure_map, int_at, text};
use crate::validation::quality_of_service;

/// Metadata that only the server writes once an object exists.
const SYSTEM_METADATA: &[&str] = &[
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
];

pub(super) fn prepare_for_create(resource: &Resource, object: &mut Value) {
    if let Some(metadata) = ensure_map(object, &["metadata"]) {
        for key in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            metadata.remove(key);
        }
    }
    let status = match resource.id {
        Kind::Pod => {
            let qos = quality_of_service(object);
            Some(serde_json::json!({"phase": "Pending", "qosClass": qos}))
        }
        Kind::Service => Some(serde_json::json!({"loadBalancer": {}})),
        Kind::Namespace => Some(serde_json::json!({"phase": "Active"})),
        Kind::Deployment => Some(Value::Object(Map::new())),
        Kind::ReplicaSet => Some(serde_json::json!({"replicas": 0})),
        _ => None,
    };
    if let Some(status) = status {
        set(object, "status", Some(status));
    }
    if has_generation(resource.id) {
        set_generation(object, 1);
    }
    if resource.id == Kind::Namespace
        && let Some(spec) = ensure_map(object, &["spec"])
    {
        let finalizers = spec
            .entry("finalizers")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == "kubernetes")
        {
            list.push("kubernetes".into());
        }
    }
    if resource.id == Kind::Service {
        service::prepare_for_create(object);
    }
}

pub(super) fn prepare_for_update(resource: &Resource, new: &mut Value, old: &Value) {
    keep_system_metadata(new, old);
    if has_status(resource.id) {
        keep(new, old, "status");
    }
    match resource.id {
        Kind::Namespace => {
            keep(new, old, "spec");
        }
        Kind::Secret if text(new, &["type"]).is_empty() => keep(new, old, "type"),
        Kind::Service => service::prepare_for_update(new, old),
        _ => {}
    }
    if has_generation(resource.id) && generation_is_due(resource.id, new, old) {
        set_generation(
            new,
            int_at(old, &["metadata", "generation"]).unwrap_or_default() + 1,
        );
    }
}

pub(super) fn prepare_for_status_update(resource: &Resource, new: &mut Value, old: &Value) {
    keep_system_metadata(new, old);
    let status = new.get("status").cloned();
    let mut result = old.clone();
    if let Some(metadata) = new.get_mut("metadata").map(Value::take) {
        set(&mut result, "metadata", Some(metadata));
    }
    set(&mut result, "status", status);
    *new = result;
    match resource.id {
        Kind::Pod => {
            keep_in(new, old, "status", "qosClass");
            keep_in(new, old, "metadata", "ownerReferences");
        }
        Kind::Deployment | Kind::ReplicaSet => keep_in(new, old, "metadata", "labels"),
        _ => {}
    }
}

fn has_status(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Pod
            | Kind::Service
            | Kind::Node
            | Kind::Namespace
            | Kind::Deployment
            | Kind::ReplicaSet
    )
}

fn has_generation(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Pod | Kind::Deployment | Kind::ReplicaSet | Kind::EndpointSlice | Kind::NetworkPolicy
    )
}

fn generation_is_due(kind: Kind, new: &Value, old: &Value) -> bool {
    let differs = |path: &[&str]| !same(at(new, path), at(old, path));
    match kind {
        Kind::Deployment => differs(&["spec"]) || differs(&["metadata", "annotations"]),
        Kind::EndpointSlice => {
            differs(&["endpoints"]) || differs(&["ports"]) || differs(&["metadata", "labels"])
        }
        _ => differs(&["spec"]),
    }
}

/// Equal in meaning: an absent, a null and an empty list are the same.
pub(crate) fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    fn empty(value: Option<&Value>) -> bool {
        match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        }
    }
    match (a, b) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.iter().all(|(key, value)| same(Some(value), b.get(key)))
                && b.iter()
                    .all(|(key, value)| a.contains_key(key) || empty(Some(value)))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => (empty(a) && empty(b)) || a == b,
    }
}

fn keep_system_metadata(new: &mut Value, old: &Value) {
    for key in SYSTEM_METADATA {
        keep_in(new, old, "metadata", key);
    }
    if text(new, &["metadata", "uid"]).is_empty() {
        keep_in(new, old, "metadata", "uid");
    }
    if let Some(metadata) = ensure_map(new, &["metadata"]) {
        metadata.remove("managedFields");
    }
}

fn set_generation(object: &mut Value, generation: i64) {
    if let Some(metadata) = ensure_map(object, &["metadata"]) {
        metadata.insert("generation".to_owned(), generation.into());
    }
}

fn set(object: &mut Value, key: &str, value: Option<Value>) {
    if let Some(map) = object.as_object_mut() {
        match value {
            Some(value) => map.insert(key.to_owned(), value),
            None => map.remove(key),
        };
    }
}

fn keep(new: &mut Value, old: &Value, key: &str) {
    set(new, key, old.get(key).cloned());
}

pub(super) fn keep_in(new: &mut Value, old: &Value, parent: &str, key: &str) {
    let value = at(old, &[parent, key]).cloned();
    if value.is_none() && at(new, &[parent]).is_none() {
        return;
    }
    if let Some(map) = ensure_map(new, &[parent]) {
        match value {
            Some(value) => map.insert(key.to_owned(), value),
            None => map.remove(key),
        };
    }
}
