//! Who reaches whom, and with which packets.

use skiff_tests_cni::TestNetns;

use crate::{
    cluster::{Cluster, Outer, Pod, underlay},
    traffic::{datagram_passes, fragments, is_unreachable, pings, tcp},
};

/// Pods on two hosts talk in both families and both directions, as themselves and with packets as large as can be.
fn two_hosts(outer: Outer) {
    let cluster = Cluster::new(outer, 2);
    let (a, b) = (cluster.pod(0, "a"), cluster.pod(1, "b"));
    let nodes = [0, 1].map(|host| &cluster.hosts[host].bench.node);
    let before = nodes.map(fragments);
    for (from, to) in [(&a, &b), (&b, &a)] {
        for v4 in [true, false] {
            let ip = to.ip(v4);
            assert!(pings(&from.netns, &ip), "{ip}");
            let seen = tcp(&from.netns, &to.netns, &ip);
            assert_eq!(seen.peer.to_string(), from.ip(v4));
            // TCP and its time stamps.
            let headers = if v4 { 20 + 20 + 12 } else { 40 + 20 + 12 };
            assert_eq!(seen.mss, outer.mtu() - headers);
            assert!(datagram_passes(&from.netns, &to.netns, &ip, outer.mtu()));
            let more = outer.mtu() + 1;
            assert!(!datagram_passes(&from.netns, &to.netns, &ip, more));
        }
    }
    // Nothing had to be cut to fit into the underlay.
    assert_eq!(nodes.map(fragments), before);
    let link = a.netns.sh("ip link show dev eth0");
    assert!(link.contains(&format!("mtu {} ", outer.mtu())), "{link}");
}

#[test]
fn pods_of_two_hosts_talk_over_ipv4() {
    two_hosts(Outer::V4);
}

#[test]
fn pods_of_two_hosts_talk_over_ipv6() {
    two_hosts(Outer::V6);
}

/// Pods of one family only, over either.
#[test]
fn pods_of_one_family_talk_over_the_other() {
    for (outer, v4) in [(Outer::V4, false), (Outer::V6, true)] {
        let cluster = Cluster::new(outer, 2);
        let mut nodes = cluster.all();
        for node in nodes.as_array_mut().unwrap() {
            let cidrs = node["podCIDRs"].as_array_mut().unwrap();
            cidrs.remove(usize::from(v4));
        }
        let pods = [0, 1].map(|host| cluster.pod_with(host, "p", &cluster.conf(host, &nodes)));
        let [a, b] = &pods;
        let seen = tcp(&a.netns, &b.netns, &b.ip(v4));
        assert_eq!(seen.peer.to_string(), a.ip(v4));
        assert_eq!(cluster.hosts[0].counts(), [1, 1, 1]);
    }
}

#[test]
fn a_host_reaches_the_pods_of_another_one() {
    let cluster = Cluster::new(Outer::V4, 2);
    let (_a, b) = (cluster.pod(0, "a"), cluster.pod(1, "b"));
    let node = &cluster.hosts[0].bench.node;
    // From its address in the overlay: the answers come back the same way.
    let seen = tcp(node, &b.netns, &b.ip(true));
    assert_eq!(seen.peer.to_string(), "10.244.1.0");
    let seen = tcp(node, &b.netns, &b.ip(false));
    assert_eq!(seen.peer.to_string(), "fd00:244:0:1::1");
    assert_eq!(seen.mss, 1450 - 72);
}

#[test]
fn five_hosts_talk_in_a_full_mesh_and_one_leaves() {
    let mut cluster = Cluster::new(Outer::V4, 5);
    let pods: Vec<Pod> = (0..5).map(|host| cluster.pod(host, "p")).collect();
    for from in &pods {
        for to in pods
            .iter()
            .filter(|to| to.name != from.name || to.ip(true) != from.ip(true))
        {
            for v4 in [true, false] {
                assert_eq!(
                    tcp(&from.netns, &to.netns, &to.ip(v4)).peer.to_string(),
                    from.ip(v4)
                );
            }
        }
    }
    // One forwarding entry, a neighbour and a route for each family, for each of the others.
    for host in &cluster.hosts {
        assert_eq!(host.counts(), [4, 8, 8]);
    }

    // One joins: it knows the others from its table, and they learn of it by an ADD or GC with theirs.
    cluster.plug_in();
    let sixth = cluster.pod(5, "p");
    let all = cluster.all();
    for (host, pod) in pods.iter().enumerate().take(4) {
        let _swept = cluster.gc(host, &all, &[pod]).expect_ok();
    }
    let second = cluster.pod(4, "second");
    for pod in &pods {
        assert!(pings(&pod.netns, &sixth.ip(true)));
        assert!(pings(&sixth.netns, &pod.ip(false)));
    }
    assert_eq!(cluster.hosts[0].counts(), [5, 10, 10]);
    cluster.del(4, &second);

    // The third one leaves: no trace of it is left with the others, who go on.
    let rest = cluster.nodes(&[1, 2, 4, 5, 6]);
    let gone = [
        underlay(Outer::V4, 3),
        "10.244.3.".to_owned(),
        ":3::".to_owned(),
    ];
    for host in [0, 1, 3, 4, 5] {
        let pod = if host == 5 { &sixth } else { &pods[host] };
        let _swept = cluster.gc(host, &rest, &[pod]).expect_ok();
        let state = cluster.hosts[host].whole_state();
        for trace in &gone {
            assert!(!state.contains(&**trace), "{trace} in {state}");
        }
        assert_eq!(cluster.hosts[host].counts(), [4, 8, 8]);
    }
    assert!(pings(&pods[0].netns, &pods[4].ip(true)));
    assert!(!pings(&pods[0].netns, &pods[2].ip(true)));
}

#[test]
fn what_goes_to_no_nodes_pods_stays_at_home() {
    let cluster = Cluster::new(Outer::V4, 2);
    let pod = cluster.pod(0, "a");
    let node = &cluster.hosts[0].bench.node;
    node.sh("ip route add default via 192.168.77.2; ip -6 route add default dev uplink");
    assert!(is_unreachable(&pod.netns, "10.244.99.1"));
    assert!(is_unreachable(&pod.netns, "fd00:244:0:99::1"));
}

#[test]
fn pods_keep_their_addresses_between_nodes_and_are_masqueraded_to_the_world() {
    let cluster = Cluster::new(Outer::V4, 2);
    let conf = |host| {
        let mut conf = cluster.conf(host, &cluster.all());
        conf["ipMasq"] = true.into();
        conf
    };
    let a = cluster.pod_with(0, "a", &conf(0));
    let b = cluster.pod_with(1, "b", &conf(1));
    for v4 in [true, false] {
        let seen = tcp(&a.netns, &b.netns, &b.ip(v4));
        assert_eq!(seen.peer.to_string(), a.ip(v4));
    }
    // The world is a host on the switch that knows nothing of pods.
    let world = TestNetns::new("world");
    let name = cluster.switch.path().file_name().unwrap().to_str().unwrap();
    world.sh(&format!(
        "ip link add up0 type veth peer name world netns {name} && ip address add 192.168.77.200/24 dev up0 &&
         ip link set up0 up"
    ));
    cluster
        .switch
        .sh("ip link set world master br0 && ip link set world up");
    let seen = tcp(&a.netns, &world, "192.168.77.200");
    assert_eq!(seen.peer.to_string(), underlay(Outer::V4, 1));

    let mut check = conf(0);
    check["prevResult"] = a.answer.json.clone();
    let bench = &cluster.hosts[0].bench;
    let _passes = bench.call("CHECK", &check, "a", a.netns.path()).expect_ok();
    bench.node.sh("iptables -w -t nat -F");
    assert_eq!(
        bench.call("CHECK", &check, "a", a.netns.path()).code(),
        Some(103)
    );
    bench.del(&check, "a", &a.netns);
    cluster.hosts[1].bench.del(&conf(1), "b", &b.netns);
    for host in &cluster.hosts {
        let rules = host
            .bench
            .node
            .sh("iptables-save -t nat; ip6tables-save -t nat");
        assert!(
            !rules.contains("10.244") && !rules.contains("fd00"),
            "{rules}"
        );
    }
}

#[test]
fn two_overlays_live_side_by_side() {
    let cluster = Cluster::new(Outer::V4, 2);
    let second = |host: usize| {
        let mut conf = cluster.conf(host, &cluster.all());
        conf["name"] = "other".into();
        conf["vni"] = 8.into();
        conf["clusterCIDR"] = "10.245.0.0/16".into();
        for node in conf["nodes"].as_array_mut().unwrap() {
            let number = &node["name"].as_str().unwrap()[4..];
            node["podCIDRs"] = serde_json::json!([format!("10.245.{number}.0/24")]);
        }
        conf
    };
    let (a, b) = (cluster.pod(0, "a"), cluster.pod(1, "b"));
    let a2 = cluster.pod_with(0, "a2", &second(0));
    let b2 = cluster.pod_with(1, "b2", &second(1));
    assert_eq!(
        tcp(&a.netns, &b.netns, &b.ip(true)).peer.to_string(),
        a.ip(true)
    );
    assert_eq!(
        tcp(&a2.netns, &b2.netns, &b2.ip(true)).peer.to_string(),
        a2.ip(true)
    );
    // GC of one leaves the other alone.
    let before = cluster.hosts[0].overlay_state();
    let mut conf = second(0);
    conf["cni.dev/valid-attachments"] = serde_json::json!([]);
    let bench = &cluster.hosts[0].bench;
    let _swept = bench
        .call("GC", &conf, "", std::path::Path::new(""))
        .expect_ok();
    assert_eq!(cluster.hosts[0].overlay_state(), before);
    assert!(pings(&a.netns, &b.ip(true)));
    let links = bench.node.links();
    for name in ["skvx7", "skvx8", "skbr7", "skbr8"] {
        assert!(links.iter().any(|link| link == name), "{name}");
    }
}
