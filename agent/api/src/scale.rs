//! `autoscaling/v1` Scale of Deployments and ReplicaSets.

use serde_json::{Map, Value, json};

use crate::object::{at, ensure_map, int_at, text};
use crate::selector::LabelSelector;
use crate::validation::FieldError;

/// The Scale of a Deployment or ReplicaSet.
pub fn from_object(object: &Value) -> Value {
    let mut metadata = Map::new();
    for key in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = at(object, &["metadata", key]) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let selector = at(object, &["spec", "selector"])
        .and_then(|s| LabelSelector::from_object(s).ok())
        .map(|s| s.to_string())
        .unwrap_or_default();
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": int_at(object, &["spec", "replicas"]).unwrap_or_default()},
        "status": {
            "replicas": int_at(object, &["status", "replicas"]).unwrap_or_default(),
            "selector": selector,
        },
    })
}

/// What is wrong with a Scale that a client sends.
pub fn validate(scale: &Value) -> Vec<FieldError> {
    match int_at(scale, &["spec", "replicas"]) {
        Some(replicas) if replicas < 0 => vec![FieldError::invalid(
            "spec.replicas",
            replicas,
            "must be greater than or equal to 0",
        )],
        _ => Vec::new(),
    }
}

/// Writes the wanted replicas of a Scale into its Deployment or ReplicaSet. A `resourceVersion` of the Scale
/// is carried over, so that the update is refused if it is not the latest.
pub fn apply(scale: &Value, object: &mut Value) {
    let replicas = int_at(scale, &["spec", "replicas"]).unwrap_or_default();
    if let Some(spec) = ensure_map(object, &["spec"]) {
        spec.insert("replicas".to_owned(), replicas.into());
    }
    let version = text(scale, &["metadata", "resourceVersion"]);
    if !version.is_empty()
        && let Some(metadata) = ensure_map(object, &["metadata"])
    {
        metadata.insert("resourceVersion".to_owned(), version.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "dev", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}],
            }},
            "status": {"replicas": 2},
        })
    }

    #[test]
    fn scale_of_a_deployment_has_its_selector_as_text() {
        let expected = json!({
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": "web", "namespace": "dev", "resourceVersion": "7"},
            "spec": {"replicas": 3},
            "status": {"replicas": 2, "selector": "app=web,tier in (a,b)"},
        });
        assert_eq!(from_object(&deployment()), expected);
    }

    #[test]
    fn applying_a_scale_changes_replicas_only() {
        let mut object = deployment();
        apply(&json!({"spec": {"replicas": 5}}), &mut object);
        let mut expected = deployment();
        expected["spec"]["replicas"] = 5.into();
        assert_eq!(object, expected);
        apply(
            &json!({"metadata": {"resourceVersion": "6"}, "spec": {}}),
            &mut object,
        );
        assert_eq!(object["spec"]["replicas"], 0);
        assert_eq!(object["metadata"]["resourceVersion"], "6");
    }

    #[test]
    fn negative_replicas_are_refused() {
        let errors = validate(&json!({"spec": {"replicas": -1}}));
        assert_eq!(
            errors[0].to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        assert!(validate(&json!({"spec": {}})).is_empty());
    }
}
