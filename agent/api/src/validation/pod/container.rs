//! Rules for containers.

use std::net::IpAddr;

use serde_json::Value;

use super::super::{Errors, FieldError, complain, names, required_one_of};
use super::{env, probe, resources};
use crate::object::{at, int_at, items, text};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

pub(super) fn validate_all(field: &str, spec: &Value, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    let mut host_ports: Vec<String> = Vec::new();
    if items(spec, &["containers"]).is_empty() {
        errors.push(FieldError::required(format_args!("{field}.containers"), ""));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in items(spec, &[list]).iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            let name = text(container, &["name"]);
            let name_field = format!("{field}.name");
            if name.is_empty() {
                errors.push(FieldError::required(&name_field, ""));
            } else {
                complain(&name_field, name, names::dns1123_label(name), errors);
                if seen.contains(&name) {
                    errors.push(FieldError::duplicate(&name_field, name));
                }
                seen.push(name);
            }
            validate_common(&field, spec, container, errors);
            let sidecar = text(container, &["restartPolicy"]) == "Always";
            if list == "containers" || (list == "initContainers" && sidecar) {
                probe::validate_container(&field, container, errors);
            }
            match list {
                "containers" => {
                    host_port_conflicts(&field, container, &mut host_ports, errors);
                    forbid(
                        &field,
                        container,
                        &["restartPolicy"],
                        "may not be set for non-init containers",
                        errors,
                    );
                }
                "initContainers" if !sidecar => {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    forbid(&field, container, &["lifecycle"], detail, errors);
                    forbid(&field, container, &PROBES, detail, errors);
                }
                "ephemeralContainers" => {
                    let detail = "cannot be set for an Ephemeral Container";
                    forbid(&field, container, &["ports", "lifecycle"], detail, errors);
                    forbid(&field, container, &PROBES, detail, errors);
                }
                _ => {}
            }
        }
    }
}

fn forbid(field: &str, container: &Value, keys: &[&str], detail: &str, errors: &mut Errors) {
    for key in keys {
        if at(container, &[key]).is_some() {
            errors.push(FieldError::forbidden(format_args!("{field}.{key}"), detail));
        }
    }
}

fn validate_common(field: &str, spec: &Value, container: &Value, errors: &mut Errors) {
    let image = text(container, &["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(format_args!("{field}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(
            format_args!("{field}.image"),
            image,
            detail,
        ));
    }
    let message = text(container, &["terminationMessagePolicy"]);
    let supported = &["File", "FallbackToLogsOnError"];
    required_one_of(
        &format!("{field}.terminationMessagePolicy"),
        message,
        supported,
        errors,
    );
    let host_network = at(spec, &["hostNetwork"]) == Some(&Value::Bool(true));
    validate_ports(&format!("{field}.ports"), container, host_network, errors);
    env::validate(field, container, errors);
    validate_mounts(&format!("{field}.volumeMounts"), spec, container, errors);
    let pull = text(container, &["imagePullPolicy"]);
    required_one_of(
        &format!("{field}.imagePullPolicy"),
        pull,
        PULL_POLICIES,
        errors,
    );
    resources::validate(&format!("{field}.resources"), container, errors);
    validate_security(&format!("{field}.securityContext"), container, errors);
}

fn validate_ports(field: &str, container: &Value, host_network: bool, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in items(container, &["ports"]).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = text(port, &["name"]);
        if !name.is_empty() {
            let name_field = format!("{field}.name");
            let complaints = names::port_name(name);
            if complaints.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(&name_field, name));
            }
            complain(&name_field, name, complaints, errors);
            seen.push(name);
        }
        let number = int_at(port, &["containerPort"]).unwrap_or_default();
        let number_field = format!("{field}.containerPort");
        if number == 0 {
            errors.push(FieldError::required(&number_field, ""));
        } else {
            complain(&number_field, number, names::port_number(number), errors);
        }
        let host_port = int_at(port, &["hostPort"]).unwrap_or_default();
        if host_port != 0 {
            let complaints = names::port_number(host_port);
            complain(&format!("{field}.hostPort"), host_port, complaints, errors);
        }
        if host_network && host_port != number {
            let detail = "must match `hostPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(&number_field, number, detail));
        }
        let host_ip = text(port, &["hostIP"]);
        if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(
                format_args!("{field}.hostIP"),
                host_ip,
                detail,
            ));
        }
        let protocol = text(port, &["protocol"]);
        required_one_of(&format!("{field}.protocol"), protocol, PROTOCOLS, errors);
    }
}

fn host_port_conflicts(
    field: &str,
    container: &Value,
    taken: &mut Vec<String>,
    errors: &mut Errors,
) {
    for (index, port) in items(container, &["ports"]).iter().enumerate() {
        let number = int_at(port, &["hostPort"]).unwrap_or_default();
        if number == 0 {
            continue;
        }
        let (protocol, ip) = (text(port, &["protocol"]), text(port, &["hostIP"]));
        let this = format!("{protocol}/{ip}/{number}");
        if taken.contains(&this) {
            errors.push(FieldError::duplicate(
                format_args!("{field}.ports[{index}].hostPort"),
                this,
            ));
        } else {
            taken.push(this);
        }
    }
}

fn validate_mounts(field: &str, spec: &Value, container: &Value, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, mount) in items(container, &["volumeMounts"]).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = text(mount, &["name"]);
        let known = items(spec, &["volumes"])
            .iter()
            .any(|v| text(v, &["name"]) == name);
        if name.is_empty() {
            errors.push(FieldError::required(format_args!("{field}.name"), ""));
        }
        if !known {
            errors.push(FieldError::not_found(format_args!("{field}.name"), name));
        }
        let path = text(mount, &["mountPath"]);
        let path_field = format!("{field}.mountPath");
        if path.is_empty() {
            errors.push(FieldError::required(&path_field, ""));
        }
        if seen.contains(&path) {
            errors.push(FieldError::invalid(&path_field, path, "must be unique"));
        }
        seen.push(path);
        let (sub, expression) = (text(mount, &["subPath"]), text(mount, &["subPathExpr"]));
        if !sub.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(
                format_args!("{field}.subPathExpr"),
                expression,
                detail,
            ));
        }
        for (key, value) in [("subPath", sub), ("subPathExpr", expression)] {
            local_path(&format!("{field}.{key}"), value, errors);
        }
        let propagation = text(mount, &["mountPropagation"]);
        let supported = &["Bidirectional", "HostToContainer", "None"];
        if !propagation.is_empty() {
            required_one_of(
                &format!("{field}.mountPropagation"),
                propagation,
                supported,
                errors,
            );
        }
    }
}

/// A path that stays below where it starts.
pub(super) fn local_path(field: &str, path: &str, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(field, path, "must be a relative path"));
    }
    no_backsteps(field, path, errors);
}

pub(super) fn no_backsteps(field: &str, path: &str, errors: &mut Errors) {
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
}

fn validate_security(field: &str, container: &Value, errors: &mut Errors) {
    let Some(security) = at(container, &["securityContext"]) else {
        return;
    };
    for key in ["runAsUser", "runAsGroup"] {
        super::user_id(&format!("{field}.{key}"), int_at(security, &[key]), errors);
    }
    let is = |key: &str, value: bool| at(security, &[key]) == Some(&Value::Bool(value));
    if is("allowPrivilegeEscalation", false) {
        if is("privileged", true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(field, security.clone(), detail));
        }
        let added = items(security, &["capabilities", "add"]);
        if added
            .iter()
            .any(|c| c == "CAP_SYS_ADMIN" || c == "SYS_ADMIN")
        {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(field, security.clone(), detail));
        }
    }
}
