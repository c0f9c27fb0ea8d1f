//! Rules for ConfigMaps, Secrets, Events and Leases.

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::Value;

use super::{Errors, FieldError, complain, immutable, names, not_negative};
use crate::object::{at, entries, int_at, text};

/// Of all values together, as etcd's request limit has it upstream.
const MAX_DATA: usize = 1024 * 1024;

pub(super) fn validate_config_map(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(object, &["data"]) {
        let field = format!("data[{key}]");
        complain(&field, key, names::config_map_key(key), errors);
        if at(object, &["binaryData", key]).is_some() {
            errors.push(FieldError::invalid(
                &field,
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().unwrap_or_default().len();
    }
    for (key, value) in entries(object, &["binaryData"]) {
        complain(
            &format!("binaryData[{key}]"),
            key,
            names::config_map_key(key),
            errors,
        );
        size += decoded_length(value);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("", MAX_DATA));
    }
}

fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    text.len() * 3 / 4
}

fn is_immutable(object: &Value) -> bool {
    at(object, &["immutable"]) == Some(&Value::Bool(true))
}

fn immutable_data(fields: &[&str], new: &Value, old: &Value, errors: &mut Errors) {
    if !is_immutable(old) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if !is_immutable(new) {
        errors.push(FieldError::forbidden("immutable", why));
    }
    for field in fields {
        if at(new, &[field]) != at(old, &[field]) {
            errors.push(FieldError::forbidden(field, why));
        }
    }
}

pub(super) fn validate_config_map_update(new: &Value, old: &Value, errors: &mut Errors) {
    immutable_data(&["data", "binaryData"], new, old, errors);
}

pub(super) fn validate_secret(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(object, &["data"]) {
        complain(
            &format!("data[{key}]"),
            key,
            names::config_map_key(key),
            errors,
        );
        size += decoded_length(value);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
    let has = |key: &str| at(object, &["data", key]).is_some();
    let mut require = |key: &str| {
        if !has(key) {
            errors.push(FieldError::required(format_args!("data[{key}]"), ""));
        }
    };
    match text(object, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if text(object, &["metadata", "annotations", annotation]).is_empty() {
                let field = format!("metadata.annotations[{annotation}]");
                errors.push(FieldError::required(field, ""));
            }
        }
        "kubernetes.io/dockercfg" => json_data(object, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => json_data(object, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth" => require("ssh-privatekey"),
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
}

fn json_data(object: &Value, key: &str, errors: &mut Errors) {
    let field = format!("data[{key}]");
    let Some(value) = at(object, &["data", key]) else {
        errors.push(FieldError::required(field, ""));
        return;
    };
    let bytes = ByteString::deserialize(value)
        .map(|b| b.0)
        .unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<Value>(&bytes) {
        errors.push(FieldError::invalid(
            field,
            "<secret contents redacted>",
            error.to_string(),
        ));
    }
}

pub(super) fn validate_secret_update(new: &Value, old: &Value, errors: &mut Errors) {
    immutable("type", new, old, &["type"], errors);
    immutable_data(&["data"], new, old, errors);
}

/// The event lives where its object lives; those of cluster-scoped objects live in `default`.
pub(super) fn validate_event(object: &Value, reference: &str, errors: &mut Errors) {
    let namespace = text(object, &["metadata", "namespace"]);
    let about = text(object, &[reference, "namespace"]);
    let fits = if about.is_empty() {
        matches!(namespace, "" | "default" | "kube-system")
    } else {
        about == namespace
    };
    if !fits {
        // Upstream names the field of its internal type for both versions.
        let field = "involvedObject.namespace";
        errors.push(FieldError::invalid(
            field,
            about,
            "does not match event.namespace",
        ));
    }
}

pub(super) fn validate_lease(object: &Value, errors: &mut Errors) {
    if let Some(seconds) = int_at(object, &["spec", "leaseDurationSeconds"]).filter(|s| *s <= 0) {
        let field = "spec.leaseDurationSeconds";
        errors.push(FieldError::invalid(
            field,
            seconds,
            "must be greater than 0",
        ));
    }
    let transitions = int_at(object, &["spec", "leaseTransitions"]);
    not_negative("spec.leaseTransitions", transitions, errors);
}
