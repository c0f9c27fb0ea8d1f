//! Services, Endpoints, EndpointSlices and NetworkPolicies.

use serde_json::{Map, Value};

use super::or;
use crate::object::{at, int_at, items, text};
use crate::selector::LabelSelector;

/// Elements shown before ` + N more...`.
const SHOWN: usize = 3;

fn abbreviated(list: &[String], none: &str) -> String {
    if list.is_empty() {
        return none.to_owned();
    }
    let shown = list.get(..SHOWN).unwrap_or(list).join(",");
    if list.len() > SHOWN {
        format!("{shown} + {} more...", list.len() - SHOWN)
    } else {
        shown
    }
}

pub(super) fn service(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let cluster_ip = items(object, &["spec", "clusterIPs"])
        .first()
        .and_then(Value::as_str)
        .unwrap_or_else(|| text(object, &["spec", "clusterIP"]));
    let empty = Map::new();
    let selector = at(object, &["spec", "selector"])
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let selector = LabelSelector::from_map(selector).to_string();
    vec![
        name,
        text(object, &["spec", "type"]).into(),
        or(cluster_ip, "<none>").into(),
        external_ip(object).into(),
        ports(object).into(),
        age,
        or(&selector, "<none>").into(),
    ]
}

fn external_ip(object: &Value) -> String {
    let external: Vec<&str> = items(object, &["spec", "externalIPs"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(object, &["spec", "type"]) {
        "ExternalName" => text(object, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = items(object, &["status", "loadBalancer", "ingress"])
                .iter()
                .map(|i| or(text(i, &["ip"]), text(i, &["hostname"])))
                .filter(|address| !address.is_empty())
                .collect();
            all.extend(external);
            or(&all.join(","), "<pending>").to_owned()
        }
        _ => or(&external.join(","), "<none>").to_owned(),
    }
}

fn ports(object: &Value) -> String {
    let ports: Vec<String> = items(object, &["spec", "ports"])
        .iter()
        .map(|port| {
            let number = int_at(port, &["port"]).unwrap_or_default();
            let protocol = text(port, &["protocol"]);
            match int_at(port, &["nodePort"]).unwrap_or_default() {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    or(&ports.join(","), "<none>").to_owned()
}

pub(super) fn endpoints(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let mut list = Vec::new();
    for subset in items(object, &["subsets"]) {
        let addresses = items(subset, &["addresses"])
            .iter()
            .map(|a| text(a, &["ip"]));
        let ports = items(subset, &["ports"]);
        if ports.is_empty() {
            list.extend(addresses.clone().map(str::to_owned));
        }
        for port in ports {
            let port = int_at(port, &["port"]).unwrap_or_default();
            list.extend(addresses.clone().map(|ip| join_host_port(ip, port)));
        }
    }
    vec![name, abbreviated(&list, "<none>").into(), age]
}

pub(super) fn policy(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let nothing = Value::Null;
    let selector = at(object, &["spec", "podSelector"]).unwrap_or(&nothing);
    let selector = LabelSelector::from_object(selector)
        .map_or_else(|_| "<error>".to_owned(), |s| s.to_string());
    vec![name, or(&selector, "<none>").into(), age]
}

fn join_host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

pub(super) fn endpoint_slice(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let ports: Vec<String> = items(object, &["ports"])
        .iter()
        .map(|p| int_at(p, &["port"]).map_or_else(|| "*".to_owned(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> = items(object, &["endpoints"])
        .iter()
        .flat_map(|e| items(e, &["addresses"]))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        name,
        text(object, &["addressType"]).into(),
        abbreviated(&ports, "<unset>").into(),
        abbreviated(&addresses, "<unset>").into(),
        age,
    ]
}
