//! Server-side printing: `meta.k8s.io/v1` Table, with upstream's columns and cells.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::duration::age_of;
use crate::object::{at, str_at, text};
use crate::resource::{Kind, Resource};

mod cluster;
mod columns;
mod network;
mod pod;

/// What of each object goes into its row: the `includeObject` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; the empty string means the default.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        match text {
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "None" => Some(IncludeObject::None),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

/// The Table of some objects. `metadata` is that of the list (resourceVersion, continue, ...); a watch
/// sends its later tables without `columns`.
pub fn table<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    include: IncludeObject,
    columns: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| row(resource.id, object, include, now))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if columns { columns::definitions(resource.id) } else { Value::Null },
        "rows": rows,
    })
}

/// The Table of one `autoscaling/v1` Scale.
pub fn of_scale(scale: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let number = |part: &str| at(scale, &[part, "replicas"]).cloned().unwrap_or(0.into());
    let created = str_at(scale, &["metadata", "creationTimestamp"]);
    let cells = vec![
        text(scale, &["metadata", "name"]).into(),
        number("spec"),
        number("status"),
        age_of(created, now).into(),
    ];
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": text(scale, &["metadata", "resourceVersion"])},
        "columnDefinitions": columns::scale(),
        "rows": [with_object(cells, scale, include)],
    })
}

/// An object reduced to its metadata, as `meta.k8s.io/v1` has it.
pub fn partial_object(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn row(kind: Kind, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = with_object(cells(kind, object, now), object, include);
    if kind == Kind::Pod
        && let Some(condition) = pod::row_condition(object)
    {
        row["conditions"] = json!([condition]);
    }
    row
}

fn with_object(cells: Vec<Value>, object: &Value, include: IncludeObject) -> Value {
    let mut row = Map::new();
    row.insert("cells".to_owned(), Value::Array(cells));
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            row.insert("object".to_owned(), partial_object(object));
        }
        IncludeObject::Object => {
            row.insert("object".to_owned(), object.clone());
        }
    }
    Value::Object(row)
}

fn cells(kind: Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let name = Value::from(text(object, &["metadata", "name"]));
    let age = Value::from(age_of(
        str_at(object, &["metadata", "creationTimestamp"]),
        now,
    ));
    let count = |key: &str| match at(object, &[key]) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    };
    match kind {
        Kind::Pod => pod::cells(object, name, age, now),
        Kind::Service => network::service(object, name, age),
        Kind::Endpoints => network::endpoints(object, name, age),
        Kind::EndpointSlice => network::endpoint_slice(object, name, age),
        Kind::NetworkPolicy => network::policy(object, name, age),
        Kind::Node => cluster::node(object, name, age),
        Kind::Deployment => cluster::deployment(object, name, age),
        Kind::ReplicaSet => cluster::replica_set(object, name, age),
        Kind::CoreEvent => cluster::event(object, name, now),
        Kind::Event => {
            let mut stored = object.clone();
            if let Some(resource) = crate::resource::Registry::of(Kind::Event) {
                resource.to_storage(&mut stored);
            }
            cluster::event(&stored, name, now)
        }
        Kind::Namespace => vec![name, text(object, &["status", "phase"]).into(), age],
        Kind::ConfigMap => vec![name, (count("data") + count("binaryData")).into(), age],
        Kind::Secret => vec![
            name,
            text(object, &["type"]).into(),
            count("data").into(),
            age,
        ],
        Kind::ServiceAccount => vec![name, count("secrets").into(), age],
        Kind::Lease => vec![name, text(object, &["spec", "holderIdentity"]).into(), age],
    }
}

/// The text, or the placeholder if it is empty.
fn or<'a>(text: &'a str, placeholder: &'a str) -> &'a str {
    if text.is_empty() { placeholder } else { text }
}

#[cfg(test)]
mod tests;
