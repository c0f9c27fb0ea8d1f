//! Cluster IPs, and the families that they are of.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::{Errors, FieldError, one_of};
use super::IP_DETAIL;
use crate::object::{at, items, text};

const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];

fn list(service: &Value, key: &str) -> Value {
    json!(items(service, &["spec", key]))
}

fn is_external(service: &Value) -> bool {
    text(service, &["spec", "type"]) == "ExternalName"
}

fn is_headless(service: &Value) -> bool {
    text(service, &["spec", "clusterIP"]) == "None"
}

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    if is_external(object) {
        return;
    }
    let before = errors.len();
    let ips = items(object, &["spec", "clusterIPs"]);
    let single = text(object, &["spec", "clusterIP"]);
    let wrong = |detail: &str| FieldError::invalid("spec.clusterIPs", json!(ips), detail);
    match (single, ips) {
        ("", []) => {}
        ("", _) => errors.push(wrong("must be empty when `clusterIP` is not specified")),
        (_, []) => errors.push(FieldError::required("spec.clusterIPs", "")),
        (single, [first, ..]) if first == single => {}
        _ => errors.push(wrong("first value must match `clusterIP`")),
    }
    validate_families(object, errors);
    if !validate_ips(ips, errors) {
        return;
    }
    if ips.len() > 2 {
        errors.push(wrong("may only hold up to 2 values"));
    }
    let parsed: Vec<IpAddr> = ips
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .collect();
    if let [first, second, ..] = parsed[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(wrong(detail));
    }
    if errors.len() > before {
        return;
    }
    let families = items(object, &["spec", "ipFamilies"]);
    for (index, (ip, family)) in parsed.iter().zip(families).enumerate() {
        let expected = family.as_str().unwrap_or_default();
        if ip.is_ipv4() != (expected == "IPv4") {
            let field = format!("spec.clusterIPs[{index}]");
            let detail =
                format!("expected an {expected} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(field, ip.to_string(), detail));
        }
    }
}

fn validate_families(object: &Value, errors: &mut Errors) {
    let families = items(object, &["spec", "ipFamilies"]);
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        let name = family.as_str().unwrap_or_default();
        one_of(&field, name, &["IPv4", "IPv6"], errors);
        if families.iter().take(index).any(|earlier| earlier == family) {
            errors.push(FieldError::duplicate(field, name));
        }
    }
    let policy = text(object, &["spec", "ipFamilyPolicy"]);
    if !policy.is_empty() {
        one_of("spec.ipFamilyPolicy", policy, POLICIES, errors);
    }
}

/// Whether all are addresses, or there is nothing but `None`.
fn validate_ips(ips: &[Value], errors: &mut Errors) -> bool {
    let mut valid = true;
    for (index, ip) in ips.iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if ip == "None" && index == 0 {
            if ips.len() > 1 {
                valid = false;
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid("spec.clusterIPs", json!(ips), detail));
            }
        } else if ip.parse::<IpAddr>().is_err() {
            valid = false;
            let field = format!("spec.clusterIPs[{index}]");
            errors.push(FieldError::invalid(field, ip, IP_DETAIL));
        }
    }
    valid
}

/// The first address and the first family stay; the second may come, and goes with the policy `SingleStack` only.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    if is_external(new) || is_external(old) {
        return;
    }
    if !(is_headless(new) && is_headless(old)) {
        validate_list(new, old, ("clusterIPs", "clusterIP"), errors);
    }
    if !is_headless(new) && !is_headless(old) {
        validate_list(new, old, ("ipFamilies", "ipFamily"), errors);
    }
}

fn validate_list(new: &Value, old: &Value, (key, one): (&str, &str), errors: &mut Errors) {
    let path = ["spec", key];
    let (before, after) = (items(old, &path), items(new, &path));
    let wrong = |index: usize, detail: String| {
        FieldError::invalid(format!("spec.{key}[{index}]"), list(new, key), detail)
    };
    if after.is_empty() && !before.is_empty() {
        errors.push(wrong(0, format!("primary {one} can not be unset")));
    }
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        if before != after {
            errors.push(wrong(index, "may not change once set".to_owned()));
        }
    }
    let policy = text(new, &["spec", "ipFamilyPolicy"]);
    if before.len() > 1 && after.len() == 1 && policy != "SingleStack" {
        let policy = at(new, &["spec", "ipFamilyPolicy"]).cloned();
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        errors.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            policy.unwrap_or_default(),
            detail,
        ));
    }
}
