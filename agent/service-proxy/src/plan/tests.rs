use std::collections::BTreeSet;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};

use super::*;

const NODE: &str = "node-1";

fn service(spec: &Value) -> (ServiceName, Option<ServiceInfo>) {
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.7"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}, {"hostname": "lb.example"},
    ]}});
    let load_balancer = spec["type"] == "LoadBalancer";
    let object: Service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "dev", "name": "web"},
        "spec": spec, "status": if load_balancer { status } else { json!({}) },
    }))
    .unwrap();
    (ServiceName::new("dev", "web"), ServiceInfo::of(&object))
}

/// Address, node, and the conditions ready, serving, terminating.
type Point = (&'static str, &'static str, [Option<bool>; 3]);

const READY: [Option<bool>; 3] = [Some(true), Some(true), Some(false)];
const STARTING: [Option<bool>; 3] = [Some(false), Some(false), Some(false)];
const LEAVING: [Option<bool>; 3] = [Some(false), Some(true), Some(true)];
const GONE: [Option<bool>; 3] = [Some(false), Some(false), Some(true)];
const UNKNOWN: [Option<bool>; 3] = [None, None, None];

fn slice(port: &Value, points: &[Point]) -> SliceInfo {
    let endpoints: Vec<Value> = points
        .iter()
        .map(|(addr, node, [ready, serving, terminating])| {
            json!({"addresses": [addr], "nodeName": node, "conditions":
                {"ready": ready, "serving": serving, "terminating": terminating}})
        })
        .collect();
    let object: EndpointSlice = serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "dev", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [port], "endpoints": endpoints,
    }))
    .unwrap();
    SliceInfo::of(&object, NODE).unwrap()
}

fn plan(spec: &Value, slices: &[SliceInfo]) -> ServicePlan {
    let (name, info) = service(spec);
    plan_service(&name, &info.unwrap(), slices.iter(), None)
}

fn cluster_ip() -> Value {
    json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80, "targetPort": 8080}]})
}

fn members(plan: &ServicePlan, number: usize) -> Vec<String> {
    plan.sets[number]
        .1
        .iter()
        .map(|backend| format!("{}:{}", backend.addr, backend.port))
        .collect()
}

fn frontends(plan: &ServicePlan) -> BTreeSet<String> {
    plan.frontends
        .iter()
        .map(|(frontend, _)| frontend.to_string())
        .collect()
}

fn texts<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn ready_endpoints_are_used_and_others_only_if_they_still_serve_and_nothing_is_ready() {
    let port = json!({"port": 8080});
    let cases: [(&str, &[Point], &[&str]); 6] = [
        (
            "ready",
            &[("10.0.0.1", "n", READY), ("10.0.0.2", "n", STARTING)],
            &["10.0.0.1:8080"],
        ),
        (
            "unknown is ready",
            &[("10.0.0.1", "n", UNKNOWN)],
            &["10.0.0.1:8080"],
        ),
        (
            "ready wins",
            &[("10.0.0.1", "n", LEAVING), ("10.0.0.2", "n", READY)],
            &["10.0.0.2:8080"],
        ),
        (
            "all leaving",
            &[("10.0.0.1", "n", LEAVING), ("10.0.0.2", "n", GONE)],
            &["10.0.0.1:8080"],
        ),
        (
            "nothing",
            &[("10.0.0.1", "n", STARTING), ("10.0.0.2", "n", GONE)],
            &[],
        ),
        ("no endpoints", &[], &[]),
    ];
    for (name, points, expected) in cases {
        let plan = plan(&cluster_ip(), &[slice(&port, points)]);
        assert_eq!(members(&plan, 0), expected, "{name}");
        assert_eq!(frontends(&plan), texts(["10.96.0.5:80/Tcp"]), "{name}");
    }
}

#[test]
fn publish_not_ready_addresses_is_left_to_the_controller_which_says_ready() {
    let mut spec = cluster_ip();
    spec["publishNotReadyAddresses"] = json!(true);
    let plan = plan(
        &spec,
        &[slice(&json!({"port": 1}), &[("10.0.0.1", "n", STARTING)])],
    );
    assert_eq!(members(&plan, 0), [""; 0]);
}

#[test]
fn ports_find_their_targets_by_name_and_protocol() {
    let spec = json!({"clusterIP": "10.96.0.5", "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "odd", "port": 54, "protocol": "SCTP"},
    ]});
    let slices = [
        slice(
            &json!({"name": "dns", "port": 5353, "protocol": "UDP"}),
            &[("10.0.0.1", "n", READY)],
        ),
        slice(
            &json!({"name": "dns-tcp", "port": 5354}),
            &[("10.0.0.1", "n", READY)],
        ),
        slice(
            &json!({"name": "dns", "port": 9, "protocol": "TCP"}),
            &[("10.0.0.9", "n", READY)],
        ),
    ];
    let plan = plan(&spec, &slices);
    assert_eq!(
        frontends(&plan),
        texts(["10.96.0.5:53/Tcp", "10.96.0.5:53/Udp"])
    );
    assert_eq!(members(&plan, 0), ["10.0.0.1:5353"]);
    assert_eq!(members(&plan, 1), ["10.0.0.1:5354"]);
    assert_ne!(plan.sets[0].0, plan.sets[1].0);
}

#[test]
fn an_endpoint_in_two_slices_is_used_once_and_is_ready_if_one_says_so() {
    let port = json!({"port": 1});
    let slices = [
        slice(
            &port,
            &[("10.0.0.1", "n", STARTING), ("10.0.0.2", "n", READY)],
        ),
        slice(&port, &[("10.0.0.1", "n", READY), ("10.0.0.2", "n", READY)]),
    ];
    assert_eq!(
        members(&plan(&cluster_ip(), &slices), 0),
        ["10.0.0.1:1", "10.0.0.2:1"]
    );
}

#[test]
fn a_load_balancer_has_all_kinds_of_frontends() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5", "fd00::5"], "externalIPs": ["198.51.100.1"],
        "ports": [{"port": 80, "nodePort": 30080}]});
    let expected = texts([
        "10.96.0.5:80/Tcp",
        "198.51.100.1:80/Tcp",
        "203.0.113.7:80/Tcp",
        "[fd00::5]:80/Tcp",
        "node-V4:30080/Tcp",
        "node-V6:30080/Tcp",
    ]);
    assert_eq!(frontends(&plan(&spec, &[])), expected);
}

#[test]
fn traffic_policies_choose_the_set() {
    let mut spec = json!({"type": "NodePort", "clusterIP": "10.96.0.5",
        "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}]});
    let slices = [slice(
        &json!({"port": 1}),
        &[("10.0.0.1", "other", READY), ("10.0.0.2", NODE, READY)],
    )];
    let (one, all): (&[&str], &[&str]) = (&["10.0.0.2:1"], &["10.0.0.1:1", "10.0.0.2:1"]);
    let of = |plan: &ServicePlan, id: SetId| {
        let place = plan.sets.iter().position(|(set, _)| *set == id);
        members(plan, place.unwrap())
    };
    for (policy, expected) in [("Local", one), ("Cluster", all)] {
        spec["internalTrafficPolicy"] = json!(policy);
        spec["externalTrafficPolicy"] = json!(policy);
        let plan = plan(&spec, &slices);
        let [(_, internal), (_, external)] = &plan.frontends[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(of(&plan, internal.inside), expected, "{policy}");
        assert_eq!((internal.outside, internal.local_only), (None, false));
        assert_eq!(external.local_only, policy == "Local");
        // Clients on the node reach external addresses by all endpoints, whatever the policy.
        assert_eq!(of(&plan, external.inside), all, "{policy}");
        assert_eq!(of(&plan, external.outside.unwrap()), expected, "{policy}");
    }
}

#[test]
fn only_ports_that_are_open_to_the_outside_have_a_set_for_it() {
    let slices = [slice(&json!({"port": 1}), &[("10.0.0.1", NODE, READY)])];
    assert_eq!(plan(&cluster_ip(), &slices).sets.len(), 1);
    let mut spec = cluster_ip();
    spec["externalIPs"] = json!(["198.51.100.1"]);
    assert_eq!(plan(&spec, &slices).sets.len(), 2);
    // Not for an address of the other family.
    spec["externalIPs"] = json!(["2001:db8::1"]);
    assert_eq!(plan(&spec, &slices).sets.len(), 1);
}

#[test]
fn session_affinity_has_upstreams_default_timeout() {
    let mut spec = cluster_ip();
    let seconds = |spec: &Value| plan(spec, &[]).frontends[0].1.affinity_seconds;
    assert_eq!(seconds(&spec), 0);
    spec["sessionAffinity"] = json!("ClientIP");
    assert_eq!(seconds(&spec), 10_800);
    spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 5}});
    assert_eq!(seconds(&spec), 5);
}

#[test]
fn services_without_an_address_have_no_frontend() {
    let ports = json!([{"port": 80}]);
    for spec in [
        json!({"clusterIP": "None", "ports": ports}),
        json!({"clusterIP": "", "ports": ports}),
        json!({"type": "ExternalName", "externalName": "example.org", "ports": ports}),
    ] {
        assert_eq!(service(&spec).1, None, "{spec}");
    }
}

#[test]
fn the_whole_tables_are_the_sum_of_the_services() {
    let (name, info) = service(&cluster_ip());
    let slice = slice(&json!({"port": 1}), &[("10.0.0.1", "n", READY)]);
    let info = info.unwrap();
    let tables = plan_tables([(&name, &info)], [("web-1", &slice)]);
    let alone = plan(&cluster_ip(), std::slice::from_ref(&slice));
    assert_eq!(tables.sets, alone.sets.into_iter().collect());
    assert_eq!(tables.frontends, alone.frontends.into_iter().collect());
}

/// Addresses of the endpoints that a node in zone "a" uses. Each has its conditions, the zones and the nodes that it is meant for.
fn near(points: &[([Option<bool>; 3], &str, &str)], zone: Option<&str>) -> Vec<String> {
    let names = |list: &str| -> Vec<Value> {
        let names = list.split_whitespace();
        names.map(|name| json!({"name": name})).collect()
    };
    let endpoints: Vec<Value> = points
        .iter()
        .enumerate()
        .map(|(number, ([ready, serving, terminating], zones, nodes))| {
            json!({"addresses": [format!("10.0.0.{number}")],
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "hints": {"forZones": names(zones), "forNodes": names(nodes)}})
        })
        .collect();
    let object: EndpointSlice = serde_json::from_value(json!({
        "addressType": "IPv4", "ports": [{"port": 1}], "endpoints": endpoints,
        "metadata": {"namespace": "dev", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
    }))
    .unwrap();
    let (name, info) = service(&cluster_ip());
    let slice = SliceInfo::of(&object, NODE).unwrap();
    let plan = plan_service(&name, &info.unwrap(), [&slice].into_iter(), zone);
    let last = |addr: &IpAddr| addr.to_string().replace("10.0.0.", "");
    plan.sets[0].1.iter().map(|b| last(&b.addr)).collect()
}

/// Name, the endpoints, and who is used by a node in zone "a".
type HintCase = (
    &'static str,
    &'static [([Option<bool>; 3], &'static str, &'static str)],
    &'static [&'static str],
);

#[test]
fn hints_are_followed_only_if_all_ready_endpoints_have_them_and_one_is_meant_for_us() {
    let cases: [HintCase; 10] = [
        (
            "ours and another's",
            &[(READY, "a", ""), (READY, "b", "")],
            &["0"],
        ),
        (
            "several zones",
            &[(READY, "b a", ""), (READY, "a", ""), (READY, "b", "")],
            &["0", "1"],
        ),
        (
            "one without",
            &[(READY, "a", ""), (READY, "", "")],
            &["0", "1"],
        ),
        (
            "none for us",
            &[(READY, "b", ""), (READY, "c", "")],
            &["0", "1"],
        ),
        (
            "one without, but not ready",
            &[(READY, "a", ""), (STARTING, "", ""), (READY, "b", "")],
            &["0"],
        ),
        (
            "the only one for us is not ready",
            &[(STARTING, "a", ""), (READY, "b", "")],
            &["1"],
        ),
        (
            "none ready: the last resort knows no zones",
            &[(LEAVING, "b", ""), (LEAVING, "a", "")],
            &["0", "1"],
        ),
        (
            "the node before the zone",
            &[
                (READY, "a", NODE),
                (READY, "a", "other"),
                (READY, "b", "other"),
            ],
            &["0"],
        ),
        (
            "no endpoint for the node: the zone",
            &[(READY, "a", "other"), (READY, "b", "another")],
            &["0"],
        ),
        (
            "one without a node: the zone",
            &[(READY, "a", NODE), (READY, "a", ""), (READY, "b", NODE)],
            &["0", "1"],
        ),
    ];
    for (name, points, expected) in cases {
        assert_eq!(near(points, Some("a")), expected, "{name}");
    }
    let points = [(READY, "a", ""), (READY, "b", "")];
    assert_eq!(near(&points, None), ["0", "1"], "a node without a zone");
}

#[test]
fn local_traffic_falls_back_to_local_endpoints_on_their_way_out_and_never_to_remote_ones() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.5",
        "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}]});
    // Name, the endpoints, those for all traffic, those for local traffic.
    type Case = (
        &'static str,
        &'static [Point],
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: [Case; 5] = [
        (
            "local and ready",
            &[("10.0.0.1", NODE, READY), ("10.0.0.2", "other", READY)],
            &["10.0.0.1:1", "10.0.0.2:1"],
            &["10.0.0.1:1"],
        ),
        (
            "a ready one elsewhere does not keep local ones from draining",
            &[("10.0.0.1", NODE, LEAVING), ("10.0.0.2", "other", READY)],
            &["10.0.0.2:1"],
            &["10.0.0.1:1"],
        ),
        (
            "local but starting",
            &[("10.0.0.1", NODE, STARTING), ("10.0.0.2", "other", READY)],
            &["10.0.0.2:1"],
            &[],
        ),
        (
            "all leave",
            &[("10.0.0.1", NODE, LEAVING), ("10.0.0.2", "other", LEAVING)],
            &["10.0.0.1:1", "10.0.0.2:1"],
            &["10.0.0.1:1"],
        ),
        (
            "local ones no longer serve",
            &[("10.0.0.1", NODE, GONE), ("10.0.0.2", "other", READY)],
            &["10.0.0.2:1"],
            &[],
        ),
    ];
    for (name, points, cluster, local) in cases {
        let plan = plan(&spec, &[slice(&json!({"port": 1}), points)]);
        assert_eq!(members(&plan, 0), cluster, "{name}");
        assert_eq!(members(&plan, 1), local, "{name}");
    }
}

#[test]
fn load_balancers_are_told_of_ready_endpoints_on_this_node() {
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5",
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_999,
        "ports": [{"port": 80, "nodePort": 30_080}]});
    let points = [
        ("10.0.0.1", NODE, READY),
        ("10.0.0.2", NODE, LEAVING),
        ("10.0.0.3", "other", READY),
    ];
    let slices = [
        slice(&json!({"port": 1}), &points),
        slice(&json!({"port": 2}), &points),
    ];
    let expected = HealthCheck {
        port: 30_999,
        local_endpoints: 1,
    };
    assert_eq!(plan(&spec, &slices).health, Some(expected));
    spec["externalTrafficPolicy"] = json!("Cluster");
    assert_eq!(plan(&spec, &slices).health, None);
}
