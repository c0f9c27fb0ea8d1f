//! The ptp plugin in namespaces of its own.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::path::Path;

use serde_json::{Value, json};
use skiff_tests_cni::{
    Bench, TestNetns,
    compare::References,
    raw::RawCall,
    traffic::{after, talk},
};

fn conf(bench: &Bench) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "ptp",
        "ipam": {
            "type": "host-local", "dataDir": bench.dir.path().join("networks"),
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
}

/// A host beyond the node, which knows only the node's own addresses.
fn outside(bench: &Bench) -> TestNetns {
    let outside = TestNetns::new("out");
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    bench.node.sh(&format!(
        "ip link add up0 type veth peer name up0 netns {name} && ip link set up0 up \
         && ip addr add 192.0.2.1/24 dev up0 && ip addr add 2001:db8::1/64 dev up0 nodad"
    ));
    outside.sh("ip link set up0 up && ip addr add 192.0.2.2/24 dev up0 \
         && ip addr add 2001:db8::2/64 dev up0 nodad");
    outside
}

fn rules(bench: &Bench) -> String {
    bench
        .node
        .sh("iptables-save -t nat; ip6tables-save -t nat; nft list ruleset 2>/dev/null")
}

/// Nothing is left of any container.
#[track_caller]
fn assert_clean(bench: &Bench) {
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
    assert_eq!(bench.node.sh("ip route; ip -6 route show default"), "");
    let rules = rules(bench);
    assert!(
        !rules.contains("10.99.0.") && !rules.contains("fd99::"),
        "{rules}"
    );
}

#[test]
fn containers_reach_each_other_through_their_host() {
    let bench = Bench::new();
    let (a, b) = (TestNetns::new("pod"), TestNetns::new("pod"));
    let conf = conf(&bench);
    let first = bench.add(&conf, "a", &a);
    bench.add(&conf, "b", &b);
    assert_eq!(talk(&a, &b, "10.99.0.3").ip().to_string(), "10.99.0.2");
    assert_eq!(talk(&b, &a, "fd99::2").ip().to_string(), "fd99::3");
    assert_eq!(
        talk(&a, &bench.node, "10.99.0.1").ip().to_string(),
        "10.99.0.2"
    );
    assert_eq!(talk(&bench.node, &b, "fd99::3").ip().to_string(), "fd99::1");

    let interfaces = first.json["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 2);
    assert_eq!(interfaces[0].get("sandbox"), None);
    assert_eq!(interfaces[1]["name"], "eth0");
    assert_eq!(interfaces[1]["sandbox"], a.path().to_str().unwrap());
    assert_eq!(first.json["ips"][1]["gateway"], "fd99::1");
    assert_eq!(first.json["ips"][1]["interface"], 1);
    let host: Value = serde_json::from_str(&bench.node.sh(&format!(
        "ip -j addr show {}",
        interfaces[0]["name"].as_str().unwrap()
    )))
    .unwrap();
    assert_eq!(host[0]["address"], interfaces[0]["mac"]);
    let link = bench.node.sh("ip link");
    assert!(link.contains("alias skiff-cni net a eth0"), "{link}");
    let addresses = host[0]["addr_info"].as_array().unwrap();
    let own = |ip: &str, bits: u64| {
        addresses
            .iter()
            .any(|one| one["local"] == ip && one["prefixlen"] == bits)
    };
    assert!(own("10.99.0.1", 32) && own("fd99::1", 128), "{host}");
    let routes = a.sh("ip route");
    assert!(
        routes.contains("10.99.0.0/24 via 10.99.0.1 dev eth0") && routes.contains("src 10.99.0.2"),
        "{routes}"
    );
    assert_eq!(
        bench.node.sh("cat /proc/sys/net/ipv4/ip_forward").trim(),
        "1"
    );
    let v6 = bench.node.sh("cat /proc/sys/net/ipv6/conf/all/forwarding");
    assert_eq!(v6.trim(), "1");
    bench.del(&conf, "a", &a);
    bench.del(&conf, "b", &b);
    assert_clean(&bench);
}

#[test]
fn what_leaves_the_node_has_its_address() {
    for backend in [None, Some("iptables"), Some("nftables")] {
        let bench = Bench::new();
        let outside = outside(&bench);
        let (a, b) = (TestNetns::new("pod"), TestNetns::new("pod"));
        let mut conf = conf(&bench);
        conf["ipMasq"] = json!(true);
        if let Some(backend) = backend {
            conf["ipMasqBackend"] = json!(backend);
        }
        let first = bench.add(&conf, "a", &a);
        bench.add(&conf, "b", &b);
        let seen = |ip| talk(&a, &outside, ip).ip().to_string();
        assert_eq!(seen("192.0.2.2"), "192.0.2.1", "{backend:?}");
        assert_eq!(seen("2001:db8::2"), "2001:db8::1", "{backend:?}");
        assert_eq!(talk(&a, &b, "10.99.0.3").ip().to_string(), "10.99.0.2");
        let checked = after(&first, &conf);
        bench.call("CHECK", &checked, "a", a.path()).expect_ok();
        bench.del(&conf, "a", &a);
        let left = rules(&bench);
        assert!(
            !left.contains("10.99.0.2") && left.contains("10.99.0.3"),
            "{left}"
        );
        // The namespace is gone and no result told.
        bench.call("DEL", &conf, "b", Path::new("")).expect_ok();
        let left = rules(&bench);
        assert!(
            !left.contains("10.99.0.") && !left.contains("fd99::"),
            "{left}"
        );
        assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
    }
}

#[test]
fn a_route_confined_to_the_link_has_no_gateway() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = conf(&bench);
    conf["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "scope": 253}]);
    let answer = bench.add(&conf, "a", &pod);
    let route = pod.sh("ip route show 198.51.100.0/24");
    assert!(
        route.contains("dev eth0 scope link") && !route.contains("via"),
        "{route}"
    );
    let previous = after(&answer, &conf);
    bench.call("CHECK", &previous, "a", pod.path()).expect_ok();
    bench.del(&previous, "a", &pod);
    assert_clean(&bench);
}

#[test]
fn mtu_and_name_servers_are_those_of_the_configuration() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = conf(&bench);
    let resolv = bench.dir.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 10.2.0.1\n").unwrap();
    conf["ipam"]["resolvConf"] = json!(resolv);
    conf["mtu"] = json!(1400);
    let answer = bench.add(&conf, "a", &pod);
    assert_eq!(answer.json["dns"]["nameservers"], json!(["10.2.0.1"]));
    assert!(pod.sh("ip link show eth0").contains("mtu 1400"));
    let host = bench.node.sh(&format!("ip link show {}", bench.veths()[0]));
    assert!(host.contains("mtu 1400"), "{host}");
    bench.del(&conf, "a", &pod);
    conf["dns"] = json!({"nameservers": ["10.1.0.1"], "search": ["a.example"]});
    let answer = bench.add(&conf, "b", &pod);
    assert_eq!(answer.json["dns"], conf["dns"]);
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_in_place() {
    let bench = Bench::new();
    let (pod, other) = (TestNetns::new("pod"), TestNetns::new("pod"));
    let conf = conf(&bench);
    bench.add(&conf, "a", &pod);
    let again = |pod: &TestNetns| bench.call("ADD", &conf, "a", pod.path()).code();
    assert_eq!((again(&pod), again(&other)), (Some(102), Some(102)));
    assert!(other.links().is_empty());
    assert_eq!(bench.leases(), ["10.99.0.2", "fd99::2"]);
    assert_eq!(
        talk(&bench.node, &pod, "10.99.0.2").ip().to_string(),
        "10.99.0.1"
    );
}

#[test]
fn a_failure_in_the_middle_leaves_nothing() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    // A route that the kernel refuses, after the pair is made.
    let mut wrong = conf(&bench);
    wrong["ipMasq"] = json!(true);
    wrong["ipam"]["routes"] = json!([{"dst": "192.168.0.0/16", "gw": "172.16.0.1"}]);
    assert_eq!(bench.call("ADD", &wrong, "a", pod.path()).code(), Some(100));
    assert_clean(&bench);
    assert!(pod.links().is_empty());
    // A name that a stranger has already is not the container's.
    let conf = conf(&bench);
    bench.add(&conf, "a", &pod);
    let name = bench.veths()[0].clone();
    bench.del(&conf, "a", &pod);
    bench
        .node
        .sh(&format!("ip link add {name} type veth peer name other0"));
    let again = bench.add(&conf, "a", &pod);
    let host = talk(&bench.node, &pod, &again.ip()).ip().to_string();
    assert_eq!(host, "10.99.0.1");
    bench.del(&conf, "a", &pod);
    assert_eq!(bench.veths(), [name]);
    assert!(bench.leases().is_empty());
}

/// What goes before DEL comes.
type Gone<'a> = &'a dyn Fn(&Bench, &TestNetns);

#[test]
fn del_succeeds_when_half_or_all_of_it_is_gone() {
    let bench = Bench::new();
    let mut conf = conf(&bench);
    conf["ipMasq"] = json!(true);
    // Never added.
    let never = Path::new("/run/netns/skiff-t-never-was");
    bench.call("DEL", &conf, "a", never).expect_ok();
    let gone: [Gone<'_>; 4] = [
        &|_, _| {},
        &|_, pod| drop(pod.sh("ip link del eth0")),
        &|bench, _| drop(bench.node.sh("iptables -t nat -F && ip6tables -t nat -F")),
        &|bench, _| std::fs::remove_dir_all(bench.dir.path().join("networks")).unwrap(),
    ];
    for go in gone {
        let pod = TestNetns::new("pod");
        let first = bench.add(&conf, "a", &pod);
        go(&bench, &pod);
        let told = after(&first, &conf);
        bench.del(&told, "a", &pod);
        bench.del(&told, "a", &pod);
        assert_clean(&bench);
        assert!(pod.links().is_empty());
    }
    let pod = TestNetns::new("pod");
    bench.add(&conf, "a", &pod);
    let path = pod.path().to_owned();
    drop(pod);
    bench.call("DEL", &conf, "a", &path).expect_ok();
    assert_clean(&bench);
}

#[test]
fn check_finds_what_is_gone() {
    // Inside the container, or on its host.
    for (inside, change) in [
        (true, "ip link del eth0"),
        (true, "ip addr del 10.99.0.2/24 dev eth0"),
        (true, "ip addr del fd99::2/64 dev eth0"),
        (true, "ip route del default"),
        (true, "ip link set eth0 address 02:00:00:00:00:01"),
        (false, "ip addr del 10.99.0.1/32 dev LINK"),
        (false, "ip route del 10.99.0.2"),
        (false, "ip link set LINK down"),
        (false, "iptables -t nat -F"),
    ] {
        let bench = Bench::new();
        let pod = TestNetns::new("pod");
        let mut conf = conf(&bench);
        conf["ipMasq"] = json!(true);
        let told = after(&bench.add(&conf, "a", &pod), &conf);
        let check = || bench.call("CHECK", &told, "a", pod.path());
        check().expect_ok();
        let place = if inside { &pod } else { &bench.node };
        place.sh(&change.replace("LINK", &bench.veths()[0]));
        let answer = check();
        assert_eq!(answer.code(), Some(103), "{change}: {}", answer.json);
    }
}

#[test]
fn gc_removes_what_no_valid_attachment_owns() {
    let bench = Bench::new();
    let mut conf = conf(&bench);
    conf["ipMasq"] = json!(true);
    let pods = [
        TestNetns::new("pod"),
        TestNetns::new("pod"),
        TestNetns::new("pod"),
    ];
    for (name, pod) in ["keep", "stale", "stale2"].iter().zip(&pods) {
        bench.add(&conf, name, pod);
    }
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    bench.call("GC", &conf, "x", Path::new("")).expect_ok();
    assert_eq!(bench.leases(), ["10.99.0.2", "fd99::2"]);
    assert_eq!(bench.veths().len(), 1);
    let rules = rules(&bench);
    assert!(
        rules.contains("10.99.0.2") && !rules.contains("10.99.0.3"),
        "{rules}"
    );
    assert_eq!(
        talk(&bench.node, &pods[0], "10.99.0.2").ip().to_string(),
        "10.99.0.1"
    );
    bench.call("STATUS", &conf, "x", Path::new("")).expect_ok();
}

#[test]
fn bad_configurations_are_refused_before_anything_is_made() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let change = |key: &str, value: Value| {
        let mut conf = conf(&bench);
        conf[key] = value;
        conf
    };
    let static_ipam = json!({
        "type": "static", "addresses": [{"address": "10.98.0.2/24"}],
    });
    for (name, conf, code) in [
        ("mtu too small", change("mtu", json!(67)), 7),
        ("mtu negative", change("mtu", json!(-1)), 7),
        ("mtu of wrong type", change("mtu", json!("big")), 6),
        ("no ipam", change("ipam", json!({})), 7),
        ("ipam of wrong type", change("ipam", json!([])), 6),
        (
            "ipam that is not there",
            change("ipam", json!({"type": "nope"})),
            105,
        ),
        (
            "ipam outside of CNI_PATH",
            change("ipam", json!({"type": "../sh"})),
            7,
        ),
        ("ipMasq of wrong type", change("ipMasq", json!("yes")), 6),
        (
            "unknown backend",
            {
                let mut conf = change("ipMasq", json!(true));
                conf["ipMasqBackend"] = json!("ipfw");
                conf
            },
            7,
        ),
        ("dns of wrong type", change("dns", json!([])), 6),
        ("no gateway", change("ipam", static_ipam), 105),
    ] {
        let answer = bench.call("ADD", &conf, "a", pod.path());
        assert_eq!(answer.code(), Some(code), "{name}: {}", answer.json);
        assert!(
            bench.node.links().is_empty() && pod.links().is_empty(),
            "{name}"
        );
        assert!(bench.leases().is_empty(), "{name}");
    }
    let never = Path::new("/run/netns/skiff-t-never-was");
    assert_eq!(bench.call("ADD", &conf(&bench), "a", never).code(), Some(4));
}

#[test]
fn either_undoes_what_the_reference_plugin_has_made() {
    let references = References::find();
    for (version, reference) in [("1.0.0", &references.old), ("1.1.0", &references.new)] {
        for ours_first in [true, false] {
            let bench = Bench::new();
            let outside = outside(&bench);
            let pod = TestNetns::new("pod");
            let mut conf = conf(&bench);
            conf["cniVersion"] = json!(version);
            // The reference cannot remove masquerading that it has not made, and says so.
            conf["ipMasq"] = json!(!ours_first);
            let call = |command: &str, conf: &Value, ours: bool| {
                let plugins = if ours {
                    bench.plugins()
                } else {
                    reference.as_path()
                };
                let call = RawCall::new(plugins, "ptp")
                    .command(command)
                    .env("CNI_CONTAINERID", "a")
                    .env("CNI_NETNS", pod.path())
                    .stdin(conf.to_string());
                let answer = call.run(&bench.node);
                let printed = String::from_utf8_lossy(&answer.stdout);
                assert_eq!(answer.exit, Some(0), "{command} {version}: {printed}");
                serde_json::from_slice::<Value>(&answer.stdout).unwrap_or_default()
            };
            let mut told = conf.clone();
            told["prevResult"] = call("ADD", &conf, ours_first);
            let ip = told["prevResult"]["ips"][0]["address"].as_str().unwrap();
            assert_eq!(ip, "10.99.0.2/24");
            assert_eq!(
                talk(&bench.node, &pod, "10.99.0.2").ip().to_string(),
                "10.99.0.1"
            );
            if !ours_first {
                assert_eq!(
                    talk(&pod, &outside, "192.0.2.2").ip().to_string(),
                    "192.0.2.1"
                );
            }
            if ours_first {
                call("CHECK", &told, false);
            }
            call("DEL", &told, !ours_first);
            assert!(pod.links().is_empty());
            assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
            if !ours_first {
                let rules = rules(&bench);
                assert!(!rules.contains("10.99.0.2"), "{rules}");
            }
        }
    }
}
