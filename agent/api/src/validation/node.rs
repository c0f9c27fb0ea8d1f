//! Rules for Nodes.

use serde_json::Value;

use super::{Errors, FieldError, complain, names, required_one_of};
use crate::object::{at, items, text};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, taint) in items(object, &["spec", "taints"]).iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        let (key, value, effect) = (
            text(taint, &["key"]),
            text(taint, &["value"]),
            text(taint, &["effect"]),
        );
        complain(
            &format!("{field}.key"),
            key,
            names::qualified_name(key),
            errors,
        );
        complain(
            &format!("{field}.value"),
            value,
            names::label_value(value),
            errors,
        );
        required_one_of(&format!("{field}.effect"), effect, EFFECTS, errors);
        if seen.contains(&(key, effect)) {
            let mut duplicate = FieldError::duplicate(&field, taint.clone());
            duplicate.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(duplicate);
        }
        seen.push((key, effect));
    }
    for (index, cidr) in items(object, &["spec", "podCIDRs"]).iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        let field = format!("spec.podCIDRs[{index}]");
        if !super::service::is_cidr(cidr) {
            errors.push(FieldError::invalid(
                field,
                cidr,
                super::service::CIDR_DETAIL,
            ));
        }
    }
}

pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let cidrs = items(old, &["spec", "podCIDRs"]);
    if !cidrs.is_empty() && items(new, &["spec", "podCIDRs"]) != cidrs {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", detail));
    }
    let provider = text(old, &["spec", "providerID"]);
    if !provider.is_empty() && text(new, &["spec", "providerID"]) != provider {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", detail));
    }
    if at(new, &["spec", "configSource"]).is_some() && at(old, &["spec", "configSource"]).is_none()
    {
        let detail = "configSource may not be set";
        errors.push(FieldError::forbidden("spec.configSource", detail));
    }
}
