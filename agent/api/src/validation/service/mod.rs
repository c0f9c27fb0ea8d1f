//! Rules for Services.

mod families;
mod sources;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Errors, FieldError, complain, labels, names, one_of, required_one_of};
use crate::object::{at, int_at, items, text};
use crate::resource::service::needs_health_check;

const IP_DETAIL: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
pub(super) const CIDR_DETAIL: &str =
    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const MAX_AFFINITY_SECONDS: i64 = 86_400;

pub(super) fn is_cidr(text: &str) -> bool {
    text.contains('/') && text.parse::<IpNetwork>().is_ok()
}

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let kind = text(object, &["spec", "type"]);
    let headless = text(object, &["spec", "clusterIP"]) == "None";
    if items(object, &["spec", "ports"]).is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let types = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    required_one_of("spec.type", kind, types, errors);
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
    }
    if kind == "ExternalName" {
        validate_external_name(object, errors);
    }
    validate_ports(object, kind, errors);
    labels("spec.selector", object, &["spec", "selector"], errors);
    validate_affinity(object, errors);
    validate_addresses(object, errors);
    validate_policies(object, kind, errors);
    validate_load_balancer(object, kind, errors);
    sources::validate(object, kind, errors);
}

fn validate_external_name(object: &Value, errors: &mut Errors) {
    let cluster_ip = text(object, &["spec", "clusterIP"]);
    if !cluster_ip.is_empty() {
        let detail = "may not be set for ExternalName services";
        errors.push(FieldError::forbidden("spec.clusterIPs", detail));
    }
    let name = text(object, &["spec", "externalName"]);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    } else {
        complain(
            "spec.externalName",
            name,
            names::dns1123_subdomain(name),
            errors,
        );
    }
}

fn validate_ports(object: &Value, kind: &str, errors: &mut Errors) {
    let ports = items(object, &["spec", "ports"]);
    let mut names_seen: Vec<&str> = Vec::new();
    let mut ports_seen: Vec<(i64, &str)> = Vec::new();
    let mut node_ports_seen: Vec<(i64, &str)> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = text(port, &["name"]);
        let name_field = format!("{field}.name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(&name_field, ""));
            }
        } else {
            complain(&name_field, name, names::dns1123_label(name), errors);
            if names_seen.contains(&name) {
                errors.push(FieldError::duplicate(&name_field, name));
            }
            names_seen.push(name);
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
        validate_target_port(&format!("{field}.targetPort"), port, errors);
        if ports_seen.contains(&(number, protocol)) {
            let value = json!({"port": number, "protocol": protocol});
            errors.push(FieldError::duplicate(&field, value));
        }
        ports_seen.push((number, protocol));
        let node_port = int_at(port, &["nodePort"]).unwrap_or_default();
        if node_port == 0 {
            continue;
        }
        let node_field = format!("{field}.nodePort");
        if matches!(kind, "ClusterIP" | "ExternalName") {
            let detail = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(&node_field, detail));
        } else if node_ports_seen.contains(&(node_port, protocol)) {
            errors.push(FieldError::duplicate(&node_field, node_port));
        }
        node_ports_seen.push((node_port, protocol));
    }
}

pub(super) fn validate_target_port(field: &str, port: &Value, errors: &mut Errors) {
    match at(port, &["targetPort"]) {
        Some(Value::String(name)) => complain(field, name.as_str(), names::port_name(name), errors),
        Some(number) => {
            let number = number.as_i64().unwrap_or_default();
            complain(field, number, names::port_number(number), errors);
        }
        None => {}
    }
}

fn validate_affinity(object: &Value, errors: &mut Errors) {
    let affinity = text(object, &["spec", "sessionAffinity"]);
    required_one_of(
        "spec.sessionAffinity",
        affinity,
        &["ClientIP", "None"],
        errors,
    );
    let path = [
        "spec",
        "sessionAffinityConfig",
        "clientIP",
        "timeoutSeconds",
    ];
    if affinity == "ClientIP" {
        let seconds = int_at(object, &path).unwrap_or_default();
        if seconds <= 0 || seconds > MAX_AFFINITY_SECONDS {
            let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
            errors.push(FieldError::invalid(path.join("."), seconds, detail));
        }
    }
}

fn validate_addresses(object: &Value, errors: &mut Errors) {
    families::validate(object, errors);
    for (index, ip) in items(object, &["spec", "externalIPs"]).iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        let field = format!("spec.externalIPs[{index}]");
        match ip.parse::<IpAddr>() {
            Err(_) => errors.push(FieldError::invalid(field, ip, IP_DETAIL)),
            Ok(parsed) if parsed.is_loopback() || parsed.is_unspecified() => {
                let why = if parsed.is_loopback() {
                    "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
                } else {
                    format!("may not be unspecified ({parsed})")
                };
                errors.push(FieldError::invalid(field, ip, why));
            }
            Ok(_) => {}
        }
    }
}

fn validate_policies(object: &Value, kind: &str, errors: &mut Errors) {
    let external = text(object, &["spec", "externalTrafficPolicy"]);
    let accessible = matches!(kind, "NodePort" | "LoadBalancer")
        || !items(object, &["spec", "externalIPs"]).is_empty();
    if !external.is_empty() {
        if accessible {
            let field = "spec.externalTrafficPolicy";
            one_of(field, external, &["Cluster", "Local"], errors);
        } else {
            let detail = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(
                "spec.externalTrafficPolicy",
                external,
                detail,
            ));
        }
    }
    if kind != "ExternalName" {
        let internal = text(object, &["spec", "internalTrafficPolicy"]);
        required_one_of(
            "spec.internalTrafficPolicy",
            internal,
            &["Cluster", "Local"],
            errors,
        );
    }
    let distribution = text(object, &["spec", "trafficDistribution"]);
    if !distribution.is_empty() {
        let distributions = &["PreferClose", "PreferSameNode", "PreferSameZone"];
        one_of(
            "spec.trafficDistribution",
            distribution,
            distributions,
            errors,
        );
    }
}

/// What says nothing but for load balancers, and the port that tells them where endpoints are.
fn validate_load_balancer(object: &Value, kind: &str, errors: &mut Errors) {
    let class = text(object, &["spec", "loadBalancerClass"]);
    if kind == "LoadBalancer" {
        if !class.is_empty() {
            let field = "spec.loadBalancerClass";
            complain(field, class, names::qualified_name(class), errors);
        }
    } else {
        let only = "may only be used when `type` is 'LoadBalancer'";
        for key in ["loadBalancerClass", "allocateLoadBalancerNodePorts"] {
            if at(object, &["spec", key]).is_some_and(|value| !value.is_null()) {
                errors.push(FieldError::forbidden(format!("spec.{key}"), only));
            }
        }
    }
    let port = int_at(object, &["spec", "healthCheckNodePort"]).unwrap_or_default();
    if port != 0 && !needs_health_check(object) {
        let detail =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(
            "spec.healthCheckNodePort",
            port,
            detail,
        ));
    }
}

pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    families::validate_update(new, old, errors);
    if needs_health_check(new) && needs_health_check(old) {
        let port = |service| int_at(service, &["spec", "healthCheckNodePort"]).unwrap_or_default();
        if port(old) != 0 && port(new) != port(old) {
            let detail = "field is immutable";
            errors.push(FieldError::forbidden("spec.healthCheckNodePort", detail));
        }
    }
    let balancer = |service| text(service, &["spec", "type"]) == "LoadBalancer";
    let class = |service| at(service, &["spec", "loadBalancerClass"]).cloned();
    if balancer(new) && balancer(old) && class(new) != class(old) {
        errors.push(FieldError::invalid(
            "spec.loadBalancerClass",
            class(new).unwrap_or_default(),
            "may not change once set",
        ));
    }
}
