//! The portmap plugin behind bridge: packets from outside, from the node and from the pods.

use std::net::UdpSocket;

use serde_json::json;
use skiff_tests_cni::{
    Bench, TestNetns,
    forwarding::{
        NODE, OUTSIDE, Pod, Protocol, World, format_target, is_unreachable, mapping,
        plugins_with_variant, reach, seen, udp,
    },
};

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

#[test]
fn ports_lead_to_the_pod_from_everywhere() {
    for backend in BACKENDS {
        let world = World::new();
        let (pod, other) = (Pod::new(&world, "a"), Pod::new(&world, "b"));
        let conf = pod.conf(
            backend,
            &json!([mapping(8080, 80, "tcp"), mapping(8080, 80, "udp")]),
        );
        pod.add(&world, &conf);
        pod.call(&world, "CHECK", &conf).expect_ok();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to_pod = |from: &TestNetns, ip: &str| {
                reach(protocol, from, &format_target(ip, 8080), &pod.netns, 80)
            };
            for (family, node) in NODE.iter().enumerate() {
                let what = format!("{backend} {protocol:?} {node}");
                // From outside, with the client's own address.
                assert_eq!(
                    to_pod(&world.outside, node),
                    seen(OUTSIDE[family]),
                    "{what}"
                );
                assert!(
                    to_pod(&world.bench.node, node).is_some(),
                    "{what} from the node"
                );
                let gateway = ["10.99.0.1", "fd99::1"][family];
                assert_eq!(to_pod(&pod.netns, node), seen(gateway), "{what} hairpin");
                // Same subnet: the answer must not take the short way.
                assert_eq!(
                    to_pod(&other.netns, node),
                    seen(gateway),
                    "{what} neighbour"
                );
            }
            assert_eq!(
                to_pod(&world.bench.node, "127.0.0.1"),
                seen("10.99.0.1"),
                "{backend} {protocol:?} localhost"
            );
        }
        // Another port, and another host.
        assert!(is_unreachable(
            Protocol::Udp,
            &world.outside,
            "192.0.2.1:8081",
            &pod.netns,
            80
        ));
        pod.del(&world, &conf);
        assert!(is_unreachable(
            Protocol::Tcp,
            &world.outside,
            "192.0.2.1:8080",
            &pod.netns,
            80
        ));
        assert_eq!(
            pod.call(&world, "CHECK", &conf).code(),
            Some(103),
            "{backend}"
        );
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn a_host_address_keeps_a_port_to_itself() {
    for backend in BACKENDS {
        let world = World::new();
        world.bench.node.sh("ip addr add 192.0.2.9/24 dev up0");
        let pod = Pod::new(&world, "a");
        let on = |ip: &str, host: u16| {
            let mut mapping = mapping(host, 80, "tcp");
            mapping["hostIP"] = json!(ip);
            mapping
        };
        let mappings = json!([
            on("192.0.2.9", 8080),
            on("0.0.0.0", 8081),
            on(NODE[1], 8082)
        ]);
        let conf = pod.conf(backend, &mappings);
        pod.add(&world, &conf);
        let reaches = |ip: &str, port| {
            reach(
                Protocol::Tcp,
                &world.outside,
                &format_target(ip, port),
                &pod.netns,
                80,
            )
            .is_some()
        };
        let refuses = |ip: &str, port| {
            is_unreachable(
                Protocol::Tcp,
                &world.outside,
                &format_target(ip, port),
                &pod.netns,
                80,
            )
        };
        assert!(reaches("192.0.2.9", 8080), "{backend}");
        assert!(refuses("192.0.2.1", 8080), "{backend}");
        assert!(
            reaches("192.0.2.9", 8081) && reaches("192.0.2.1", 8081),
            "{backend}"
        );
        assert!(refuses(NODE[1], 8081), "{backend}");
        assert!(
            reaches(NODE[1], 8082) && refuses("192.0.2.1", 8082),
            "{backend}"
        );
        pod.call(&world, "CHECK", &conf).expect_ok();
        pod.del(&world, &conf);
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn masquerading_follows_snat_and_masq_all() {
    for backend in BACKENDS {
        let world = World::new();
        let pod = Pod::new(&world, "a");
        let mut conf = pod.conf(backend, &json!([mapping(8080, 80, "tcp")]));
        let from_outside = || {
            reach(
                Protocol::Tcp,
                &world.outside,
                "192.0.2.1:8080",
                &pod.netns,
                80,
            )
        };
        conf["snat"] = json!(false);
        pod.add(&world, &conf);
        assert_eq!(from_outside(), seen(OUTSIDE[0]), "{backend}");
        assert!(
            is_unreachable(
                Protocol::Tcp,
                &world.bench.node,
                "127.0.0.1:8080",
                &pod.netns,
                80
            ),
            "{backend}"
        );
        pod.call(&world, "CHECK", &conf).expect_ok();
        pod.del(&world, &conf);
        assert_eq!(world.rules(), "", "{backend} snat false");
        conf["snat"] = json!(true);
        conf["masqAll"] = json!(true);
        pod.add(&world, &conf);
        assert_eq!(from_outside(), seen("10.99.0.1"), "{backend}");
        let local = reach(
            Protocol::Tcp,
            &world.bench.node,
            "127.0.0.1:8080",
            &pod.netns,
            80,
        );
        assert_eq!(local, seen("10.99.0.1"), "{backend}");
        pod.call(&world, "CHECK", &conf).expect_ok();
        pod.del(&world, &conf);
        assert_eq!(world.rules(), "", "{backend} masqAll");
    }
}

#[test]
fn conditions_keep_others_out() {
    for (backend, key, allowed, forbidden) in [
        (
            "iptables",
            "conditionsV4",
            json!(["-s", "192.0.2.2"]),
            json!(["!", "-s", "192.0.2.2"]),
        ),
        (
            "nftables",
            "conditionsV4",
            json!(["ip", "saddr", "192.0.2.2"]),
            json!(["ip", "saddr", "!=", "192.0.2.2"]),
        ),
    ] {
        let world = World::new();
        let pod = Pod::new(&world, "a");
        let mut conf = pod.conf(backend, &json!([mapping(8080, 80, "tcp")]));
        conf[key] = allowed;
        pod.add(&world, &conf);
        let found = reach(
            Protocol::Tcp,
            &world.outside,
            "192.0.2.1:8080",
            &pod.netns,
            80,
        );
        assert_eq!(found, seen(OUTSIDE[0]), "{backend}");
        pod.call(&world, "CHECK", &conf).expect_ok();
        pod.del(&world, &conf);
        assert_eq!(world.rules(), "", "{backend}");
        conf[key] = forbidden;
        pod.add(&world, &conf);
        assert!(
            is_unreachable(
                Protocol::Tcp,
                &world.outside,
                "192.0.2.1:8080",
                &pod.netns,
                80
            ),
            "{backend}"
        );
        pod.del(&world, &conf);
        conf[key] = json!([if backend == "iptables" {
            "--no-such-option"
        } else {
            "nonsense"
        }]);
        assert_eq!(
            pod.call(&world, "ADD", &conf).code(),
            Some(104),
            "{backend}"
        );
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn a_mark_bit_and_a_foreign_chain_are_used() {
    let world = World::new();
    let pod = Pod::new(&world, "a");
    let mut conf = pod.conf("iptables", &json!([mapping(8080, 80, "tcp")]));
    conf["markMasqBit"] = json!(5);
    pod.add(&world, &conf);
    assert!(world.rules().contains("0x20/0x20"), "{}", world.rules());
    let local = || {
        reach(
            Protocol::Tcp,
            &world.bench.node,
            "127.0.0.1:8080",
            &pod.netns,
            80,
        )
    };
    assert_eq!(local(), seen("10.99.0.1"));
    pod.del(&world, &conf);
    assert_eq!(world.rules(), "");
    conf.as_object_mut().unwrap().remove("markMasqBit");
    conf["externalSetMarkChain"] = json!("MINE");
    world.bench.node.sh(
        "for t in iptables ip6tables; do $t -t nat -N MINE; $t -t nat -A MINE -j MARK --set-mark 1; \
         $t -t nat -A POSTROUTING -m mark --mark 1 -j MASQUERADE; done",
    );
    let before = world.rules();
    pod.add(&world, &conf);
    assert!(!world.rules().contains("SETMARK"), "{}", world.rules());
    assert_eq!(local(), seen("10.99.0.1"));
    pod.call(&world, "CHECK", &conf).expect_ok();
    pod.del(&world, &conf);
    assert_eq!(world.rules(), before);
}

#[test]
fn the_newest_container_has_a_port_that_two_ask_for() {
    for backend in BACKENDS {
        let world = World::new();
        let pods = [Pod::new(&world, "a"), Pod::new(&world, "b")];
        let confs = pods
            .each_ref()
            .map(|pod| pod.conf(backend, &json!([mapping(8080, 80, "tcp")])));
        for (pod, conf) in pods.iter().zip(&confs) {
            pod.add(&world, conf);
            let found = reach(
                Protocol::Tcp,
                &world.outside,
                "192.0.2.1:8080",
                &pod.netns,
                80,
            );
            assert!(found.is_some(), "{backend}");
        }
        // That the older one goes is nothing to the newer.
        pods[0].del(&world, &confs[0]);
        let found = reach(
            Protocol::Tcp,
            &world.outside,
            "192.0.2.1:8080",
            &pods[1].netns,
            80,
        );
        assert!(found.is_some(), "{backend}");
        pods[1].del(&world, &confs[1]);
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn a_udp_client_follows_its_port_to_the_next_pod() {
    for backend in BACKENDS {
        let world = World::new();
        let pods = [Pod::new(&world, "a"), Pod::new(&world, "b")];
        let client = world
            .outside
            .run(|| UdpSocket::bind("0.0.0.0:4000"))
            .unwrap();
        let target = "192.0.2.1:8053".parse().unwrap();
        // An entry from before there was any container.
        client.send_to(b"early", target).unwrap();
        for pod in &pods {
            let conf = pod.conf(backend, &json!([mapping(8053, 53, "udp")]));
            pod.add(&world, &conf);
            let server = pod.netns.run(|| UdpSocket::bind("0.0.0.0:53")).unwrap();
            assert_eq!(
                udp(&client, target, &server),
                seen(OUTSIDE[0]),
                "{backend} {}",
                pod.name
            );
            pod.del(&world, &conf);
        }
    }
}

#[test]
fn both_variants_of_iptables_do() {
    for variant in ["nft", "legacy"] {
        let ours = Bench::new();
        let world = World::with_plugins(&plugins_with_variant(&ours, variant));
        let pod = Pod::new(&world, "a");
        let conf = pod.conf("iptables", &json!([mapping(8080, 80, "tcp")]));
        pod.add(&world, &conf);
        for (family, node) in NODE.iter().enumerate() {
            let found = reach(
                Protocol::Tcp,
                &world.outside,
                &format_target(node, 8080),
                &pod.netns,
                80,
            );
            assert_eq!(found, seen(OUTSIDE[family]), "{variant}");
        }
        let local = reach(
            Protocol::Tcp,
            &world.bench.node,
            "127.0.0.1:8080",
            &pod.netns,
            80,
        );
        assert_eq!(local, seen("10.99.0.1"), "{variant}");
        pod.call(&world, "CHECK", &conf).expect_ok();
        pod.del(&world, &conf);
        let saved = format!("iptables-{variant}-save -t nat; ip6tables-{variant}-save -t nat");
        let rules = world.bench.node.sh(&saved);
        assert!(!rules.contains("CNI-"), "{variant}: {rules}");
    }
}
