//! Rules for Endpoints and EndpointSlices.

use std::net::IpAddr;

use serde_json::Value;

use super::{Errors, FieldError, FieldErrorKind, complain, names, one_of, required_one_of};
use crate::object::{at, int_at, items, text};

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;

pub(super) fn too_many(field: &str, found: usize, limit: usize, errors: &mut Errors) {
    if found > limit {
        let detail = format!("must have at most {limit} items");
        errors.push(FieldError::new(
            FieldErrorKind::TooMany,
            field,
            found,
            detail,
        ));
    }
}

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    for (index, subset) in items(object, &["subsets"]).iter().enumerate() {
        let field = format!("subsets[{index}]");
        if items(subset, &["addresses"]).is_empty()
            && items(subset, &["notReadyAddresses"]).is_empty()
        {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(&field, detail));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (n, address) in items(subset, &[list]).iter().enumerate() {
                let field = format!("{field}.{list}[{n}].ip");
                endpoint_ip(&field, text(address, &["ip"]), errors);
            }
        }
        let ports = items(subset, &["ports"]);
        for (n, port) in ports.iter().enumerate() {
            let field = format!("{field}.ports[{n}]");
            let name = text(port, &["name"]);
            if name.is_empty() {
                if ports.len() > 1 {
                    errors.push(FieldError::required(format_args!("{field}.name"), ""));
                }
            } else {
                complain(
                    &format!("{field}.name"),
                    name,
                    names::dns1123_label(name),
                    errors,
                );
            }
            let number = int_at(port, &["port"]).unwrap_or_default();
            complain(
                &format!("{field}.port"),
                number,
                names::port_number(number),
                errors,
            );
            let protocol = text(port, &["protocol"]);
            required_one_of(&format!("{field}.protocol"), protocol, PROTOCOLS, errors);
        }
    }
}

/// An address that traffic may be sent to on behalf of a Service.
fn endpoint_ip(field: &str, address: &str, errors: &mut Errors) {
    let Ok(ip) = address.parse::<IpAddr>() else {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(field, address, detail));
        return;
    };
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(ip) => ip.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let mut refuse = |why: String| errors.push(FieldError::invalid(field, address, why));
    if ip.is_unspecified() {
        refuse(format!("may not be unspecified ({ip})"));
    }
    if ip.is_loopback() {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    if link_local {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if link_local_multicast {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    }
}

pub(super) fn validate_slice(object: &Value, errors: &mut Errors) {
    let address_type = text(object, &["addressType"]);
    required_one_of(
        "addressType",
        address_type,
        &["IPv4", "IPv6", "FQDN"],
        errors,
    );
    let endpoints = items(object, &["endpoints"]);
    too_many("endpoints", endpoints.len(), MAX_ENDPOINTS, errors);
    for (index, endpoint) in endpoints.iter().take(MAX_ENDPOINTS).enumerate() {
        let field = format!("endpoints[{index}]");
        let addresses = items(endpoint, &["addresses"]);
        if addresses.is_empty() {
            let detail = "must contain at least 1 address";
            errors.push(FieldError::required(
                format_args!("{field}.addresses"),
                detail,
            ));
        }
        too_many(
            &format!("{field}.addresses"),
            addresses.len(),
            MAX_ADDRESSES,
            errors,
        );
        for (n, address) in addresses.iter().take(MAX_ADDRESSES).enumerate() {
            let address = address.as_str().unwrap_or_default();
            slice_address(
                &format!("{field}.addresses[{n}]"),
                address_type,
                address,
                errors,
            );
        }
        if let Some(node) = at(endpoint, &["nodeName"]).and_then(Value::as_str) {
            complain(
                &format!("{field}.nodeName"),
                node,
                names::dns1123_subdomain(node),
                errors,
            );
        }
        if let Some(hostname) = at(endpoint, &["hostname"]).and_then(Value::as_str) {
            complain(
                &format!("{field}.hostname"),
                hostname,
                names::dns1123_label(hostname),
                errors,
            );
        }
    }
    slice_ports(object, errors);
}

fn slice_address(field: &str, address_type: &str, address: &str, errors: &mut Errors) {
    let ip = address.parse::<IpAddr>();
    match (address_type, ip) {
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
            endpoint_ip(field, address, errors);
        }
        ("IPv4", Ok(_)) => errors.push(FieldError::invalid(
            field,
            address,
            "must be an IPv4 address",
        )),
        ("IPv6", Ok(_)) => errors.push(FieldError::invalid(
            field,
            address,
            "must be an IPv6 address",
        )),
        ("FQDN", _) => complain(field, address, names::dns1123_subdomain(address), errors),
        ("IPv4" | "IPv6", Err(_)) => endpoint_ip(field, address, errors),
        _ => {}
    }
}

fn slice_ports(object: &Value, errors: &mut Errors) {
    let ports = items(object, &["ports"]);
    too_many("ports", ports.len(), 20_000, errors);
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let name = text(port, &["name"]);
        let field = format!("ports[{index}].name");
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&field, name));
        } else if !name.is_empty() {
            complain(&field, name, names::dns1123_label(name), errors);
        }
        seen.push(name);
        let protocol = text(port, &["protocol"]);
        one_of(
            &format!("ports[{index}].protocol"),
            protocol,
            PROTOCOLS,
            errors,
        );
        if let Some(number) = int_at(port, &["port"]) {
            complain(
                &format!("ports[{index}].port"),
                number,
                names::port_number(number),
                errors,
            );
        }
    }
}
