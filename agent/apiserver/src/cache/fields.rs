//! What field selectors may ask of each kind, kept as text beside the cached object.

use serde_json::{Map, Value};
use skiff_api::resource::Kind;

use super::resource::FieldsOf;

/// A field as the cache keeps it.
pub(crate) type Field = (&'static str, Box<str>);

const POD: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source.component",
    "type",
];

/// The function that reads the selectable fields of a stored object of that kind.
pub(super) fn extractor(kind: Kind) -> FieldsOf {
    match kind {
        Kind::Pod => |value| extract(value, POD),
        Kind::Node => |value| extract(value, &["spec.unschedulable"]),
        Kind::Namespace => |value| extract(value, &["status.phase"]),
        Kind::Secret => |value| extract(value, &["type"]),
        Kind::Service => |value| extract(value, &["spec.clusterIP", "spec.type"]),
        Kind::ReplicaSet => |value| extract(value, &["status.replicas"]),
        Kind::CoreEvent | Kind::Event => |value| extract(value, EVENT),
        _ => |_| Box::default(),
    }
}

fn extract(value: &[u8], paths: &'static [&'static str]) -> Box<[Field]> {
    let Ok(value) = serde_json::from_slice::<Value>(value) else {
        return Box::default();
    };
    let text = |path: &str| {
        let found = path.split('.').try_fold(&value, |v, key| v.get(key))?;
        match found {
            Value::String(text) if !text.is_empty() => Some(Box::from(text.as_str())),
            Value::Bool(_) | Value::Number(_) => Some(found.to_string().into_boxed_str()),
            _ => None,
        }
    };
    paths
        .iter()
        .filter_map(|path| Some((*path, text(path)?)))
        .collect()
}

/// An object with nothing but what field selectors ask for.
pub(crate) fn sparse(key: &str, fields: &[Field]) -> Value {
    let mut root = Map::new();
    let (namespace, name) = key.rsplit_once('/').unwrap_or(("", key));
    insert(&mut root, "metadata.name", name);
    insert(&mut root, "metadata.namespace", namespace);
    for (path, value) in fields {
        insert(&mut root, path, value);
    }
    Value::Object(root)
}

fn insert(root: &mut Map<String, Value>, path: &str, value: &str) {
    let mut map = root;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        if keys.peek().is_none() {
            map.insert(key.to_owned(), value.into());
            return;
        }
        let next = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
        match next {
            Value::Object(next) => map = next,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_fields_are_found_again() {
        let pod = br#"{"spec":{"nodeName":"n1","hostNetwork":true},"status":{"phase":"Running"}}"#;
        let fields = extractor(Kind::Pod)(pod);
        let object = sparse("dev/web", &fields);
        assert_eq!(object["metadata"]["namespace"], "dev");
        assert_eq!(object["metadata"]["name"], "web");
        assert_eq!(object["spec"]["nodeName"], "n1");
        assert_eq!(object["spec"]["hostNetwork"], "true");
        assert_eq!(object["status"]["phase"], "Running");
    }
}
