//! Masquerading as bridge and ptp use it, with packets to an outside.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{collections::HashSet, net::UdpSocket, path::Path, process::Command, thread};

use ipnetwork::IpNetwork;
use serde_json::json;
use skiff_cni::{
    firewall::{Backend, Masquerade},
    types::ContainerId,
};
use skiff_tests_cni::{
    Bench, TestNetns,
    forwarding::{
        NODE, OUTSIDE, Protocol, REFERENCE, World, format_target, plugins_with_variant, reach,
        take_calls, udp,
    },
};

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

fn masquerade(backend: &str) -> Masquerade {
    let backend = Backend::choose(Some(backend)).unwrap();
    Masquerade::new("net".parse().unwrap(), backend)
}

fn id(name: &str) -> ContainerId {
    name.parse().unwrap()
}

fn addresses(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn what_leaves_the_node_carries_its_address_and_what_stays_does_not() {
    for backend in BACKENDS {
        let world = World::new();
        let pods = [TestNetns::new("pod"), TestNetns::new("pod")];
        let mut conf = world.bridge_conf();
        conf["ipMasq"] = json!(true);
        conf["ipMasqBackend"] = json!(backend);
        for (name, pod) in ["a", "b"].iter().zip(&pods) {
            world.bench.add(&conf, name, pod);
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (family, seen) in NODE.iter().enumerate() {
                let target = format_target(OUTSIDE[family], 7000);
                let found = reach(protocol, &pods[0], &target, &world.outside, 7000);
                assert_eq!(found, Some(seen.parse().unwrap()), "{backend} {protocol:?}");
            }
            let inside = reach(protocol, &pods[0], "10.99.0.3:7000", &pods[1], 7000);
            assert_eq!(inside, Some("10.99.0.2".parse().unwrap()), "{backend}");
        }
        // What the node itself sends from the bridge's address keeps it.
        world.outside.sh("ip route add 10.99.0.0/24 via 192.0.2.1");
        let server = world
            .outside
            .run(|| UdpSocket::bind("0.0.0.0:7000"))
            .unwrap();
        let node = world
            .bench
            .node
            .run(|| UdpSocket::bind("10.99.0.1:0"))
            .unwrap();
        let target = format_target(OUTSIDE[0], 7000).parse().unwrap();
        let seen = udp(&node, target, &server);
        assert_eq!(seen, Some("10.99.0.1".parse().unwrap()), "{backend}");
        for (name, pod) in ["a", "b"].iter().zip(&pods) {
            world.bench.del(&conf, name, pod);
        }
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn a_repeated_ensure_changes_nothing_and_a_flushed_table_is_made_anew() {
    for backend in BACKENDS {
        let world = World::new();
        let rules = masquerade(backend);
        let known = addresses(&["10.0.0.2/24", "fd00::2/64"]);
        world.bench.node.run(|| {
            assert!(!rules.is_ensured(&known, &id("a")).unwrap());
            rules.ensure(&known, &id("a")).unwrap();
            assert!(rules.is_ensured(&known, &id("a")).unwrap());
            assert!(!rules.is_ensured(&known, &id("b")).unwrap());
            rules.ensure(&known, &id("a")).unwrap();
        });
        world.bench.node.sh(match backend {
            "iptables" => "iptables -t nat -F && ip6tables -t nat -F",
            _ => "nft flush chain inet cni_plugins_masquerade skiff_postrouting",
        });
        world.bench.node.run(|| {
            assert!(!rules.is_ensured(&known, &id("a")).unwrap(), "{backend}");
            // A new pod repairs the way for all.
            rules
                .ensure(&addresses(&["10.0.0.3/24"]), &id("b"))
                .unwrap();
            rules.ensure(&known, &id("a")).unwrap();
            assert!(rules.is_ensured(&known, &id("a")).unwrap(), "{backend}");
            rules.delete(&known, &id("a")).unwrap();
            assert!(
                rules
                    .is_ensured(&addresses(&["10.0.0.3/24"]), &id("b"))
                    .unwrap()
            );
            // Nothing known but the name.
            rules.delete(&[], &id("b")).unwrap();
            rules.delete(&[], &id("b")).unwrap();
            rules.delete(&known, &id("a")).unwrap();
        });
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn thirty_at_once_leave_nothing_and_disturb_nobody() {
    for backend in BACKENDS {
        let world = World::new();
        let stays = addresses(&["10.0.0.250/24", "fd00::250/64"]);
        world
            .bench
            .node
            .run(|| masquerade(backend).ensure(&stays, &id("stays")).unwrap());
        thread::scope(|scope| {
            for number in 2..32 {
                let world = &world;
                scope.spawn(move || {
                    world.bench.node.run(|| {
                        let rules = masquerade(backend);
                        let known = addresses(&[
                            &format!("10.0.0.{number}/24"),
                            &format!("fd00::{number}/64"),
                        ]);
                        let name = id(&format!("c{number}"));
                        rules.ensure(&known, &name).unwrap();
                        assert!(rules.is_ensured(&known, &name).unwrap());
                        rules.delete(&known, &name).unwrap();
                        assert!(!rules.is_ensured(&known, &name).unwrap());
                    });
                });
            }
        });
        world.bench.node.run(|| {
            let rules = masquerade(backend);
            assert!(rules.is_ensured(&stays, &id("stays")).unwrap(), "{backend}");
            rules.delete(&stays, &id("stays")).unwrap();
        });
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn chains_that_come_and_go_all_the_time_lose_nobody() {
    for backend in BACKENDS {
        let world = World::new();
        thread::scope(|scope| {
            for number in 2..6 {
                let world = &world;
                scope.spawn(move || {
                    world.bench.node.run(|| {
                        let rules = masquerade(backend);
                        let known = addresses(&[&format!("10.0.0.{number}/24")]);
                        let name = id(&format!("c{number}"));
                        for round in 0..20 {
                            rules.ensure(&known, &name).unwrap();
                            let is_there = rules.is_ensured(&known, &name).unwrap();
                            assert!(is_there, "{backend}, round {round}");
                            rules.delete(&known, &name).unwrap();
                        }
                    });
                });
            }
        });
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn a_sweep_keeps_the_valid_ones_and_other_networks() {
    for backend in BACKENDS {
        let world = World::new();
        let rules = masquerade(backend);
        let other = Masquerade::new(
            "other".parse().unwrap(),
            Backend::choose(Some(backend)).unwrap(),
        );
        world.bench.node.run(|| {
            for (number, name) in ["keep", "stale", "staler"].iter().enumerate() {
                let number = number + 2;
                let known = addresses(&[
                    &format!("10.0.0.{number}/24"),
                    &format!("fd00::{number}/64"),
                ]);
                rules.ensure(&known, &id(name)).unwrap();
            }
            let elsewhere = addresses(&["10.1.0.2/24"]);
            other.ensure(&elsewhere, &id("stale")).unwrap();
            rules.sweep(&HashSet::from([id("keep")])).unwrap();
            let kept = addresses(&["10.0.0.2/24", "fd00::2/64"]);
            assert!(rules.is_ensured(&kept, &id("keep")).unwrap(), "{backend}");
            let swept = addresses(&["10.0.0.3/24"]);
            assert!(
                !rules.is_ensured(&swept, &id("stale")).unwrap(),
                "{backend}"
            );
            assert!(other.is_ensured(&elsewhere, &id("stale")).unwrap());
            Masquerade::delete_all().unwrap();
        });
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn an_address_that_another_pod_had_is_the_new_ones() {
    for backend in BACKENDS {
        let world = World::new();
        let rules = masquerade(backend);
        let known = addresses(&["10.0.0.2/24"]);
        world.bench.node.run(|| {
            rules.ensure(&known, &id("old")).unwrap();
            rules.ensure(&known, &id("new")).unwrap();
            rules.delete(&known, &id("old")).unwrap();
            assert!(rules.is_ensured(&known, &id("new")).unwrap(), "{backend}");
            rules.delete(&known, &id("new")).unwrap();
        });
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn the_other_backends_rules_go_too() {
    let world = World::new();
    let known = addresses(&["10.0.0.2/24"]);
    for (made, deleted) in [("iptables", "nftables"), ("nftables", "iptables")] {
        world.bench.node.run(|| {
            masquerade(made).ensure(&known, &id("a")).unwrap();
            masquerade(deleted).delete(&known, &id("a")).unwrap();
        });
        assert_eq!(world.rules(), "", "{made} then {deleted}");
    }
}

#[test]
fn a_node_switches_from_the_reference_plugin_and_back() {
    let world = World::new();
    let theirs = Bench::with_plugins(Path::new(REFERENCE));
    let mut conf = world.bridge_conf();
    conf["cniVersion"] = json!("1.0.0");
    conf["ipMasq"] = json!(true);
    let pods = [TestNetns::new("pod"), TestNetns::new("pod")];
    let call = |plugins: &Path, command: &str, name: &str, pod: &TestNetns| {
        let mut call = Command::new("sh");
        call.arg("-c")
            .arg(format!("echo '{conf}' | {}/bridge", plugins.display()))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", pod.path())
            .env("CNI_PATH", plugins);
        let output = world.bench.node.run(|| call.output()).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    };
    let must = |plugins: &Path, command: &str, name: &str, pod: &TestNetns| {
        let (ok, said) = call(plugins, command, name, pod);
        assert!(ok, "{command} {name}: {said}");
    };
    let ours = world.bench.plugins();
    // Theirs, then our DEL.
    must(theirs.plugins(), "ADD", "a", &pods[0]);
    assert!(world.rules().contains("CNI-"), "{}", world.rules());
    must(ours, "ADD", "b", &pods[1]);
    must(ours, "DEL", "a", &pods[0]);
    let rules = world.rules();
    assert!(!rules.contains("CNI-") && rules.contains("id:b"), "{rules}");
    // Ours, then their DEL. 1.1.1 removes link and address, misses its chain and says so once. What stays is a rule for
    // an address that nobody has.
    let (ok, said) = call(theirs.plugins(), "DEL", "b", &pods[1]);
    assert!(ok || said.contains("does not exist"), "{said}");
    must(theirs.plugins(), "DEL", "b", &pods[1]);
    assert!(world.bench.veths().is_empty() && world.bench.leases().is_empty());
    must(ours, "ADD", "c", &pods[1]);
    let target = format_target(OUTSIDE[0], 7000);
    let seen = reach(Protocol::Tcp, &pods[1], &target, &world.outside, 7000);
    assert_eq!(seen, Some(NODE[0].parse().unwrap()));
    must(ours, "DEL", "c", &pods[1]);
    world.bench.node.run(|| {
        masquerade("iptables").sweep(&HashSet::new()).unwrap();
    });
    assert_eq!(world.rules(), "");
}

#[test]
fn both_variants_of_iptables_do() {
    for variant in ["nft", "legacy"] {
        let ours = Bench::new();
        let plugins = plugins_with_variant(&ours, variant);
        let world = World::with_plugins(&plugins);
        let mut conf = world.bridge_conf();
        conf["ipMasq"] = json!(true);
        let pods = [TestNetns::new("pod"), TestNetns::new("pod")];
        let added = ["a", "b"].iter().zip(&pods);
        let results: Vec<_> = added
            .map(|(name, pod)| world.bench.add(&conf, name, pod).json)
            .collect();
        let target = format_target(OUTSIDE[1], 7000);
        let seen = reach(Protocol::Tcp, &pods[1], &target, &world.outside, 7000);
        assert_eq!(seen, Some(NODE[1].parse().unwrap()), "{variant}");
        let saved = format!("iptables-{variant}-save -t nat; ip6tables-{variant}-save -t nat");
        let rules = world.bench.node.sh(&saved);
        assert_eq!(rules.matches("MASQUERADE").count(), 4, "{rules}");
        let _of_add = take_calls(&plugins);
        for (index, name) in ["a", "b"].iter().enumerate() {
            conf["prevResult"] = results[index].clone();
            world.bench.del(&conf, name, &pods[index]);
            // Whether others stay or not.
            let calls = take_calls(&plugins);
            assert_eq!(calls, ["ip6tables-restore", "iptables-restore"], "{name}");
        }
        let rules = world.bench.node.sh(&saved);
        assert!(!rules.contains("-A"), "{variant}: {rules}");
    }
}
