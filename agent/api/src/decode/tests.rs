//! Tests of decoding.

use serde_json::json;

use super::*;
use crate::resource::{Kind, Registry};

fn decode(kind: Kind, object: &Value, strictness: Strictness) -> Result<Decoded, DecodeError> {
    Registry::of(kind).unwrap().decode(object, strictness)
}

#[test]
fn unknown_fields_are_dropped_reported_or_refused() {
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicaz": 3, "selector": {}, "template": {"spec": {"containers": [
            {"name": "a", "image": "b", "portz": []}]}}},
    });
    let decoded = decode(Kind::Deployment, &object, Strictness::Warn).unwrap();
    let expected = [
        "unknown field \"spec.replicaz\"",
        "unknown field \"spec.template.spec.containers[0].portz\"",
    ];
    assert_eq!(decoded.warnings, expected);
    assert!(decoded.value["spec"].get("replicaz").is_none());
    assert!(
        decode(Kind::Deployment, &object, Strictness::Ignore)
            .unwrap()
            .warnings
            .is_empty()
    );
    let error = decode(Kind::Deployment, &object, Strictness::Strict).unwrap_err();
    assert_eq!(error.field(), "spec.replicaz");
    assert_eq!(
        error.to_message("v1", "Deployment"),
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replicaz\", unknown field \"spec.template.spec.containers[0].portz\""
    );
}

#[test]
fn wrong_types_name_their_field() {
    let cases = [
        (
            Kind::Deployment,
            json!({"spec": {"replicas": "three"}}),
            "spec.replicas",
        ),
        (
            Kind::Pod,
            json!({"spec": {"containers": [{"name": "a"}, {"name": 5}]}}),
            "spec.containers[1].name",
        ),
        (
            Kind::Pod,
            json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1x"}}}]}}),
            "spec.containers[0].resources.limits.cpu",
        ),
        (Kind::Pod, json!({"spec": []}), "spec"),
        (
            Kind::Pod,
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            "metadata.creationTimestamp",
        ),
        (
            Kind::Secret,
            json!({"data": {"a": "not base64!"}}),
            "data.a",
        ),
        (Kind::Pod, json!({"kind": 5}), "kind"),
        (Kind::Pod, json!([]), ""),
    ];
    for (kind, object, field) in cases {
        let error = decode(kind, &object, Strictness::Ignore).unwrap_err();
        assert_eq!(error.field(), field, "{error}");
        assert!(error.to_string().starts_with(field));
    }
}

#[test]
fn other_kinds_are_refused() {
    for object in [
        json!({"apiVersion": "v1", "kind": "Service"}),
        json!({"apiVersion": "v2", "kind": "Pod"}),
    ] {
        let error = decode(Kind::Pod, &object, Strictness::Ignore).unwrap_err();
        assert!(matches!(error, DecodeError::WrongKind { .. }), "{error}");
    }
    let bare = decode(Kind::Pod, &json!({}), Strictness::Strict)
        .unwrap()
        .value;
    assert_eq!(bare["kind"], "Pod");
    assert!(bare["metadata"].is_object());
}

#[test]
fn objects_come_out_in_canonical_form() {
    let object = json!({
        "metadata": {"name": "web", "creationTimestamp": null, "labels": null},
        "spec": {
            "nodeName": null,
            "containers": [{"name": "a", "image": null, "resources": {
                "limits": {"cpu": 1, "memory": "1024Mi"},
                "requests": {"cpu": 0.5, "memory": "0.5Gi"},
            }}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1000M"}}],
        },
    });
    let value = decode(Kind::Pod, &object, Strictness::Strict)
        .unwrap()
        .value;
    assert_eq!(value["metadata"], json!({"name": "web"}));
    assert!(value["spec"].get("nodeName").is_none());
    let resources = &value["spec"]["containers"][0]["resources"];
    assert_eq!(resources["limits"], json!({"cpu": "1", "memory": "1Gi"}));
    assert_eq!(
        resources["requests"],
        json!({"cpu": "500m", "memory": "512Mi"})
    );
    assert_eq!(value["spec"]["volumes"][0]["emptyDir"]["sizeLimit"], "1G");
}

#[test]
fn maps_with_free_keys_are_left_alone() {
    let object = json!({
        "metadata": {"labels": {"limits": "x"}, "annotations": {"sizeLimit": "much"}},
        "data": {"limits": "none", "divisor": "x"},
    });
    let value = decode(Kind::ConfigMap, &object, Strictness::Strict)
        .unwrap()
        .value;
    assert_eq!(value["data"], object["data"]);
    assert_eq!(value["metadata"], object["metadata"]);
}

#[test]
fn decoding_twice_changes_nothing() {
    let object = json!({
        "metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00+01:00"},
        "status": {"capacity": {"cpu": "2", "memory": "4039652Ki"}, "conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]},
    });
    let once = decode(Kind::Node, &object, Strictness::Strict)
        .unwrap()
        .value;
    assert_eq!(
        once["metadata"]["creationTimestamp"],
        "2025-12-31T23:00:00Z"
    );
    let twice = decode(Kind::Node, &once, Strictness::Strict).unwrap().value;
    assert_eq!(once, twice);
}

#[test]
fn strictness_reads_the_query_parameter() {
    assert_eq!(Strictness::parse(""), Some(Strictness::Warn));
    for strictness in [Strictness::Ignore, Strictness::Warn, Strictness::Strict] {
        assert_eq!(Strictness::parse(&strictness.to_string()), Some(strictness));
    }
    assert_eq!(Strictness::parse("strict"), None);
}
