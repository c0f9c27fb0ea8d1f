//! Rules for environment variables.

use serde_json::Value;

use super::super::{Errors, FieldError, complain, names};
use crate::object::{at, entries, items, text};

const SOURCES: [&str; 5] = [
    "fieldRef",
    "resourceFieldRef",
    "configMapKeyRef",
    "secretKeyRef",
    "fileKeyRef",
];
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn validate(field: &str, container: &Value, errors: &mut Errors) {
    for (index, variable) in items(container, &["env"]).iter().enumerate() {
        let field = format!("{field}.env[{index}]");
        let name = text(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format_args!("{field}.name"), ""));
        } else {
            complain(
                &format!("{field}.name"),
                name,
                names::env_var_name(name),
                errors,
            );
        }
        if let Some(source) = at(variable, &["valueFrom"]) {
            let field = format!("{field}.valueFrom");
            if !text(variable, &["value"]).is_empty() {
                let detail = "may not be specified when `value` is not empty";
                errors.push(FieldError::invalid(&field, "", detail));
            }
            validate_source(&field, source, errors);
        }
    }
    for (index, source) in items(container, &["envFrom"]).iter().enumerate() {
        validate_from(&format!("{field}.envFrom[{index}]"), source, errors);
    }
}

fn validate_source(field: &str, source: &Value, errors: &mut Errors) {
    let given = entries(source, &[])
        .filter(|(key, _)| SOURCES.contains(key))
        .count();
    if given == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.push(FieldError::invalid(field, "", detail));
    } else if given > 1 {
        let detail = "may not have more than one field specified at a time";
        errors.push(FieldError::invalid(field, "", detail));
    }
    if let Some(reference) = at(source, &["fieldRef"]) {
        field_reference(&format!("{field}.fieldRef"), reference, &FIELDS, errors);
    }
    if let Some(reference) = at(source, &["resourceFieldRef"]) {
        resource_reference(&format!("{field}.resourceFieldRef"), reference, errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        let Some(reference) = at(source, &[key]) else {
            continue;
        };
        let field = format!("{field}.{key}");
        if text(reference, &["name"]).is_empty() {
            errors.push(FieldError::required(format_args!("{field}.name"), ""));
        }
        let entry = text(reference, &["key"]);
        if entry.is_empty() {
            errors.push(FieldError::required(format_args!("{field}.key"), ""));
        } else {
            complain(
                &format!("{field}.key"),
                entry,
                names::config_map_key(entry),
                errors,
            );
        }
    }
}

/// A reference to a field of the Pod. `supported` are those without a subscript.
pub(super) fn field_reference(
    field: &str,
    reference: &Value,
    supported: &[&str],
    errors: &mut Errors,
) {
    let path = text(reference, &["fieldPath"]);
    let path_field = format!("{field}.fieldPath");
    if path.is_empty() {
        errors.push(FieldError::required(&path_field, ""));
        return;
    }
    let subscript = path
        .split_once("['")
        .and_then(|(map, rest)| Some((map, rest.strip_suffix("']")?)));
    match subscript {
        Some(("metadata.labels" | "metadata.annotations", key)) => {
            complain(
                &path_field,
                path,
                names::qualified_name(&key.to_lowercase()),
                errors,
            );
        }
        Some((other, _)) => {
            let detail = format!("does not support subscript: {other}");
            errors.push(FieldError::invalid(&path_field, path, detail));
        }
        None if supported.contains(&path) => {}
        None if matches!(path, "metadata.labels" | "metadata.annotations") => {
            let mut names = supported.to_vec();
            names.sort_unstable();
            errors.push(FieldError::not_supported(&path_field, path, &names));
        }
        None => {
            let detail = format!("error converting fieldPath: field label not supported: {path}");
            errors.push(FieldError::invalid(&path_field, path, detail));
        }
    }
}

pub(super) fn resource_reference(field: &str, reference: &Value, errors: &mut Errors) {
    let resource = text(reference, &["resource"]);
    let field = format!("{field}.resource");
    if resource.is_empty() {
        errors.push(FieldError::required(&field, ""));
    } else if !RESOURCES.contains(&resource)
        && !resource.starts_with("limits.hugepages-")
        && !resource.starts_with("requests.hugepages-")
    {
        errors.push(FieldError::not_supported(&field, resource, &RESOURCES));
    }
}

fn validate_from(field: &str, source: &Value, errors: &mut Errors) {
    let prefix = text(source, &["prefix"]);
    if !prefix.is_empty() {
        complain(
            &format!("{field}.prefix"),
            prefix,
            names::env_var_name(prefix),
            errors,
        );
    }
    let mut given = 0;
    for key in ["configMapRef", "secretRef"] {
        if let Some(reference) = at(source, &[key]) {
            given += 1;
            if text(reference, &["name"]).is_empty() {
                errors.push(FieldError::required(format_args!("{field}.{key}.name"), ""));
            }
        }
    }
    if given == 0 {
        let detail = "must specify one of: `configMapRef` or `secretRef`";
        errors.push(FieldError::invalid(field, "", detail));
    } else if given > 1 {
        let detail = "may not have more than one field specified at a time";
        errors.push(FieldError::invalid(field, "", detail));
    }
}
