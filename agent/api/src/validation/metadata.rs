//! Rules for `metadata`.

use serde_json::Value;

use super::{Check, Errors, FieldError, complain, immutable, labels, names};
use crate::object::{at, entries, items, text};
use crate::resource::{Kind, Resource};

const MAX_ANNOTATIONS: usize = 256 * 1024;

pub(super) fn validate(resource: &Resource, object: &Value, errors: &mut Errors) {
    let name = text(object, &["metadata", "name"]);
    let generate_name = text(object, &["metadata", "generateName"]);
    if !generate_name.is_empty() {
        // A trailing dash is fine in a prefix: what is appended makes it valid.
        let masked = match generate_name.strip_suffix('-') {
            Some(stem) if !stem.is_empty() => format!("{stem}a"),
            _ => generate_name.to_owned(),
        };
        complain(
            "metadata.generateName",
            generate_name,
            name_rule(resource.id)(&masked),
            errors,
        );
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        complain("metadata.name", name, name_rule(resource.id)(name), errors);
    }
    validate_namespace(resource, text(object, &["metadata", "namespace"]), errors);
    labels("metadata.labels", object, &["metadata", "labels"], errors);
    validate_annotations(
        "metadata.annotations",
        object,
        &["metadata", "annotations"],
        errors,
    );
    validate_owners(object, errors);
    for (index, finalizer) in items(object, &["metadata", "finalizers"])
        .iter()
        .enumerate()
    {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let field = format!("metadata.finalizers[{index}]");
        complain(&field, finalizer, names::qualified_name(finalizer), errors);
        let standard = ["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer);
        if !standard && !finalizer.contains('/') {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&field, finalizer, why));
        }
    }
}

fn name_rule(kind: Kind) -> Check {
    match kind {
        Kind::Namespace => names::dns1123_label,
        Kind::Service => names::dns1035_label,
        Kind::CoreEvent | Kind::Event => names::path_segment,
        _ => names::dns1123_subdomain,
    }
}

fn validate_namespace(resource: &Resource, namespace: &str, errors: &mut Errors) {
    let field = "metadata.namespace";
    match (resource.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(field, "")),
        (true, false) => complain(field, namespace, names::dns1123_label(namespace), errors),
        (false, false) => errors.push(FieldError::forbidden(field, "not allowed on this type")),
        (false, true) => {}
    }
}

pub(super) fn validate_annotations(
    field: &str,
    object: &Value,
    path: &[&str],
    errors: &mut Errors,
) {
    let mut size = 0;
    for (key, value) in entries(object, path) {
        complain(
            field,
            key,
            names::qualified_name(&key.to_lowercase()),
            errors,
        );
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(field, MAX_ANNOTATIONS));
    }
}

fn validate_owners(object: &Value, errors: &mut Errors) {
    let field = "metadata.ownerReferences";
    let mut controller: Option<&str> = None;
    for owner in items(object, &["metadata", "ownerReferences"]) {
        let name = text(owner, &["name"]);
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, &[key]).is_empty() {
                errors.push(FieldError::invalid(
                    format_args!("{field}.{key}"),
                    "",
                    detail,
                ));
            }
        }
        if at(owner, &["controller"]) == Some(&Value::Bool(true)) {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                );
                let all = at(object, &["metadata", "ownerReferences"]).cloned();
                errors.push(FieldError::invalid(field, all.unwrap_or_default(), detail));
            }
            controller = Some(name);
        }
    }
}

pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    for key in ["name", "namespace", "uid"] {
        immutable(
            &format!("metadata.{key}"),
            new,
            old,
            &["metadata", key],
            errors,
        );
    }
    if at(old, &["metadata", "deletionTimestamp"]).is_some() {
        let before = items(old, &["metadata", "finalizers"]);
        let added: Vec<&Value> = items(new, &["metadata", "finalizers"])
            .iter()
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| f.to_string()).collect();
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
}
