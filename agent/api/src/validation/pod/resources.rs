//! Rules for requests and limits.

use serde_json::Value;

use super::super::{Errors, FieldError, NOT_NEGATIVE, complain, names};
use super::quantities;
use crate::object::text;
use crate::quantity::Quantity;

const STANDARD: &[&str] = &["cpu", "ephemeral-storage", "memory"];

pub(super) fn validate(field: &str, container: &Value, errors: &mut Errors) {
    for which in ["limits", "requests"] {
        for (name, text, quantity) in quantities(container, &["resources", which]) {
            let field = format!("{field}.{which}");
            let named = format!("{field}[{name}]");
            resource_name(&field, name, errors);
            if quantity.is_negative() {
                errors.push(FieldError::invalid(&named, text, NOT_NEGATIVE));
            }
            let whole_only = is_extended(name) || name.starts_with("hugepages-");
            if whole_only && !quantity.is_integer() {
                errors.push(FieldError::invalid(&named, text, "must be an integer"));
            }
        }
    }
    for (name, request, quantity) in quantities(container, &["resources", "requests"]) {
        let limit = text(container, &["resources", "limits", name]);
        let Ok(maximum) = Quantity::parse(limit) else {
            if is_extended(name) {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(format_args!("{field}.limits"), detail));
            }
            continue;
        };
        let field = format!("{field}.requests");
        if is_extended(name) && quantity != maximum {
            let detail = format!("must be equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(field, request, detail));
        } else if quantity > maximum {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(field, request, detail));
        }
    }
}

/// Resources of devices and the like, such as `example.com/gpu`.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

fn resource_name(field: &str, name: &str, errors: &mut Errors) {
    complain(field, name, names::qualified_name(name), errors);
    if !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
        let detail = "must be a standard resource for containers";
        errors.push(FieldError::invalid(field, name, detail));
    }
}
