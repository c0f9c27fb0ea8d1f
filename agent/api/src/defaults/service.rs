//! Defaults of Services, but for what has to be allocated or depends on the cluster (cluster IPs, families, node ports).

use serde_json::{Value, json};

use super::{default_protocol, each};
use crate::object::{ensure_map, items, set_default, set_default_zero, text};

pub(super) fn service(object: &mut Value) {
    let Some(spec) = ensure_map(object, &["spec"]) else {
        return;
    };
    set_default_zero(spec, "sessionAffinity", "None");
    set_default_zero(spec, "type", "ClusterIP");
    if spec.get("sessionAffinity").is_some_and(|a| a == "ClientIP") {
        if let Some(client) = ensure_map(object, &["spec", "sessionAffinityConfig", "clientIP"]) {
            set_default(client, "timeoutSeconds", 10800);
        }
    } else {
        spec.remove("sessionAffinityConfig");
    }
    if let Some(spec) = object.get_mut("spec") {
        each(spec, "ports", |port| {
            default_protocol(port);
            default_target_port(port);
        });
    }
    traffic_policies(object);
    if let Some(status) = ensure_map(object, &["status"]) {
        set_default(status, "loadBalancer", json!({}));
    }
}

fn default_target_port(port: &mut Value) {
    let number = port.get("port").cloned().unwrap_or_default();
    if let Some(port) = port.as_object_mut() {
        set_default_zero(port, "targetPort", number);
    }
}

fn traffic_policies(object: &mut Value) {
    let kind = text(object, &["spec", "type"]).to_owned();
    let external_ips = !items(object, &["spec", "externalIPs"]).is_empty();
    let Some(spec) = ensure_map(object, &["spec"]) else {
        return;
    };
    let balancer = kind == "LoadBalancer";
    if balancer || kind == "NodePort" || (kind == "ClusterIP" && external_ips) {
        set_default_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        set_default_zero(spec, "internalTrafficPolicy", "Cluster");
    }
    if balancer {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
}
