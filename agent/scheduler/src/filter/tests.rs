use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::task::select;
use std::sync::Arc;

fn node(name: &str, extra: &Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}},
    });
    json_merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, extra: &Value) -> PodInfo {
    let mut pod = json!({
        "metadata": {"name": name, "uid": name, "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}]},
    });
    json_merge(&mut pod, extra);
    PodInfo::new(&serde_json::from_value::<Pod>(pod).unwrap())
}

fn json_merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                json_merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn cluster(nodes: &[Node]) -> Cache {
    let mut cache = Cache::default();
    for node in nodes {
        cache.node_applied(node);
    }
    cache
}

#[test]
fn reasons_are_upstreams() {
    let no = json!({});
    let table: Vec<(Value, Value, &str)> = vec![
        (
            json!({"spec": {"unschedulable": true}}),
            no.clone(),
            "1 node(s) were unschedulable",
        ),
        (
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
            no.clone(),
            "1 node(s) had untolerated taint {k: v}",
        ),
        (
            no.clone(),
            json!({"spec": {"nodeSelector": {"disk": "ssd"}}}),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (
            json!({"status": {"allocatable": {"cpu": "200m"}}}),
            no.clone(),
            "1 Insufficient cpu",
        ),
        (
            json!({"status": {"allocatable": {"pods": "0"}}}),
            no.clone(),
            "1 Too many pods",
        ),
        (
            json!({"status": {"allocatable": {"cpu": "200m", "pods": "0"}}}),
            no.clone(),
            "1 Insufficient cpu, 1 Too many pods",
        ),
        (
            no.clone(),
            json!({"spec": {"containers": [
                {"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}},
            ]}}),
            "1 Insufficient example.com/gpu",
        ),
    ];
    for (node_extra, pod_extra, reason) in table {
        let mut cache = cluster(&[node("n", &node_extra)]);
        let expected = format!("0/1 nodes are available: {reason}.");
        assert_eq!(select(&pod("p", &pod_extra), &mut cache), Err(expected));
    }
    let mut empty = Cache::default();
    let message = select(&pod("p", &no), &mut empty);
    assert_eq!(
        message,
        Err("no nodes available to schedule pods".to_owned())
    );
}

#[test]
fn tolerations_open_tainted_and_cordoned_nodes() {
    let closed = json!({"spec": {
        "unschedulable": true,
        "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}],
    }});
    let tolerant = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
    let mut cache = cluster(&[node("n", &closed)]);
    assert_eq!(select(&pod("p", &tolerant), &mut cache), Ok("n".to_owned()));
}

#[test]
fn host_ports_clash_unless_their_addresses_differ() {
    let port = |ip: &str| {
        json!({"spec": {"containers": [
            {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]},
        ]}})
    };
    let mut cache = cluster(&[node("n", &json!({}))]);
    cache.place(Arc::new(pod("a", &port("10.0.0.1"))), "n");
    assert!(select(&pod("b", &port("10.0.0.2")), &mut cache).is_ok());
    for clashing in ["10.0.0.1", "", "0.0.0.0"] {
        let message = select(&pod("b", &port(clashing)), &mut cache).unwrap_err();
        assert!(message.contains("didn't have free ports"), "{message}");
    }
}

#[test]
fn affinity_and_anti_affinity() {
    let term = json!([{
        "labelSelector": {"matchLabels": {"app": "web"}},
        "topologyKey": "kubernetes.io/hostname",
    }]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {required: term}}}});
    let near = json!({"spec": {"affinity": {"podAffinity": {required: term}}}});
    let mut cache = cluster(&[node("a", &json!({})), node("b", &json!({}))]);
    // The first of its kind may be near itself.
    assert!(select(&pod("first", &near), &mut cache).is_ok());
    cache.place(Arc::new(pod("p0", &json!({}))), "a");
    assert_eq!(select(&pod("p", &near), &mut cache), Ok("a".to_owned()));
    assert_eq!(select(&pod("p", &apart), &mut cache), Ok("b".to_owned()));
    cache.place(Arc::new(pod("p1", &apart)), "b");
    let message = select(&pod("p", &apart), &mut cache).unwrap_err();
    assert!(message.contains("anti-affinity rules"), "{message}");
    // What is there keeps newcomers away as well.
    assert_eq!(
        select(&pod("p", &json!({})), &mut cache),
        Ok("a".to_owned())
    );
    cache.remove("p1");
    assert!(!cache.has_anti_affinity());
}

#[test]
fn spread_constraints_bound_the_skew() {
    let spread = json!({"spec": {"topologySpreadConstraints": [{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }]}});
    let mut cache = cluster(&[node("a", &json!({})), node("b", &json!({}))]);
    for i in 0..6 {
        let p = pod(&format!("p{i}"), &spread);
        let chosen = select(&p, &mut cache).unwrap();
        cache.place(Arc::new(p), &chosen);
        let counts: Vec<_> = cache.nodes().iter().map(|n| n.pods.len()).collect();
        assert!(counts[0].abs_diff(counts[1]) <= 1, "{counts:?}");
    }
}

#[test]
fn replicas_spread_over_equal_nodes() {
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true},
    ]}});
    let nodes: Vec<_> = (0..3).map(|i| node(&format!("n{i}"), &json!({}))).collect();
    let mut cache = cluster(&nodes);
    for i in 0..6 {
        let p = pod(&format!("p{i}"), &owned);
        let chosen = select(&p, &mut cache).unwrap();
        cache.place(Arc::new(p), &chosen);
    }
    assert!(cache.nodes().iter().all(|n| n.pods.len() == 2));
}

#[test]
fn a_node_known_only_by_its_pods_takes_no_more() {
    let mut cache = Cache::default();
    cache.place(Arc::new(pod("p", &json!({}))), "early");
    assert!(select(&pod("q", &json!({})), &mut cache).is_err());
    cache.node_applied(&node("early", &json!({})));
    assert_eq!(cache.nodes()[0].requested.cpu, 300);
    cache.node_deleted("early");
    assert!(cache.remove("p"));
    assert!(cache.nodes().is_empty());
}

proptest! {
    #[test]
    fn prop_never_overcommits(
        sizes in proptest::collection::vec((0i64..1500, 0i64..3000), 1..60),
        removals in proptest::collection::vec(0usize..60, 0..20),
    ) {
        let nodes: Vec<_> = (0..3)
            .map(|i| node(&format!("n{i}"), &json!({"status": {"allocatable": {
                "cpu": format!("{}m", 1000 * (i + 1)), "memory": "4000", "pods": "7",
            }}})))
            .collect();
        let mut cache = cluster(&nodes);
        for (i, (cpu, memory)) in sizes.iter().enumerate() {
            let p = pod(&format!("p{i}"), &json!({"spec": {"containers": [{
                "name": "c",
                "resources": {"requests": {"cpu": format!("{cpu}m"), "memory": memory.to_string()}},
            }]}}));
            match select(&p, &mut cache) {
                Ok(chosen) => cache.place(Arc::new(p), &chosen),
                Err(_) => {
                    let none = Topology::default();
                    let fits = cache.nodes().iter().any(|n| check(&p, n, &none).is_ok());
                    prop_assert!(!fits, "rejected although it fits");
                }
            }
            if let Some(gone) = removals.get(i) {
                cache.remove(&format!("p{gone}"));
            }
            for n in cache.nodes() {
                prop_assert!(n.pods.len() <= n.max_pods);
                prop_assert!(n.requested.cpu <= n.allocatable.cpu);
                prop_assert!(n.requested.memory <= n.allocatable.memory);
                let sum: i64 = n.pods.values().map(|p| p.requests.cpu).sum();
                prop_assert_eq!(sum, n.requested.cpu);
            }
        }
    }
}
