//! Who may use a load balancer: `loadBalancerSourceRanges`, or the annotation that was there before it.

use serde_json::Value;

use super::{CIDR_DETAIL, is_cidr};
use crate::{
    object::{items, text},
    validation::{Errors, FieldError},
};

const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Ranges may have blanks around them: in the annotation they had.
pub(super) fn validate(object: &Value, kind: &str, errors: &mut Errors) {
    let ranges = items(object, &["spec", "loadBalancerSourceRanges"]);
    let annotation = text(object, &["metadata", "annotations", ANNOTATION]);
    // Spelled so by upstream.
    let field = if ranges.is_empty() {
        format!("metadata.annotations[{ANNOTATION}]")
    } else {
        "spec.LoadBalancerSourceRanges".to_owned()
    };
    if ranges.is_empty() && annotation.is_empty() {
        return;
    }
    if kind != "LoadBalancer" {
        let only = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(&field, only));
    }
    for (index, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        check(format!("{field}[{index}]"), range, errors);
    }
    if ranges.is_empty() && !annotation.trim().is_empty() {
        for range in annotation.split(',') {
            check(field.clone(), range.trim(), errors);
        }
    }
}

fn check(field: String, range: &str, errors: &mut Errors) {
    if !is_cidr(range) {
        errors.push(FieldError::invalid(field, range, CIDR_DETAIL));
    }
}
