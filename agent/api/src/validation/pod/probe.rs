//! Rules for probes and lifecycle hooks.

use serde_json::Value;

use super::super::{Errors, FieldError, complain, names, not_negative, required_one_of};
use crate::object::{at, int_at, items, text};

pub(super) fn validate_container(field: &str, container: &Value, errors: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = at(container, &[name]) else {
            continue;
        };
        let field = format!("{field}.{name}");
        handler(
            &field,
            probe,
            &["exec", "httpGet", "tcpSocket", "grpc"],
            errors,
        );
        for key in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            not_negative(&format!("{field}.{key}"), int_at(probe, &[key]), errors);
        }
        let grace = int_at(probe, &["terminationGracePeriodSeconds"]);
        let grace_field = format!("{field}.terminationGracePeriodSeconds");
        if let Some(seconds) = grace {
            if name == "readinessProbe" {
                let detail = "must not be set for readinessProbes";
                errors.push(FieldError::invalid(&grace_field, seconds, detail));
            } else if seconds <= 0 {
                errors.push(FieldError::invalid(
                    &grace_field,
                    seconds,
                    "must be greater than 0",
                ));
            }
        }
        let successes = int_at(probe, &["successThreshold"]).unwrap_or(1);
        if name != "readinessProbe" && successes != 1 {
            let field = format!("{field}.successThreshold");
            errors.push(FieldError::invalid(field, successes, "must be 1"));
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = at(container, &["lifecycle", name]) {
            let field = format!("{field}.lifecycle.{name}");
            handler(
                &field,
                hook,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
}

/// Exactly one of the ways to ask, and that one well-formed.
fn handler(field: &str, handler: &Value, ways: &[&str], errors: &mut Errors) {
    let mut given = 0;
    for way in ways {
        let Some(action) = at(handler, &[way]) else {
            continue;
        };
        given += 1;
        let field = format!("{field}.{way}");
        if given > 1 {
            let detail = "may not specify more than 1 handler type";
            errors.push(FieldError::forbidden(&field, detail));
            continue;
        }
        match *way {
            "exec" => {
                if items(action, &["command"]).is_empty() {
                    errors.push(FieldError::required(format_args!("{field}.command"), ""));
                }
            }
            "httpGet" => {
                if text(action, &["path"]).is_empty() {
                    errors.push(FieldError::required(format_args!("{field}.path"), ""));
                }
                port(&format!("{field}.port"), action, errors);
                let scheme = text(action, &["scheme"]);
                required_one_of(
                    &format!("{field}.scheme"),
                    scheme,
                    &["HTTP", "HTTPS"],
                    errors,
                );
            }
            "tcpSocket" | "grpc" => port(&format!("{field}.port"), action, errors),
            _ => not_negative(
                &format!("{field}.seconds"),
                int_at(action, &["seconds"]),
                errors,
            ),
        }
    }
    if given == 0 {
        errors.push(FieldError::required(field, "must specify a handler type"));
    }
}

fn port(field: &str, action: &Value, errors: &mut Errors) {
    match at(action, &["port"]) {
        Some(Value::String(name)) => complain(field, name.as_str(), names::port_name(name), errors),
        number => {
            let number = number.and_then(Value::as_i64).unwrap_or_default();
            complain(field, number, names::port_number(number), errors);
        }
    }
}
