//! Rules for Pods and pod templates.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    Check, Errors, FieldError, complain, label_selector, labels, names, not_negative, one_of,
    required_one_of,
};
use crate::object::{at, entries, int_at, items, text};
use crate::quantity::Quantity;

mod container;
mod env;
mod probe;
mod resources;
mod update;
mod volume;

pub(super) use update::{validate_status_update, validate_update};

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let empty = Value::Object(serde_json::Map::new());
    validate_spec("spec", at(object, &["spec"]).unwrap_or(&empty), errors);
}

pub(super) fn validate_spec(field: &str, spec: &Value, errors: &mut Errors) {
    volume::validate(&format!("{field}.volumes"), spec, errors);
    container::validate_all(field, spec, errors);
    let policy = text(spec, &["restartPolicy"]);
    required_one_of(
        &format!("{field}.restartPolicy"),
        policy,
        RESTART_POLICIES,
        errors,
    );
    validate_dns(field, spec, errors);
    labels(
        &format!("{field}.nodeSelector"),
        spec,
        &["nodeSelector"],
        errors,
    );
    validate_names(field, spec, errors);
    if let Some(seconds) = int_at(spec, &["activeDeadlineSeconds"])
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(
            format_args!("{field}.activeDeadlineSeconds"),
            seconds,
            detail,
        ));
    }
    let grace = int_at(spec, &["terminationGracePeriodSeconds"]);
    not_negative(
        &format!("{field}.terminationGracePeriodSeconds"),
        grace,
        errors,
    );
    for (index, toleration) in items(spec, &["tolerations"]).iter().enumerate() {
        validate_toleration(&format!("{field}.tolerations[{index}]"), toleration, errors);
    }
    for (index, alias) in items(spec, &["hostAliases"]).iter().enumerate() {
        let field = format!("{field}.hostAliases[{index}]");
        let ip = text(alias, &["ip"]);
        if ip.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(format_args!("{field}.ip"), ip, detail));
        }
        for host in items(alias, &["hostnames"]) {
            let host = host.as_str().unwrap_or_default();
            let complaints = names::dns1123_subdomain(host);
            complain(&format!("{field}.hostnames"), host, complaints, errors);
        }
    }
    validate_affinity(&format!("{field}.affinity"), spec, errors);
    validate_spread(&format!("{field}.topologySpreadConstraints"), spec, errors);
    validate_security(field, spec, errors);
}

fn validate_dns(field: &str, spec: &Value, errors: &mut Errors) {
    let policy = text(spec, &["dnsPolicy"]);
    required_one_of(&format!("{field}.dnsPolicy"), policy, DNS_POLICIES, errors);
    let servers = items(spec, &["dnsConfig", "nameservers"]);
    let servers_field = format!("{field}.dnsConfig.nameservers");
    if policy == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(&servers_field, detail));
    }
    super::endpoints::too_many(&servers_field, servers.len(), 3, errors);
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        if server.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(
                format_args!("{servers_field}[{index}]"),
                server,
                detail,
            ));
        }
    }
    for (index, search) in items(spec, &["dnsConfig", "searches"]).iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        let name = search.strip_suffix('.').unwrap_or(search);
        // Upstream lets underscores pass here, and the root alone.
        if !name.is_empty() {
            let complaints = names::dns1123_subdomain(&name.replace('_', "-"));
            complain(
                &format!("{field}.dnsConfig.searches[{index}]"),
                search,
                complaints,
                errors,
            );
        }
    }
    for (index, option) in items(spec, &["dnsConfig", "options"]).iter().enumerate() {
        if text(option, &["name"]).is_empty() {
            let detail = "must not be empty";
            errors.push(FieldError::required(
                format_args!("{field}.dnsConfig.options[{index}]"),
                detail,
            ));
        }
    }
}

fn validate_names(field: &str, spec: &Value, errors: &mut Errors) {
    let checks: [(&str, Check); 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    for (key, check) in checks {
        let value = text(spec, &[key]);
        if !value.is_empty() {
            complain(&format!("{field}.{key}"), value, check(value), errors);
        }
    }
    let scheduler = text(spec, &["schedulerName"]);
    let complaints = names::qualified_name(scheduler);
    if !scheduler.is_empty() {
        complain(
            &format!("{field}.schedulerName"),
            scheduler,
            complaints,
            errors,
        );
    }
}

fn validate_toleration(field: &str, toleration: &Value, errors: &mut Errors) {
    let get = |key: &str| text(toleration, &[key]);
    let (key, operator, value, effect) = (get("key"), get("operator"), get("value"), get("effect"));
    if key.is_empty() {
        if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(
                format_args!("{field}.operator"),
                operator,
                detail,
            ));
        }
    } else {
        complain(
            &format!("{field}.key"),
            key,
            names::qualified_name(key),
            errors,
        );
    }
    if at(toleration, &["tolerationSeconds"]).is_some() && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(
            format_args!("{field}.effect"),
            effect,
            detail,
        ));
    }
    match operator {
        "" | "Equal" => {
            complain(
                &format!("{field}.operator"),
                value,
                names::label_value(value),
                errors,
            );
        }
        "Exists" if value.is_empty() => {}
        "Exists" => {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(
                format_args!("{field}.operator"),
                toleration.clone(),
                detail,
            ));
        }
        _ => one_of(
            &format!("{field}.operator"),
            operator,
            &["Equal", "Exists"],
            errors,
        ),
    }
    if !effect.is_empty() {
        one_of(&format!("{field}.effect"), effect, EFFECTS, errors);
    }
}

fn validate_affinity(field: &str, spec: &Value, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(required) = at(spec, &["affinity", "nodeAffinity", REQUIRED]) {
        let field = format!("{field}.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
        let terms = items(required, &["nodeSelectorTerms"]);
        if terms.is_empty() {
            let detail = "must have at least one node selector term";
            errors.push(FieldError::required(&field, detail));
        }
        for (index, term) in terms.iter().enumerate() {
            node_selector_term(&format!("{field}[{index}]"), term, errors);
        }
    }
    for (index, preferred) in items(spec, &["affinity", "nodeAffinity", PREFERRED])
        .iter()
        .enumerate()
    {
        let field = format!("{field}.nodeAffinity.{PREFERRED}[{index}]");
        weight(&field, preferred, errors);
        if let Some(term) = at(preferred, &["preference"]) {
            node_selector_term(&format!("{field}.preference"), term, errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (index, term) in items(spec, &["affinity", kind, REQUIRED])
            .iter()
            .enumerate()
        {
            pod_affinity_term(&format!("{field}.{kind}.{REQUIRED}[{index}]"), term, errors);
        }
        for (index, preferred) in items(spec, &["affinity", kind, PREFERRED])
            .iter()
            .enumerate()
        {
            let field = format!("{field}.{kind}.{PREFERRED}[{index}]");
            weight(&field, preferred, errors);
            if let Some(term) = at(preferred, &["podAffinityTerm"]) {
                pod_affinity_term(&format!("{field}.podAffinityTerm"), term, errors);
            }
        }
    }
}

fn weight(field: &str, term: &Value, errors: &mut Errors) {
    let weight = int_at(term, &["weight"]).unwrap_or_default();
    if !(1..=100).contains(&weight) {
        let detail = "must be in the range 1-100";
        errors.push(FieldError::invalid(
            format_args!("{field}.weight"),
            weight,
            detail,
        ));
    }
}

fn node_selector_term(field: &str, term: &Value, errors: &mut Errors) {
    for list in ["matchExpressions", "matchFields"] {
        for (index, expression) in items(term, &[list]).iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            let values = items(expression, &["values"]);
            match text(expression, &["operator"]) {
                "In" | "NotIn" if values.is_empty() => {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(format_args!("{field}.values"), detail));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let detail =
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(
                        format_args!("{field}.values"),
                        detail,
                    ));
                }
                "Gt" | "Lt" if values.len() != 1 => {
                    let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.push(FieldError::required(format_args!("{field}.values"), detail));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => {
                    let detail = "not a valid selector operator";
                    errors.push(FieldError::invalid(
                        format_args!("{field}.operator"),
                        other,
                        detail,
                    ));
                }
            }
            let key = text(expression, &["key"]);
            complain(
                &format!("{field}.key"),
                key,
                names::qualified_name(key),
                errors,
            );
        }
    }
}

fn pod_affinity_term(field: &str, term: &Value, errors: &mut Errors) {
    if let Some(selector) = at(term, &["labelSelector"]) {
        label_selector(&format!("{field}.labelSelector"), selector, errors);
    }
    let key = text(term, &["topologyKey"]);
    if key.is_empty() {
        let detail = "can not be empty";
        errors.push(FieldError::required(
            format_args!("{field}.topologyKey"),
            detail,
        ));
    } else {
        complain(
            &format!("{field}.topologyKey"),
            key,
            names::qualified_name(key),
            errors,
        );
    }
}

fn validate_spread(field: &str, spec: &Value, errors: &mut Errors) {
    for (index, constraint) in items(spec, &["topologySpreadConstraints"])
        .iter()
        .enumerate()
    {
        let field = format!("{field}[{index}]");
        let skew = int_at(constraint, &["maxSkew"]).unwrap_or_default();
        if skew <= 0 {
            let detail = "must be greater than zero";
            errors.push(FieldError::invalid(
                format_args!("{field}.maxSkew"),
                skew,
                detail,
            ));
        }
        let key = text(constraint, &["topologyKey"]);
        if key.is_empty() {
            let detail = "can not be empty";
            errors.push(FieldError::required(
                format_args!("{field}.topologyKey"),
                detail,
            ));
        } else {
            complain(
                &format!("{field}.topologyKey"),
                key,
                names::qualified_name(key),
                errors,
            );
        }
        let otherwise = text(constraint, &["whenUnsatisfiable"]);
        let supported = &["DoNotSchedule", "ScheduleAnyway"];
        one_of(
            &format!("{field}.whenUnsatisfiable"),
            otherwise,
            supported,
            errors,
        );
        if let Some(selector) = at(constraint, &["labelSelector"]) {
            label_selector(&format!("{field}.labelSelector"), selector, errors);
        }
    }
}

fn validate_security(field: &str, spec: &Value, errors: &mut Errors) {
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        let field = format!("{field}.securityContext.{key}");
        user_id(&field, int_at(spec, &["securityContext", key]), errors);
    }
    for (index, gid) in items(spec, &["securityContext", "supplementalGroups"])
        .iter()
        .enumerate()
    {
        let field = format!("{field}.securityContext.supplementalGroups[{index}]");
        user_id(&field, gid.as_i64(), errors);
    }
}

fn user_id(field: &str, id: Option<i64>, errors: &mut Errors) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(field, id, detail));
    }
}

/// The Pod's quality of service class: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn quality_of_service(pod: &Value) -> &'static str {
    let mut nothing = true;
    let mut guaranteed = true;
    for list in ["containers", "initContainers"] {
        for container in items(pod, &["spec", list]) {
            let amount = |which: &str, name: &str| {
                let text = text(container, &["resources", which, name]);
                Quantity::parse(text).ok().filter(|q| !q.is_zero())
            };
            for name in ["cpu", "memory"] {
                let (request, limit) = (amount("requests", name), amount("limits", name));
                nothing &= request.is_none() && limit.is_none();
                guaranteed &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
    }
    match (nothing, guaranteed) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

/// Keys of a map of quantities with what they stand for; malformed ones never pass decoding.
fn quantities<'a>(
    object: &'a Value,
    path: &[&str],
) -> impl Iterator<Item = (&'a str, &'a str, Quantity)> {
    entries(object, path).filter_map(|(name, value)| {
        let text = value.as_str()?;
        Some((name, text, Quantity::parse(text).ok()?))
    })
}
