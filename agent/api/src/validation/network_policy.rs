//! Rules for NetworkPolicies.

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::{
    Errors, FieldError, complain, label_selector, names, one_of, service::CIDR_DETAIL,
    service::is_cidr,
};
use crate::object::{at, int_at, items, text};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const TYPES: &[&str] = &["Egress", "Ingress"];

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let empty = Value::Object(Map::new());
    let selector = at(object, &["spec", "podSelector"]).unwrap_or(&empty);
    label_selector("spec.podSelector", selector, errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(object, &["spec", direction]).iter().enumerate() {
            let field = format!("spec.{direction}[{index}]");
            for (n, port) in items(rule, &["ports"]).iter().enumerate() {
                validate_port(&format!("{field}.ports[{n}]"), port, errors);
            }
            for (n, peer) in items(rule, &[peers]).iter().enumerate() {
                validate_peer(&format!("{field}.{peers}[{n}]"), peer, errors);
            }
        }
    }
    let types = items(object, &["spec", "policyTypes"]);
    if types.len() > TYPES.len() {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid("spec.policyTypes", types, detail));
        return;
    }
    for (n, kind) in types.iter().enumerate() {
        let field = format!("spec.policyTypes[{n}]");
        one_of(&field, kind.as_str().unwrap_or_default(), TYPES, errors);
    }
}

fn validate_port(field: &str, port: &Value, errors: &mut Errors) {
    if let Some(protocol) = at(port, &["protocol"]).and_then(Value::as_str) {
        one_of(&format!("{field}.protocol"), protocol, PROTOCOLS, errors);
    }
    let end = int_at(port, &["endPort"]);
    let (port_field, end_field) = (format!("{field}.port"), format!("{field}.endPort"));
    match at(port, &["port"]) {
        Some(Value::String(name)) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                errors.push(FieldError::invalid(&end_field, end, detail));
            }
            complain(&port_field, name.as_str(), names::port_name(name), errors);
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or_default();
            complain(&port_field, number, names::port_number(number), errors);
            if let Some(end) = end {
                if end < number {
                    let detail = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&end_field, number, detail));
                }
                complain(&end_field, end, names::port_number(end), errors);
            }
        }
        None => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is not specified";
                errors.push(FieldError::invalid(&end_field, end, detail));
            }
        }
    }
}

fn validate_peer(field: &str, peer: &Value, errors: &mut Errors) {
    let mut given = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = at(peer, &[key]) {
            given += 1;
            label_selector(&format!("{field}.{key}"), selector, errors);
        }
    }
    let block = at(peer, &["ipBlock"]);
    if let Some(block) = block {
        validate_block(&format!("{field}.ipBlock"), block, errors);
    }
    if block.is_some() && given > 0 {
        let detail = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(field, detail));
    } else if block.is_none() && given == 0 {
        errors.push(FieldError::required(field, "must specify a peer"));
    }
}

fn validate_block(field: &str, block: &Value, errors: &mut Errors) {
    let cidr = text(block, &["cidr"]);
    let cidr_field = format!("{field}.cidr");
    if cidr.is_empty() {
        errors.push(FieldError::required(cidr_field, ""));
        return;
    }
    let Some(outer) = network(cidr) else {
        errors.push(FieldError::invalid(cidr_field, cidr, CIDR_DETAIL));
        return;
    };
    for (n, except) in items(block, &["except"]).iter().enumerate() {
        let field = format!("{field}.except[{n}]");
        let except = except.as_str().unwrap_or_default();
        let Some(inner) = network(except) else {
            errors.push(FieldError::invalid(field, except, CIDR_DETAIL));
            return;
        };
        if !outer.contains(inner.ip()) || outer.prefix() >= inner.prefix() {
            let detail = "must be a strict subset of `cidr`";
            errors.push(FieldError::invalid(field, except, detail));
        }
    }
}

fn network(text: &str) -> Option<IpNetwork> {
    is_cidr(text).then(|| text.parse().ok())?
}
