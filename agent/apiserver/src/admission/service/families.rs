//! Which families of addresses a Service has, given those of the cluster. Pure.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use skiff_api::validation::FieldError;

use crate::object::{self, at, text};

/// What a Service of one family may not have.
const SINGLE: &str = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";

pub(super) fn name(cidr: &IpNetwork) -> &'static str {
    if cidr.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn list(service: &Value, key: &str) -> Vec<String> {
    let list = at(service, &["spec", key]).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// The Service's families.
pub(super) fn of(service: &Value) -> Vec<String> {
    list(service, "ipFamilies")
}

fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> String {
    let other = if family == "IPv4" { "IPv6" } else { "IPv4" };
    other.to_owned()
}

/// Fills in `ipFamilies` and `ipFamilyPolicy`, by the same steps as upstream. `ranges` are the cluster's, of its first family
/// first.
pub(super) fn settle(
    ranges: &[IpNetwork],
    old: Option<&Value>,
    service: &mut Value,
) -> Result<(), Vec<FieldError>> {
    if text(service, &["spec", "type"]) == "ExternalName" || is_settled(old, service) {
        return Ok(());
    }
    let policy = text(service, &["spec", "ipFamilyPolicy"]).to_owned();
    let ips = list(service, "clusterIPs");
    let mut families = of(service);
    let configured = |family: &str| ranges.iter().any(|cidr| name(cidr) == family);
    let mut errors = Vec::new();
    let shown = at(service, &["spec", "ipFamilyPolicy"]).cloned();
    let shown = shown.unwrap_or_default();
    let wrong_policy = |why: String| FieldError::invalid("spec.ipFamilyPolicy", shown.clone(), why);
    let headless = ips.first().is_some_and(|ip| ip == "None");
    if matches!(policy.as_str(), "" | "SingleStack") {
        if ips.len() > 1 {
            errors.push(wrong_policy(format!("{SINGLE} cluster IPs are specified")));
        }
        if families.len() > 1 {
            errors.push(wrong_policy(format!("{SINGLE} IP families are specified")));
        }
    }
    for (index, ip) in ips.iter().enumerate().skip(families.len()) {
        let family = family_of(ip);
        if headless {
            break;
        }
        if configured(family) {
            families.push(family.to_owned());
        } else {
            let field = format!("spec.clusterIPs[{index}]");
            let why = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(field, json!(ips), why));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let first = ranges.first().map_or("IPv4", name);
    let selects = at(service, &["spec", "selector"])
        .and_then(Value::as_object)
        .is_some_and(|selector| !selector.is_empty());
    if headless && !selects {
        // Whoever writes the endpoints knows which families there are.
        let policy = if policy.is_empty() {
            "RequireDualStack"
        } else {
            &policy
        };
        fill(&mut families, first, policy != "SingleStack");
        set(service, &families, policy);
        return Ok(());
    }
    if policy == "RequireDualStack" && ranges.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(wrong_policy(why.to_owned()));
    }
    for (index, family) in families.iter().enumerate() {
        if !configured(family) {
            let field = format!("spec.ipFamilies[{index}]");
            let why = "not configured on this cluster";
            errors.push(FieldError::invalid(field, family.as_str(), why));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let policy = if policy.is_empty() {
        "SingleStack"
    } else {
        &policy
    };
    fill(
        &mut families,
        first,
        policy != "SingleStack" && ranges.len() > 1,
    );
    set(service, &families, policy);
    Ok(())
}

/// An update does not change the families of a Service that prefers two only because the cluster has others now.
fn is_settled(old: Option<&Value>, new: &Value) -> bool {
    let prefers = |service| text(service, &["spec", "ipFamilyPolicy"]) == "PreferDualStack";
    old.is_some_and(|old| {
        text(old, &["spec", "type"]) != "ExternalName"
            && prefers(old)
            && prefers(new)
            && of(old) == of(new)
            && list(old, "clusterIPs") == list(new, "clusterIPs")
    })
}

fn fill(families: &mut Vec<String>, first: &str, both: bool) {
    if families.is_empty() {
        families.push(first.to_owned());
    }
    if let [one] = families.as_slice()
        && both
    {
        families.push(other(one));
    }
}

fn set(service: &mut Value, families: &[String], policy: &str) {
    let spec = object::section(service, "spec");
    spec.insert("ipFamilies".to_owned(), json!(families));
    spec.insert("ipFamilyPolicy".to_owned(), json!(policy));
}
