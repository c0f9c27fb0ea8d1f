//! What is refused, and that nothing was changed then.

use std::path::Path;

use serde_json::{Value, json};
use skiff_tests_cni::TestNetns;

use crate::cluster::{Cluster, Host, Outer};

/// ADD and CHECK must fail with `code` and leave a clean host clean.
#[track_caller]
fn refused(host: &Host, conf: &Value, code: u64, words: &str) {
    let pod = TestNetns::new("pod");
    let before = host
        .bench
        .node
        .sh("ip -o link; ip route show table all; ip -6 route");
    let answer = host.bench.call("ADD", conf, "c", pod.path());
    assert_eq!(answer.code(), Some(code), "{answer:?}");
    assert!(
        answer.json.to_string().contains(words),
        "{words}: {answer:?}"
    );
    let after = host
        .bench
        .node
        .sh("ip -o link; ip route show table all; ip -6 route");
    assert_eq!(after, before);
    assert!(host.bench.leases().is_empty() && pod.links().is_empty());
    // Whatever is wrong, what was never there can be removed, unless the configuration cannot be read.
    let del = host.bench.call("DEL", conf, "c", pod.path());
    assert!(del.ok || del.code() == Some(6), "{del:?}");
}

#[test]
fn settings_that_make_no_sense() {
    let cluster = Cluster::new(Outer::V4, 2);
    let host = &cluster.hosts[0];
    let good = cluster.conf(0, &cluster.all());
    let with = |key: &str, value: Value| {
        let mut conf = good.clone();
        conf[key] = value;
        conf
    };
    for (key, value, code, words) in [
        ("vni", json!(0), 7, "vni 0"),
        ("vni", json!(1 << 24), 7, "vni 16777216"),
        ("vni", json!(-1), 6, "vni"),
        ("vni", json!("7"), 6, "vni"),
        ("vni", Value::Null, 7, "vni"),
        ("port", json!(0), 7, "port"),
        ("port", json!(65536), 6, "port"),
        ("mtu", json!(1279), 7, "1280"),
        ("mtu", json!(1451), 7, "1450"),
        ("nodes", Value::Null, 7, "stateFile"),
        ("nodes", json!({}), 6, "nodes"),
        ("stateFile", json!("/nowhere"), 7, "exactly one"),
        ("underlay", json!({"device": "eth99"}), 7, "eth99"),
        ("underlay", json!({"device": "../x"}), 6, "underlay"),
        (
            "underlay",
            json!({"address": "192.168.77.99"}),
            7,
            "not in the node table",
        ),
        (
            "underlay",
            json!({"address": "192.168.77.2"}),
            7,
            "not in the node table",
        ),
        ("underlay", json!({"link": "uplink"}), 6, "underlay"),
        ("node", json!("host2"), 7, "host2"),
        ("node", json!("host9"), 7, "not in the node table"),
        (
            "clusterCIDR",
            json!("10.244.0.0/24"),
            7,
            "in no clusterCIDR",
        ),
        ("clusterCIDR", json!("10.0.0.0/33"), 7, "clusterCIDR"),
        ("clusterCIDR", json!(["10.244.0.0/16"]), 6, "clusterCIDR"),
        ("bridge", json!("a/b"), 7, "bridge"),
        ("bridge", json!("uplink"), 7, "not a bridge"),
        (
            "ipam",
            json!({"type": "nothing-like-it"}),
            105,
            "nothing-like-it",
        ),
        (
            "ipam",
            json!({"type": "host-local", "ranges": [[]]}),
            7,
            "ipam",
        ),
    ] {
        let conf = with(key, value);
        let pod = TestNetns::new("pod");
        let before = host.bench.node.sh("ip -o link; ip route show table all");
        let answer = host.bench.call("ADD", &conf, "c", pod.path());
        assert_eq!(answer.code(), Some(code), "{key}: {answer:?}");
        assert!(
            answer.json.to_string().contains(words),
            "{words}: {answer:?}"
        );
        assert_eq!(
            host.bench.node.sh("ip -o link; ip route show table all"),
            before
        );
    }
    let mut masquerade = good.clone();
    masquerade.as_object_mut().unwrap().remove("clusterCIDR");
    masquerade["ipMasq"] = true.into();
    refused(host, &masquerade, 7, "ipMasq needs clusterCIDR");
}

#[test]
fn tables_that_make_no_sense() {
    let cluster = Cluster::new(Outer::V4, 3);
    let host = &cluster.hosts[0];
    let with = |change: &dyn Fn(&mut Value)| {
        let mut nodes = cluster.all();
        change(&mut nodes);
        cluster.conf(0, &nodes)
    };
    let overlapping = with(&|nodes| nodes[1]["podCIDRs"] = json!(["10.244.1.128/25"]));
    refused(host, &overlapping, 7, "10.244.1.128/25");
    let same_address = with(&|nodes| nodes[1]["underlay"] = json!(["192.168.77.3"]));
    refused(host, &same_address, 7, "192.168.77.3");
    let same_name = with(&|nodes| nodes[1]["name"] = json!("host3"));
    refused(host, &same_name, 7, "the same name");
    let loop_back = with(&|nodes| nodes[1]["underlay"] = json!(["10.244.3.9"]));
    refused(host, &loop_back, 7, "10.244.3.9");
    let other_family = with(&|nodes| nodes[1]["underlay"] = json!(["fd77::2"]));
    refused(host, &other_family, 7, "IPv4");
    let host_bits = with(&|nodes| nodes[1]["podCIDRs"] = json!(["10.244.2.1/24"]));
    refused(host, &host_bits, 7, "host bits");
    let typo = with(&|nodes| nodes[1]["podCidrs"] = json!([]));
    refused(host, &typo, 6, "podCidrs");
    let no_address = with(&|nodes| nodes[1]["underlay"] = json!([]));
    refused(host, &no_address, 7, "no underlay address");
    let without_us = cluster.conf(0, &cluster.nodes(&[2, 3]));
    refused(host, &without_us, 7, "not in the node table");
    let nobody = cluster.conf(0, &json!([]));
    refused(host, &nobody, 7, "not in the node table");
}

#[test]
fn an_underlay_that_is_too_narrow() {
    let cluster = Cluster::new(Outer::V4, 2);
    let host = &cluster.hosts[0];
    host.bench.node.sh("ip link set uplink mtu 1300");
    let conf = cluster.conf(0, &cluster.all());
    refused(host, &conf, 7, "mtu 1250 is not between 1280 and 1250");
}

#[test]
fn a_namespace_that_is_none() {
    let cluster = Cluster::new(Outer::V4, 2);
    let conf = cluster.conf(0, &cluster.all());
    let bench = &cluster.hosts[0].bench;
    let answer = bench.call("ADD", &conf, "c", Path::new("/run/netns/there-is-no-such"));
    assert_eq!(answer.code(), Some(4), "{answer:?}");
    assert!(!bench.node.links().contains(&"skvx7".to_owned()));
    assert!(bench.leases().is_empty());
}

#[test]
fn a_strangers_link_or_route_is_not_touched() {
    let cluster = Cluster::new(Outer::V4, 2);
    let conf = cluster.conf(0, &cluster.all());
    let host = &cluster.hosts[0];
    host.bench.node.sh("ip link add skvx7 type bridge");
    refused(host, &conf, 100, "another kind");
    host.bench.node.sh("ip link delete skvx7");
    // The device is gone again, and the route is still there.
    host.bench
        .node
        .sh("ip route add 10.244.2.0/24 via 192.168.77.2");
    refused(host, &conf, 102, "10.244.2.0/24");
}
