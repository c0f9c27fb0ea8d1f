//! Schemas of the served types, from k8s-openapi, brought to the form that upstream publishes.

use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::patch::schema::{BY_OPENAPI_NAME, Field};
use crate::resource::{Kind, Resource};

const PATH: &str = "#/components/schemas/";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("{PATH}{name}")})
}

/// Upstream's name of a kind's schema.
pub(super) fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Pod => "io.k8s.api.core.v1.Pod",
        Kind::Service => "io.k8s.api.core.v1.Service",
        Kind::Endpoints => "io.k8s.api.core.v1.Endpoints",
        Kind::Node => "io.k8s.api.core.v1.Node",
        Kind::Namespace => "io.k8s.api.core.v1.Namespace",
        Kind::ConfigMap => "io.k8s.api.core.v1.ConfigMap",
        Kind::Secret => "io.k8s.api.core.v1.Secret",
        Kind::ServiceAccount => "io.k8s.api.core.v1.ServiceAccount",
        Kind::CoreEvent => "io.k8s.api.core.v1.Event",
        Kind::Event => "io.k8s.api.events.v1.Event",
        Kind::Deployment => "io.k8s.api.apps.v1.Deployment",
        Kind::ReplicaSet => "io.k8s.api.apps.v1.ReplicaSet",
        Kind::EndpointSlice => "io.k8s.api.discovery.v1.EndpointSlice",
        Kind::Lease => "io.k8s.api.coordination.v1.Lease",
        Kind::NetworkPolicy => "io.k8s.api.networking.v1.NetworkPolicy",
    }
}

pub(super) fn list_name_of(resource: &Resource) -> String {
    format!("{}List", name_of(resource.id))
}

fn generate(kind: Kind, generator: &mut SchemaGenerator) {
    // The reference that it returns is of no use; the definition stays in the generator.
    let _reference = match kind {
        Kind::Pod => generator.subschema_for::<api::core::v1::Pod>(),
        Kind::Service => generator.subschema_for::<api::core::v1::Service>(),
        Kind::Endpoints => generator.subschema_for::<api::core::v1::Endpoints>(),
        Kind::Node => generator.subschema_for::<api::core::v1::Node>(),
        Kind::Namespace => generator.subschema_for::<api::core::v1::Namespace>(),
        Kind::ConfigMap => generator.subschema_for::<api::core::v1::ConfigMap>(),
        Kind::Secret => generator.subschema_for::<api::core::v1::Secret>(),
        Kind::ServiceAccount => generator.subschema_for::<api::core::v1::ServiceAccount>(),
        Kind::CoreEvent => generator.subschema_for::<api::core::v1::Event>(),
        Kind::Event => generator.subschema_for::<api::events::v1::Event>(),
        Kind::Deployment => generator.subschema_for::<api::apps::v1::Deployment>(),
        Kind::ReplicaSet => generator.subschema_for::<api::apps::v1::ReplicaSet>(),
        Kind::EndpointSlice => generator.subschema_for::<api::discovery::v1::EndpointSlice>(),
        Kind::Lease => generator.subschema_for::<api::coordination::v1::Lease>(),
        Kind::NetworkPolicy => generator.subschema_for::<api::networking::v1::NetworkPolicy>(),
    };
}

/// All schemas that some resources need.
pub(super) fn of<'a>(resources: impl Iterator<Item = &'a Resource>) -> Map<String, Value> {
    let settings = SchemaSettings::draft07().with(|s| {
        s.definitions_path = "/components/schemas".into();
        s.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    let mut kinds: Vec<(String, &str, &str, &str)> = Vec::new();
    let mut lists = Map::new();
    for resource in resources {
        generate(resource.id, &mut generator);
        let object = name_of(resource.id);
        kinds.push((
            object.to_owned(),
            resource.group,
            resource.version,
            resource.kind,
        ));
        kinds.push((
            list_name_of(resource),
            resource.group,
            resource.version,
            resource.list_kind,
        ));
        lists.insert(list_name_of(resource), list(resource.list_kind, object));
        if resource.subresource("scale").is_some() {
            let _reference = generator.subschema_for::<api::autoscaling::v1::Scale>();
            kinds.push((SCALE.to_owned(), "autoscaling", "v1", "Scale"));
        }
    }
    let _references = [
        generator.subschema_for::<meta::Status>(),
        generator.subschema_for::<meta::ListMeta>(),
    ];
    let mut all = generator.take_definitions(false);
    all.append(&mut lists);
    for schema in all.values_mut() {
        upstream_form(schema);
    }
    all.insert(PATCH.to_owned(), json!({"description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.", "type": "object"}));
    for (name, group, version, kind) in kinds {
        if let Some(schema) = all.get_mut(&name).and_then(Value::as_object_mut) {
            let gvk = json!([{"group": group, "version": version, "kind": kind}]);
            schema.insert("x-kubernetes-group-version-kind".to_owned(), gvk);
        }
    }
    patch_extensions(&mut all);
    all
}

fn list(kind: &str, object: &str) -> Value {
    json!({
        "description": format!("{kind} is a list of objects."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."},
            "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents."},
            "metadata": {"$ref": format!("{PATH}{LIST_META}"), "description": "Standard list metadata."},
            "items": {"type": "array", "items": reference(object), "description": "The objects."},
        },
    })
}

/// References with something beside them become `allOf`, as OpenAPI 3.0 demands; the
/// structural-schema marks that upstream has only in custom resources go.
fn upstream_form(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.len() > 1
                && let Some(target) = map.get("$ref").filter(|target| target.is_string()).cloned()
            {
                map.remove("$ref");
                map.insert("allOf".to_owned(), json!([{"$ref": target}]));
            }
            if map.remove("x-kubernetes-int-or-string").is_some() {
                map.insert("format".to_owned(), "int-or-string".into());
                map.insert(
                    "oneOf".to_owned(),
                    json!([{"type": "integer"}, {"type": "string"}]),
                );
            }
            let metadata_is_optional = map.contains_key("properties");
            if metadata_is_optional && let Some(Value::Array(required)) = map.get_mut("required") {
                required.retain(|name| name != "metadata");
                if required.is_empty() {
                    map.remove("required");
                }
            }
            map.values_mut().for_each(upstream_form);
        }
        Value::Array(list) => list.iter_mut().for_each(upstream_form),
        _ => {}
    }
}

fn patch_extensions(all: &mut Map<String, Value>) {
    for (name, schema) in BY_OPENAPI_NAME {
        for (field, how) in schema.fields {
            let property = all
                .get_mut(*name)
                .and_then(|s| s.get_mut("properties")?.get_mut(field));
            let Some(property) = property.and_then(Value::as_object_mut) else {
                continue;
            };
            let (strategy, key) = match how {
                Field::Object(_) => continue,
                Field::RetainKeys(_) => ("retainKeys", None),
                Field::Merge { key, .. } => ("merge", Some(*key)),
                Field::MergeRetainKeys { key, .. } => ("merge,retainKeys", Some(*key)),
                Field::Set => ("merge", None),
            };
            property.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
            if let Some(key) = key {
                property.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
            }
        }
    }
}
