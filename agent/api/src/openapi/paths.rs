//! Paths and operations of a resource.

use serde_json::{Map, Value, json};

use super::schemas::{self, reference};
use crate::patch::PatchType;
use crate::resource::Resource;

/// Adds the paths of a resource, of its status and of its scale.
pub(super) fn of(resource: &Resource, all: &mut Map<String, Value>) {
    let prefix = super::relative_path(resource.group, resource.version);
    let plural = resource.plural;
    let own = gvk(resource.group, resource.version, resource.kind);
    let object = schemas::name_of(resource.id);
    let list = schemas::list_name_of(resource);
    let collection = if resource.namespaced {
        all.insert(
            format!("/{prefix}/{plural}"),
            json!({"get": operation("list", &own, &list, &[])}),
        );
        format!("/{prefix}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("/{prefix}/{plural}")
    };
    all.insert(
        collection.clone(),
        json!({
            "parameters": path_parameters(resource, false),
            "get": operation("list", &own, &list, LIST_PARAMETERS),
            "post": with_body(operation("post", &own, object, WRITE_PARAMETERS), object),
            "delete": operation("deletecollection", &own, schemas::STATUS, LIST_PARAMETERS),
        }),
    );
    let item = format!("{collection}/{{name}}");
    let mut operations = item_operations(resource, &own, object);
    if let Some(map) = operations.as_object_mut() {
        map.insert(
            "delete".to_owned(),
            operation("delete", &own, schemas::STATUS, DELETE_PARAMETERS),
        );
    }
    all.insert(item.clone(), operations);
    if resource.subresource("status").is_some() {
        all.insert(
            format!("{item}/status"),
            item_operations(resource, &own, object),
        );
    }
    if resource.subresource("scale").is_some() {
        let scale = gvk("autoscaling", "v1", "Scale");
        all.insert(
            format!("{item}/scale"),
            item_operations(resource, &scale, schemas::SCALE),
        );
    }
}

const LIST_PARAMETERS: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETE_PARAMETERS: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "orphanDependents",
    "propagationPolicy",
];

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn path_parameters(resource: &Resource, name: bool) -> Value {
    let mut parameters = Vec::new();
    let mut add = |parameter: &str, description: &str| {
        parameters.push(json!({
            "name": parameter,
            "in": "path",
            "required": true,
            "description": description,
            "schema": {"type": "string", "uniqueItems": true},
        }));
    };
    if name {
        add("name", &format!("name of the {}", resource.kind));
    }
    if resource.namespaced {
        add(
            "namespace",
            "object name and auth scope, such as for teams and projects",
        );
    }
    Value::Array(parameters)
}

fn item_operations(resource: &Resource, gvk: &Value, schema: &str) -> Value {
    let mut patch = operation("patch", gvk, schema, PATCH_PARAMETERS);
    if let Some(map) = patch.as_object_mut() {
        let content: Map<String, Value> = PatchType::MEDIA_TYPES
            .iter()
            .map(|media| {
                (
                    (*media).to_owned(),
                    json!({"schema": reference(schemas::PATCH)}),
                )
            })
            .collect();
        map.insert(
            "requestBody".to_owned(),
            json!({"required": true, "content": content}),
        );
    }
    json!({
        "parameters": path_parameters(resource, true),
        "get": operation("get", gvk, schema, &[]),
        "put": with_body(operation("put", gvk, schema, WRITE_PARAMETERS), schema),
        "patch": patch,
    })
}

fn with_body(mut operation: Value, schema: &str) -> Value {
    if let Some(map) = operation.as_object_mut() {
        let content = json!({"*/*": {"schema": reference(schema)}});
        map.insert(
            "requestBody".to_owned(),
            json!({"required": true, "content": content}),
        );
    }
    operation
}

fn operation(action: &str, gvk: &Value, schema: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters.iter().map(|p| query_parameter(p)).collect();
    json!({
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "OK",
                "content": {"application/json": {"schema": reference(schema)}},
            },
            "401": {"description": "Unauthorized"},
        },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    })
}

fn query_parameter(name: &str) -> Value {
    let kind = match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "allowWatchBookmarks" | "sendInitialEvents" | "watch" | "force" | "orphanDependents" => {
            "boolean"
        }
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}
