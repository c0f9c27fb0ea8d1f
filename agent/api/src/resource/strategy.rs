//! What create, update and status update may change: upstream's registry strategies.

use serde_json::{Map, Value};

use super::{Kind, Resource};
use crate::object::{at, ensure_map, int_at, items, text};
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
        drop_fields_of_other_types(object);
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
        Kind::Service => prepare_service_update(new, old),
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

fn keep_in(new: &mut Value, old: &Value, parent: &str, key: &str) {
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

/// Whether a Service of this type has a cluster IP / node ports.
fn service_type_has(service: &Value) -> (bool, bool) {
    match text(service, &["spec", "type"]) {
        "ExternalName" => (false, false),
        "NodePort" => (true, true),
        "LoadBalancer" => {
            let allocate = at(service, &["spec", "allocateLoadBalancerNodePorts"]);
            (true, allocate.and_then(Value::as_bool).unwrap_or(true))
        }
        _ => (true, false),
    }
}

/// An update that leaves out allocated values keeps them; one that changes the type loses those that the
/// new type does not have.
fn prepare_service_update(new: &mut Value, old: &Value) {
    let (needs_ip, needs_ports) = service_type_has(new);
    let (had_ip, had_ports) = service_type_has(old);
    if needs_ip && had_ip {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let given = match at(new, &["spec", key]) {
                None => false,
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Array(list)) => !list.is_empty(),
                Some(_) => true,
            };
            if !given {
                keep_in(new, old, "spec", key);
            }
        }
    }
    if needs_ports && had_ports {
        keep_node_ports(new, old);
        let both_local = [&*new, old]
            .into_iter()
            .all(|s| text(s, &["spec", "externalTrafficPolicy"]) == "Local");
        if both_local && int_at(new, &["spec", "healthCheckNodePort"]).unwrap_or_default() == 0 {
            keep_in(new, old, "spec", "healthCheckNodePort");
        }
    }
    if !needs_ip && had_ip {
        for key in ["clusterIP", "clusterIPs"] {
            if at(new, &["spec", key]) == at(old, &["spec", key]) {
                remove_in_spec(new, key);
            }
        }
    }
    if !needs_ports && had_ports {
        drop_unchanged_node_ports(new, old);
    }
    drop_fields_of_other_types(new);
}

fn remove_in_spec(service: &mut Value, key: &str) {
    if let Some(spec) = ensure_map(service, &["spec"]) {
        spec.remove(key);
    }
}

fn port_identity(port: &Value) -> (i64, &str) {
    (
        int_at(port, &["port"]).unwrap_or_default(),
        text(port, &["protocol"]),
    )
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// A port without a node port keeps the one that the same port had, unless another one asks for it.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let taken: Vec<(i64, String)> = items(new, &["spec", "ports"])
        .iter()
        .filter_map(|p| Some((int_at(p, &["nodePort"])?, text(p, &["protocol"]).to_owned())))
        .collect();
    for port in ports_mut(new) {
        if int_at(port, &["nodePort"]).unwrap_or_default() != 0 {
            continue;
        }
        let before = items(old, &["spec", "ports"])
            .iter()
            .find(|p| port_identity(p) == port_identity(port))
            .and_then(|p| int_at(p, &["nodePort"]));
        let (Some(node_port), Some(map)) = (before, port.as_object_mut()) else {
            continue;
        };
        let protocol = map
            .get("protocol")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !taken.iter().any(|(n, p)| *n == node_port && p == protocol) {
            map.insert("nodePort".to_owned(), node_port.into());
        }
    }
}

fn drop_unchanged_node_ports(new: &mut Value, old: &Value) {
    let before: Vec<i64> = items(old, &["spec", "ports"])
        .iter()
        .filter_map(|p| int_at(p, &["nodePort"]))
        .collect();
    for port in ports_mut(new) {
        let unchanged = int_at(port, &["nodePort"]).is_some_and(|n| before.contains(&n));
        if let (true, Some(map)) = (unchanged, port.as_object_mut()) {
            map.remove("nodePort");
        }
    }
}

/// Fields that say nothing for the Service's type, where upstream drops them silently.
fn drop_fields_of_other_types(service: &mut Value) {
    let kind = text(service, &["spec", "type"]).to_owned();
    if kind != "LoadBalancer" {
        remove_in_spec(service, "allocateLoadBalancerNodePorts");
        remove_in_spec(service, "loadBalancerClass");
    }
    if kind == "ExternalName" {
        for key in ["internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy"] {
            remove_in_spec(service, key);
        }
    } else {
        remove_in_spec(service, "externalName");
    }
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || !items(service, &["spec", "externalIPs"]).is_empty();
    if !external {
        remove_in_spec(service, "externalTrafficPolicy");
    }
    let local = text(service, &["spec", "externalTrafficPolicy"]) == "Local";
    if !(kind == "LoadBalancer" && local) {
        remove_in_spec(service, "healthCheckNodePort");
    }
}
