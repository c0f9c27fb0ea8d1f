//! Rules for Deployments and ReplicaSets.

use serde_json::{Map, Value};

use super::{Errors, FieldError, label_selector, labels, metadata, not_negative, one_of, pod};
use crate::object::{at, int_at, text};
use crate::selector::LabelSelector;

pub(super) fn validate_deployment(object: &Value, errors: &mut Errors) {
    not_negative(
        "spec.replicas",
        int_at(object, &["spec", "replicas"]),
        errors,
    );
    validate_selector_and_template(object, "deployment", errors);
    validate_strategy(object, errors);
    let min_ready = int_at(object, &["spec", "minReadySeconds"]).unwrap_or_default();
    not_negative("spec.minReadySeconds", Some(min_ready), errors);
    let history = int_at(object, &["spec", "revisionHistoryLimit"]);
    not_negative("spec.revisionHistoryLimit", history, errors);
    if let Some(deadline) = int_at(object, &["spec", "progressDeadlineSeconds"]) {
        let field = "spec.progressDeadlineSeconds";
        not_negative(field, Some(deadline), errors);
        if deadline <= min_ready {
            errors.push(FieldError::invalid(
                field,
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

pub(super) fn validate_replica_set(object: &Value, errors: &mut Errors) {
    not_negative(
        "spec.replicas",
        int_at(object, &["spec", "replicas"]),
        errors,
    );
    not_negative(
        "spec.minReadySeconds",
        int_at(object, &["spec", "minReadySeconds"]),
        errors,
    );
    validate_selector_and_template(object, "replicaset", errors);
}

fn validate_selector_and_template(object: &Value, kind: &str, errors: &mut Errors) {
    let empty = Value::Object(Map::new());
    let selector = at(object, &["spec", "selector"]).unwrap_or(&empty);
    let given =
        at(selector, &["matchLabels"]).is_some() || at(selector, &["matchExpressions"]).is_some();
    if given {
        label_selector("spec.selector", selector, errors);
        if LabelSelector::from_object(selector).is_ok_and(|s| s.is_empty()) {
            let detail = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid(
                "spec.selector",
                selector.clone(),
                detail,
            ));
        }
    } else {
        errors.push(FieldError::required("spec.selector", ""));
    }
    let Some(template) = at(object, &["spec", "template"]) else {
        errors.push(FieldError::required("spec.template", ""));
        return;
    };
    let template_labels = at(template, &["metadata", "labels"]);
    if let Ok(parsed) = LabelSelector::from_object(selector)
        && (!given || !parsed.matches_map(template_labels.and_then(Value::as_object)))
    {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            template_labels.cloned().unwrap_or(empty),
            "`selector` does not match template `labels`",
        ));
    }
    validate_template(template, errors);
}

fn validate_template(template: &Value, errors: &mut Errors) {
    let field = "spec.template";
    labels(
        &format!("{field}.metadata.labels"),
        template,
        &["metadata", "labels"],
        errors,
    );
    let annotations = format!("{field}.metadata.annotations");
    metadata::validate_annotations(&annotations, template, &["metadata", "annotations"], errors);
    let empty = Value::Object(Map::new());
    let spec = at(template, &["spec"]).unwrap_or(&empty);
    pod::validate_spec(&format!("{field}.spec"), spec, errors);
    let policy = text(spec, &["restartPolicy"]);
    if !policy.is_empty() {
        one_of(
            &format!("{field}.spec.restartPolicy"),
            policy,
            &["Always"],
            errors,
        );
    }
    if at(spec, &["activeDeadlineSeconds"]).is_some() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(
            format_args!("{field}.spec.activeDeadlineSeconds"),
            detail,
        ));
    }
}

fn validate_strategy(object: &Value, errors: &mut Errors) {
    let kind = text(object, &["spec", "strategy", "type"]);
    let field = "spec.strategy";
    match kind {
        "Recreate" => {
            if at(object, &["spec", "strategy", "rollingUpdate"]).is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(FieldError::forbidden(
                    format_args!("{field}.rollingUpdate"),
                    detail,
                ));
            }
        }
        "RollingUpdate" => {
            let rolling = |key: &str| at(object, &["spec", "strategy", "rollingUpdate", key]);
            let unavailable =
                int_or_percent(field, "maxUnavailable", rolling("maxUnavailable"), errors);
            let surge = int_or_percent(field, "maxSurge", rolling("maxSurge"), errors);
            let unavailable_field = format!("{field}.rollingUpdate.maxUnavailable");
            let value = rolling("maxUnavailable").cloned().unwrap_or_default();
            if unavailable == Some(0) && surge == Some(0) {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(unavailable_field, value, detail));
            } else if value.is_string() && unavailable.is_some_and(|percent| percent > 100) {
                errors.push(FieldError::invalid(
                    unavailable_field,
                    value,
                    "must not be greater than 100%",
                ));
            }
        }
        _ => one_of(
            &format!("{field}.type"),
            kind,
            &["Recreate", "RollingUpdate"],
            errors,
        ),
    }
}

/// The number (of pods or percent), if it is a good one.
fn int_or_percent(
    strategy: &str,
    key: &str,
    value: Option<&Value>,
    errors: &mut Errors,
) -> Option<i64> {
    let field = format!("{strategy}.rollingUpdate.{key}");
    match value? {
        Value::String(text) => {
            let percent = text
                .strip_suffix('%')
                .filter(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok());
            if percent.is_none() {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', or '93%', regex used for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(field, text.as_str(), detail));
            }
            percent
        }
        number => {
            let number = number.as_i64().unwrap_or_default();
            not_negative(&field, Some(number), errors);
            Some(number)
        }
    }
}
