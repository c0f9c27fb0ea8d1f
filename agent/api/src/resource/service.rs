//! What a create or an update of a Service may leave out, and what a change of its type takes away.

use serde_json::{Value, json};

use super::strategy::{keep_in, same};
use crate::object::{at, ensure_map, int_at, items, text};

/// Whether a Service of this type has a cluster IP / node ports.
fn service_type_has(service: &Value) -> (bool, bool) {
    match text(service, &["spec", "type"]) {
        "ExternalName" => (false, false),
        "NodePort" => (true, true),
        "LoadBalancer" => {
            let allocate = at(service, &["spec", "allocateLoadBalancerNodePorts"]);
            (true, allocate.and_then(Value::as_bool).unwrap_or(true))
        }
        _ => (true, false),
    }
}

/// An update that leaves out allocated values keeps them; one that changes the type loses those that the
/// new type does not have.
pub(super) fn prepare_for_update(new: &mut Value, old: &Value) {
    follow_cluster_ip(new, old);
    let (needs_ip, needs_ports) = service_type_has(new);
    let (had_ip, had_ports) = service_type_has(old);
    if needs_ip && had_ip {
        keep_addresses(new, old);
        give_second_family_back(new, old);
    }
    if needs_ports && had_ports {
        keep_node_ports(new, old);
    }
    if needs_health_check(new)
        && needs_health_check(old)
        && int_at(new, &["spec", "healthCheckNodePort"]).unwrap_or_default() == 0
    {
        keep_in(new, old, "spec", "healthCheckNodePort");
    }
    if !needs_ip && had_ip {
        for key in ["clusterIP", "clusterIPs"] {
            if at(new, &["spec", key]) == at(old, &["spec", key]) {
                remove_in_spec(new, key);
            }
        }
    }
    if !needs_ports && had_ports {
        drop_unchanged_node_ports(new, old);
    }
    drop_fields_of_other_types(new);
}

/// Fills `clusterIPs` for clients that know `clusterIP` only.
pub(super) fn prepare_for_create(service: &mut Value) {
    let ip = text(service, &["spec", "clusterIP"]).to_owned();
    if !ip.is_empty() && items(service, &["spec", "clusterIPs"]).is_empty() {
        set_in_spec(service, "clusterIPs", json!([ip]));
    }
    if text(service, &["spec", "type"]) != "ExternalName" {
        remove_in_spec(service, "externalName");
    }
}

/// Whether the type and the policy ask for a port on which nodes tell a load balancer that they have endpoints.
pub(crate) fn needs_health_check(service: &Value) -> bool {
    text(service, &["spec", "type"]) == "LoadBalancer"
        && text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

/// A client that knows `clusterIP` only, and clears or changes it, means the list too.
fn follow_cluster_ip(new: &mut Value, old: &Value) {
    let before = text(old, &["spec", "clusterIP"]).to_owned();
    let after = text(new, &["spec", "clusterIP"]).to_owned();
    let (list, list_before) = (
        at(new, &["spec", "clusterIPs"]),
        at(old, &["spec", "clusterIPs"]),
    );
    let says_nothing = same(list, None) || same(list, list_before);
    if before == after || !says_nothing {
        return;
    }
    if after.is_empty() {
        remove_in_spec(new, "clusterIPs");
    } else {
        set_in_spec(new, "clusterIPs", json!([after]));
    }
}

/// An update that says nothing of addresses and families leaves them as they are.
fn keep_addresses(new: &mut Value, old: &Value) {
    if text(new, &["spec", "clusterIP"]).is_empty() {
        keep_in(new, old, "spec", "clusterIP");
    }
    let same_ip = text(new, &["spec", "clusterIP"]) == text(old, &["spec", "clusterIP"]);
    if items(new, &["spec", "clusterIPs"]).is_empty() && same_ip {
        keep_in(new, old, "spec", "clusterIPs");
    }
    if items(new, &["spec", "ipFamilies"]).is_empty() && same_ip {
        keep_in(new, old, "spec", "ipFamilies");
    }
    if text(new, &["spec", "ipFamilyPolicy"]).is_empty() {
        keep_in(new, old, "spec", "ipFamilyPolicy");
    }
}

/// Who changes the policy to `SingleStack`, and nothing else, gives the second address and family back.
fn give_second_family_back(new: &mut Value, old: &Value) {
    let single = |service| text(service, &["spec", "ipFamilyPolicy"]) == "SingleStack";
    if !single(new) || single(old) {
        return;
    }
    for key in ["clusterIPs", "ipFamilies"] {
        let list = items(new, &["spec", key]);
        if let [first, _] = list
            && list == items(old, &["spec", key])
        {
            let first = first.clone();
            set_in_spec(new, key, json!([first]));
        }
    }
}

fn set_in_spec(service: &mut Value, key: &str, value: Value) {
    if let Some(spec) = ensure_map(service, &["spec"]) {
        spec.insert(key.to_owned(), value);
    }
}

fn remove_in_spec(service: &mut Value, key: &str) {
    if let Some(spec) = ensure_map(service, &["spec"]) {
        spec.remove(key);
    }
}

fn port_identity(port: &Value) -> (i64, &str) {
    (
        int_at(port, &["port"]).unwrap_or_default(),
        text(port, &["protocol"]),
    )
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// A port without a node port keeps the one that the same port had, unless another one asks for it.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let taken: Vec<(i64, String)> = items(new, &["spec", "ports"])
        .iter()
        .filter_map(|p| Some((int_at(p, &["nodePort"])?, text(p, &["protocol"]).to_owned())))
        .collect();
    for port in ports_mut(new) {
        if int_at(port, &["nodePort"]).unwrap_or_default() != 0 {
            continue;
        }
        let before = items(old, &["spec", "ports"])
            .iter()
            .find(|p| port_identity(p) == port_identity(port))
            .and_then(|p| int_at(p, &["nodePort"]));
        let (Some(node_port), Some(map)) = (before, port.as_object_mut()) else {
            continue;
        };
        let protocol = map
            .get("protocol")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !taken.iter().any(|(n, p)| *n == node_port && p == protocol) {
            map.insert("nodePort".to_owned(), node_port.into());
        }
    }
}

fn drop_unchanged_node_ports(new: &mut Value, old: &Value) {
    let before: Vec<i64> = items(old, &["spec", "ports"])
        .iter()
        .filter_map(|p| int_at(p, &["nodePort"]))
        .collect();
    for port in ports_mut(new) {
        let unchanged = int_at(port, &["nodePort"]).is_some_and(|n| before.contains(&n));
        if let (true, Some(map)) = (unchanged, port.as_object_mut()) {
            map.remove("nodePort");
        }
    }
}

/// Fields that say nothing for the Service's new type, which upstream drops silently in an update.
fn drop_fields_of_other_types(service: &mut Value) {
    let kind = text(service, &["spec", "type"]).to_owned();
    if kind != "LoadBalancer" {
        remove_in_spec(service, "allocateLoadBalancerNodePorts");
        remove_in_spec(service, "loadBalancerClass");
    }
    if kind == "ExternalName" {
        for key in ["internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy"] {
            remove_in_spec(service, key);
        }
    } else {
        remove_in_spec(service, "externalName");
    }
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || !items(service, &["spec", "externalIPs"]).is_empty();
    if !external {
        remove_in_spec(service, "externalTrafficPolicy");
    }
    if !needs_health_check(service) {
        remove_in_spec(service, "healthCheckNodePort");
    }
}
