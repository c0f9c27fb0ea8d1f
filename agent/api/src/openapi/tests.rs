//! Tests of the documents.

use super::*;

fn document(group: &str) -> Value {
    serde_json::from_slice(&v3_document(group, "v1").unwrap()).unwrap()
}

#[test]
fn index_names_every_served_document() {
    let index: Value = serde_json::from_slice(&v3_index()).unwrap();
    let paths = index["paths"].as_object().unwrap();
    assert_eq!(
        paths["apis/apps/v1"]["serverRelativeURL"],
        "/openapi/v3/apis/apps/v1"
    );
    assert_eq!(paths.len(), Registry::group_versions().count());
    for (group, version) in Registry::group_versions() {
        assert!(v3_document(group, version).is_some(), "{group}/{version}");
    }
    assert!(v3_document("batch", "v1").is_none());
}

#[test]
fn every_reference_has_its_schema() {
    fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                out.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, out));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, out)),
            _ => {}
        }
    }
    for (group, _) in Registry::group_versions() {
        let document = document(group);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{group}: {reference}");
        }
    }
}

#[test]
fn every_kind_has_a_patch_operation_with_field_validation() {
    for resource in Registry::iter() {
        let document = document(resource.group);
        let gvk = json!({"group": resource.group, "version": "v1", "kind": resource.kind});
        let patch = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .filter_map(|path| path.get("patch"))
            .find(|op| op["x-kubernetes-group-version-kind"] == gvk)
            .unwrap();
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(
            parameters
                .iter()
                .any(|p| p["name"] == "fieldValidation" && p["in"] == "query"),
            "{}",
            resource.kind
        );
        let content = patch["requestBody"]["content"].as_object().unwrap();
        assert!(content.contains_key("application/strategic-merge-patch+json"));
        let schema = &document["components"]["schemas"][schemas::name_of(resource.id)];
        assert_eq!(schema["x-kubernetes-group-version-kind"], json!([gvk]));
        assert!(schema["properties"]["metadata"].is_object());
        assert!(
            schema
                .get("required")
                .is_none_or(|r| !r.to_string().contains("metadata"))
        );
    }
}

#[test]
fn merge_keys_are_published() {
    let core = document("");
    let at = |schema: &str, field: &str| {
        core["components"]["schemas"][schema]["properties"][field].clone()
    };
    let env = at("io.k8s.api.core.v1.Container", "env");
    assert_eq!(env["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(env["x-kubernetes-patch-strategy"], "merge");
    let volumes = at("io.k8s.api.core.v1.PodSpec", "volumes");
    assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert!(
        at("io.k8s.api.core.v1.PodSpec", "tolerations")["x-kubernetes-patch-strategy"].is_null()
    );
    let strategy = &document("apps")["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]
        ["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(
        strategy["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"
    );
}

#[test]
fn every_entry_of_the_merge_table_is_a_property() {
    let documents = [document(""), document("apps")];
    for (name, schema) in crate::patch::schema::BY_OPENAPI_NAME {
        for (field, _) in schema.fields {
            let known = documents
                .iter()
                .any(|d| d["components"]["schemas"][name]["properties"][field].is_object());
            assert!(known, "{name}.{field}");
        }
    }
}

#[test]
fn v2_is_valid_and_empty() {
    let document: Value = serde_json::from_slice(&v2_document()).unwrap();
    assert_eq!(document["swagger"], "2.0");
    assert_eq!(
        v2_document_protobuf(),
        b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.36.0\x42\x00"
    );
}
