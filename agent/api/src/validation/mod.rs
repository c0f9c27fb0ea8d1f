//! Upstream's validation rules, in upstream's words.
//!
//! All checks take an object that was decoded and defaulted, and append to one list of errors, so that a
//! client sees everything that is wrong at once.

use serde_json::Value;

use crate::object::{at, entries};
use crate::resource::{Kind, Resource};

mod config;
mod endpoints;
mod error;
mod metadata;
pub(crate) mod names;
mod network_policy;
mod node;
mod pod;
mod service;
mod workload;

pub use error::{FieldError, FieldErrorKind, aggregate};
pub use pod::quality_of_service;

/// All errors found so far.
type Errors = Vec<FieldError>;

/// Says what is wrong with a text.
type Check = fn(&str) -> Vec<String>;

pub(crate) fn validate(resource: &Resource, object: &Value) -> Errors {
    let mut errors = Vec::new();
    metadata::validate(resource, object, &mut errors);
    match resource.id {
        Kind::Pod => pod::validate(object, &mut errors),
        Kind::Service => service::validate(object, &mut errors),
        Kind::Endpoints => endpoints::validate(object, &mut errors),
        Kind::EndpointSlice => endpoints::validate_slice(object, &mut errors),
        Kind::Node => node::validate(object, &mut errors),
        Kind::ConfigMap => config::validate_config_map(object, &mut errors),
        Kind::Secret => config::validate_secret(object, &mut errors),
        Kind::CoreEvent => config::validate_event(object, "involvedObject", &mut errors),
        Kind::Event => config::validate_event(object, "regarding", &mut errors),
        Kind::Lease => config::validate_lease(object, &mut errors),
        Kind::Deployment => workload::validate_deployment(object, &mut errors),
        Kind::ReplicaSet => workload::validate_replica_set(object, &mut errors),
        Kind::NetworkPolicy => network_policy::validate(object, &mut errors),
        Kind::Namespace | Kind::ServiceAccount => {}
    }
    errors
}

pub(crate) fn validate_update(resource: &Resource, new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    metadata::validate_update(new, old, &mut errors);
    match resource.id {
        Kind::Pod => pod::validate_update(new, old, &mut errors),
        Kind::Service => service::validate_update(new, old, &mut errors),
        Kind::EndpointSlice => immutable("addressType", new, old, &["addressType"], &mut errors),
        Kind::Node => node::validate_update(new, old, &mut errors),
        Kind::ConfigMap => config::validate_config_map_update(new, old, &mut errors),
        Kind::Secret => config::validate_secret_update(new, old, &mut errors),
        Kind::Deployment | Kind::ReplicaSet => {
            immutable(
                "spec.selector",
                new,
                old,
                &["spec", "selector"],
                &mut errors,
            );
        }
        _ => {}
    }
    errors.extend(validate(resource, new));
    errors
}

pub(crate) fn validate_status_update(resource: &Resource, new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    metadata::validate_update(new, old, &mut errors);
    metadata::validate(resource, new, &mut errors);
    if resource.id == Kind::Pod {
        pod::validate_status_update(new, old, &mut errors);
    }
    for field in STATUS_COUNTERS {
        let count = crate::object::int_at(new, &["status", field]).unwrap_or_default();
        if count < 0 {
            errors.push(FieldError::invalid(
                format_args!("status.{field}"),
                count,
                NOT_NEGATIVE,
            ));
        }
    }
    errors
}

const STATUS_COUNTERS: &[&str] = &[
    "replicas",
    "fullyLabeledReplicas",
    "updatedReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "observedGeneration",
    "collisionCount",
];

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";

fn immutable(field: &str, new: &Value, old: &Value, path: &[&str], errors: &mut Errors) {
    let (new, old) = (at(new, path), at(old, path));
    if !crate::resource::same(new, old) {
        errors.push(FieldError::invalid(
            field,
            new.cloned().unwrap_or_default(),
            IMMUTABLE,
        ));
    }
}

/// One error per complaint about a value.
fn complain(field: &str, value: impl Into<Value>, complaints: Vec<String>, errors: &mut Errors) {
    if complaints.is_empty() {
        return;
    }
    let value = value.into();
    errors.extend(
        complaints
            .into_iter()
            .map(|c| FieldError::invalid(field, value.clone(), c)),
    );
}

fn not_negative(field: &str, value: Option<i64>, errors: &mut Errors) {
    if let Some(value) = value.filter(|v| *v < 0) {
        errors.push(FieldError::invalid(field, value, NOT_NEGATIVE));
    }
}

/// A text that must be one of some.
fn one_of(field: &str, value: &str, supported: &[&str], errors: &mut Errors) {
    if !supported.contains(&value) {
        errors.push(FieldError::not_supported(field, value, supported));
    }
}

/// As [`one_of`], but an absent one is "required".
fn required_one_of(field: &str, value: &str, supported: &[&str], errors: &mut Errors) {
    if value.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else {
        one_of(field, value, supported, errors);
    }
}

/// A map of labels at a path.
fn labels(field: &str, object: &Value, path: &[&str], errors: &mut Errors) {
    for (key, value) in entries(object, path) {
        complain(field, key, names::qualified_name(key), errors);
        let value = value.as_str().unwrap_or_default();
        complain(field, value, names::label_value(value), errors);
    }
}

/// A `LabelSelector` object.
fn label_selector(field: &str, selector: &Value, errors: &mut Errors) {
    labels(
        &format!("{field}.matchLabels"),
        selector,
        &["matchLabels"],
        errors,
    );
    for (index, expression) in crate::object::items(selector, &["matchExpressions"])
        .iter()
        .enumerate()
    {
        let field = format!("{field}.matchExpressions[{index}]");
        let values = crate::object::items(expression, &["values"]);
        match crate::object::text(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format_args!("{field}.values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(
                    format_args!("{field}.values"),
                    detail,
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format_args!("{field}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = crate::object::text(expression, &["key"]);
        complain(
            &format!("{field}.key"),
            key,
            names::qualified_name(key),
            errors,
        );
        for (n, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            complain(
                &format!("{field}.values[{n}]"),
                value,
                names::label_value(value),
                errors,
            );
        }
    }
}

#[cfg(test)]
mod tests;
