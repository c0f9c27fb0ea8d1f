//! What an update of a Pod may change.

use serde_json::Value;

use super::super::{Errors, FieldError};
use crate::object::{at, int_at, items, text};
use crate::resource::same;

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(crate) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        if items(new, &["spec", list]).len() != items(old, &["spec", list]).len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format_args!("spec.{list}"), detail));
            return;
        }
    }
    deadline(new, old, errors);
    tolerations(new, old, errors);
    let mut munged = new.clone();
    allow_what_may_change(&mut munged, old);
    let (munged, old) = (at(&munged, &["spec"]), at(old, &["spec"]));
    if !same(munged, old) {
        let mut changed = Vec::new();
        differences(
            "spec",
            munged.unwrap_or(&Value::Null),
            old.unwrap_or(&Value::Null),
            &mut changed,
        );
        let detail = format!("{MUTABLE}\nchanged: {}", changed.join(", "));
        errors.push(FieldError::forbidden("spec", detail));
    }
}

fn deadline(new: &Value, old: &Value, errors: &mut Errors) {
    let field = "spec.activeDeadlineSeconds";
    let path = ["spec", "activeDeadlineSeconds"];
    match (int_at(new, &path), int_at(old, &path)) {
        (Some(new), Some(old)) if new > old => {
            let detail = "must be less than or equal to previous value";
            errors.push(FieldError::invalid(field, new, detail));
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(field, Value::Null, detail));
        }
        _ => {}
    }
}

fn without_seconds(toleration: &Value) -> Value {
    let mut toleration = toleration.clone();
    if let Some(map) = toleration.as_object_mut() {
        map.remove("tolerationSeconds");
    }
    toleration
}

fn tolerations(new: &Value, old: &Value, errors: &mut Errors) {
    let now: Vec<Value> = items(new, &["spec", "tolerations"])
        .iter()
        .map(without_seconds)
        .collect();
    for before in items(old, &["spec", "tolerations"]) {
        if !now.contains(&without_seconds(before)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            errors.push(FieldError::forbidden("spec.tolerations", detail));
            return;
        }
    }
}

/// Takes over from the old Pod what an update may change, so that the rest can be compared.
fn allow_what_may_change(new: &mut Value, old: &Value) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for list in ["containers", "initContainers"] {
        let before = items(old, &["spec", list]);
        if let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) {
            for (container, before) in containers.iter_mut().zip(before) {
                if let (Some(map), Some(image)) =
                    (container.as_object_mut(), at(before, &["image"]))
                {
                    map.insert("image".to_owned(), image.clone());
                }
            }
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations"] {
        take_over(spec, old, key);
    }
    // Gates may be removed, never added.
    let gates = items(old, &["spec", "schedulingGates"]);
    let only_removed = spec
        .get("schedulingGates")
        .and_then(Value::as_array)
        .is_none_or(|list| list.iter().all(|gate| gates.contains(gate)));
    if only_removed {
        take_over(spec, old, "schedulingGates");
    }
    let grace = ["spec", "terminationGracePeriodSeconds"];
    let now = spec
        .get("terminationGracePeriodSeconds")
        .and_then(Value::as_i64);
    if int_at(old, &grace).is_some_and(|s| s < 0) && now == Some(1) {
        take_over(spec, old, "terminationGracePeriodSeconds");
    }
}

fn take_over(spec: &mut serde_json::Map<String, Value>, old: &Value, key: &str) {
    match at(old, &["spec", key]) {
        Some(value) => spec.insert(key.to_owned(), value.clone()),
        None => spec.remove(key),
    };
}

/// Paths at which two values differ.
fn differences(path: &str, new: &Value, old: &Value, out: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            for key in keys {
                let (x, y) = (a.get(key), b.get(key));
                if !same(x, y) {
                    let null = &Value::Null;
                    let path = format!("{path}.{key}");
                    differences(&path, x.unwrap_or(null), y.unwrap_or(null), out);
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (x, y)) in a.iter().zip(b).enumerate() {
                if !same(Some(x), Some(y)) {
                    differences(&format!("{path}[{index}]"), x, y, out);
                }
            }
        }
        _ => out.push(path.to_owned()),
    }
}

pub(crate) fn validate_status_update(new: &Value, old: &Value, errors: &mut Errors) {
    let node = text(new, &["spec", "nodeName"]);
    if node != text(old, &["spec", "nodeName"]) {
        let detail = "may not be changed directly";
        errors.push(FieldError::forbidden("status.nodeName", detail));
    }
    if at(new, &["status", "observedGeneration"]).is_none() {
        return;
    }
    let observed = int_at(new, &["status", "observedGeneration"]).unwrap_or_default();
    if observed < 0 {
        let detail = super::super::NOT_NEGATIVE;
        errors.push(FieldError::invalid(
            "status.observedGeneration",
            observed,
            detail,
        ));
    }
}
