//! What ADD and DEL make and take, here and on the other nodes.

use std::collections::HashSet;

use serde_json::json;
use skiff_tests_cni::TestNetns;

use crate::{
    cluster::{Cluster, Outer, Pod},
    traffic::{pings, tcp},
};

#[test]
fn the_result_is_that_of_a_bridge() {
    let cluster = Cluster::new(Outer::V4, 2);
    let pod = cluster.pod(0, "a");
    let json = &pod.answer.json;
    let names: Vec<&str> = json["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|interface| interface["name"].as_str().unwrap())
        .collect();
    assert_eq!((names[0], names[2]), ("skbr7", "eth0"));
    assert_eq!(json["interfaces"][2]["mtu"], 1450);
    assert_eq!(json["ips"][0]["address"], "10.244.1.2/24");
    assert_eq!(json["ips"][0]["gateway"], "10.244.1.1");
    assert_eq!(json["ips"][1]["address"], "fd00:244:0:1::2/64");
    assert_eq!(json["routes"].as_array().unwrap().len(), 2);
    let _passes = cluster.check(0, &pod).expect_ok();
    let conf = cluster.conf(0, &cluster.all());
    let _ready = cluster.hosts[0]
        .bench
        .call("STATUS", &conf, "", std::path::Path::new(""))
        .expect_ok();
}

#[test]
fn del_leaves_the_device_and_nothing_else() {
    let cluster = Cluster::new(Outer::V4, 2);
    let host = &cluster.hosts[0];
    let first = cluster.pod(0, "first");
    cluster.del(0, &first);
    let before = host.whole_state();
    let files = |dir: &std::path::Path| std::fs::read_dir(dir).unwrap().count();
    let pods: Vec<Pod> = (0..3).map(|i| cluster.pod(0, &format!("p{i}"))).collect();
    assert_ne!(host.whole_state(), before);
    for pod in &pods {
        cluster.del(0, pod);
        // Again: gone is gone.
        cluster.del(0, pod);
    }
    assert_eq!(host.whole_state(), before);
    assert_eq!(
        (host.bench.leases().len(), host.bench.veths().len()),
        (0, 0)
    );
    assert!(host.bench.node.links().contains(&"skvx7".to_owned()));
    // Locks of this host's namespace are gone, too.
    let inode =
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(host.bench.node.path()).unwrap());
    assert!(!std::path::Path::new(&format!("/run/skiff-cni/overlay-{inode}.lock")).exists());
    assert!(files(host.bench.dir.path()) > 0);
}

#[test]
fn ten_pods_here_are_nothing_to_the_other_nodes() {
    let cluster = Cluster::new(Outer::V4, 2);
    let (a, b) = (cluster.pod(0, "a"), cluster.pod(1, "b"));
    // The bridge of host 2 knows its own pod from now on.
    tcp(&a.netns, &b.netns, &b.ip(true));
    tcp(&a.netns, &b.netns, &b.ip(false));
    let before = cluster.hosts[1].whole_state();
    let pods: Vec<Pod> = (0..10).map(|i| cluster.pod(0, &format!("p{i}"))).collect();
    for pod in &pods {
        tcp(&pod.netns, &b.netns, &b.ip(true));
        tcp(&b.netns, &pod.netns, &pod.ip(false));
    }
    assert_eq!(cluster.hosts[1].whole_state(), before);
    assert_eq!(cluster.hosts[1].counts(), [1, 2, 2]);
    for pod in &pods {
        cluster.del(0, pod);
    }
    assert_eq!(cluster.hosts[1].whole_state(), before);
}

#[test]
fn fifty_pods_at_once_share_one_device() {
    let cluster = Cluster::new(Outer::V4, 3);
    let conf = cluster.conf(0, &cluster.all());
    let bench = &cluster.hosts[0].bench;
    let pods: Vec<TestNetns> = (0..50).map(|_| TestNetns::new("pod")).collect();
    let children: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| bench.start("ADD", &conf, &format!("c{i}"), pod.path()))
        .collect();
    let mut ips = HashSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{json}");
        ips.insert(json["ips"][0]["address"].as_str().unwrap().to_owned());
    }
    assert_eq!(ips.len(), 50);
    assert_eq!(cluster.hosts[0].counts(), [2, 4, 4]);
    let children: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| bench.start("DEL", &conf, &format!("c{i}"), pod.path()))
        .collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert_eq!((bench.leases().len(), bench.veths().len()), (0, 0));
}

#[test]
fn a_second_add_changes_nothing() {
    let cluster = Cluster::new(Outer::V4, 2);
    let pod = cluster.pod(0, "a");
    let before = cluster.hosts[0].whole_state();
    let conf = cluster.conf(0, &cluster.all());
    let again = cluster.hosts[0]
        .bench
        .call("ADD", &conf, "a", pod.netns.path());
    assert_eq!(again.code(), Some(102));
    assert_eq!(cluster.hosts[0].whole_state(), before);
    assert_eq!(cluster.hosts[0].bench.leases().len(), 2);
}

#[test]
fn addresses_that_other_nodes_would_not_find_are_refused() {
    let cluster = Cluster::new(Outer::V4, 2);
    let (a, other) = (cluster.pod(0, "a"), TestNetns::new("pod"));
    let before = cluster.hosts[0].whole_state();
    let mut conf = cluster.conf(0, &cluster.all());
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.2.0/24"}]]);
    // The bridge has another gateway already: a bridge of its own.
    conf["bridge"] = "br-other".into();
    let bench = &cluster.hosts[0].bench;
    let refused = bench.call("ADD", &conf, "b", other.path());
    assert_eq!(refused.code(), Some(7), "{refused:?}");
    assert!(refused.json["msg"].as_str().unwrap().contains("podCIDR"));
    bench.node.sh("ip link delete br-other 2>/dev/null || true");
    assert_eq!(cluster.hosts[0].whole_state(), before);
    assert_eq!((bench.leases().len(), other.links().len()), (2, 0));
    cluster.del(0, &a);
}

#[test]
fn what_bridges_can_do_is_passed_on() {
    let cluster = Cluster::new(Outer::V4, 2);
    let mut conf = cluster.conf(0, &cluster.all());
    conf["bridge"] = "pods0".into();
    conf["hairpinMode"] = true.into();
    conf["mtu"] = 1400.into();
    conf["port"] = 4789.into();
    conf["underlay"] = json!({"device": "uplink"});
    conf["runtimeConfig"] = json!({"ips": ["10.244.1.77/24"], "mac": "02:00:00:00:00:77"});
    let pod = cluster.pod_with(0, "a", &conf);
    assert_eq!(pod.ip(true), "10.244.1.77");
    assert_eq!(pod.answer.json["interfaces"][0]["name"], "pods0");
    assert_eq!(pod.answer.json["interfaces"][2]["mac"], "02:00:00:00:00:77");
    let node = &cluster.hosts[0].bench.node;
    let device = node.sh("ip -d link show dev skvx7");
    for part in ["dstport 4789", "dev uplink", "mtu 1400", "nolearning"] {
        assert!(device.contains(part), "{part}: {device}");
    }
    let port = node.sh("bridge -d link show");
    assert!(port.contains("hairpin on"), "{port}");
    assert!(!pings(&pod.netns, "10.244.2.2"));
    cluster.hosts[0].bench.del(&conf, "a", &pod.netns);
}

#[test]
fn an_add_that_was_killed_is_made_good_by_the_next_one() {
    let cluster = Cluster::new(Outer::V4, 3);
    let host = &cluster.hosts[0];
    let whole = {
        let pod = cluster.pod(0, "first");
        cluster.del(0, &pod);
        host.overlay_state()
    };
    let conf = cluster.conf(0, &cluster.all());
    for round in 0..6 {
        host.bench.node.sh("ip link delete skvx7");
        let pod = TestNetns::new("pod");
        let mut child = host.bench.start("ADD", &conf, "c", pod.path());
        // Dead as soon as the device is seen, at the latest when it has ended by itself; each round a look later.
        let mut looks_left = round;
        while child.try_wait().unwrap().is_none() {
            if host.bench.node.links().contains(&"skvx7".to_owned()) {
                if looks_left == 0 {
                    child.kill().unwrap();
                    break;
                }
                looks_left -= 1;
            }
        }
        child.wait().unwrap();
        host.bench.del(&conf, "c", &pod);
        assert!(host.bench.veths().is_empty() && host.bench.leases().is_empty());
        let other = cluster.pod(0, "other");
        assert_eq!(host.overlay_state(), whole);
        cluster.del(0, &other);
    }
}
