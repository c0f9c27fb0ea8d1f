//! The bridge plugin in namespaces of its own.

use std::{collections::HashSet, path::Path, thread};

use serde_json::{Value, json};
use skiff_tests_cni::{Bench, TestNetns, traffic::talk};

fn nat_rules(bench: &Bench) -> String {
    bench.node.sh("iptables -w -t nat -S")
}

#[test]
fn pods_reach_each_other_and_their_node() {
    let bench = Bench::new();
    let (a, b) = (TestNetns::new("pod"), TestNetns::new("pod"));
    let conf = bench.bridge_conf();
    let first = bench.add(&conf, "a", &a);
    let second = bench.add(&conf, "b", &b);
    assert_eq!((&*first.ip(), &*second.ip()), ("10.99.0.2", "10.99.0.3"));
    assert_eq!(talk(&a, &b, &second.ip()).ip().to_string(), first.ip());
    assert_eq!(talk(&b, &a, &first.ip()).ip().to_string(), second.ip());
    assert_eq!(
        talk(&a, &bench.node, "10.99.0.1").ip().to_string(),
        first.ip()
    );
    assert_eq!(
        talk(&bench.node, &b, &second.ip()).ip().to_string(),
        "10.99.0.1"
    );

    let interfaces = first.json["interfaces"].as_array().unwrap();
    assert_eq!(interfaces[0]["name"], "br0");
    assert_eq!(interfaces[1]["name"], bench.veths()[0].as_str());
    assert_eq!(interfaces[2]["name"], "eth0");
    assert_eq!(interfaces[2]["mac"], "0a:58:0a:63:00:02");
    assert_eq!(first.json["ips"][0]["interface"], 2);
    assert_eq!(first.json["ips"][0]["gateway"], "10.99.0.1");
    assert_eq!(
        first.json["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.99.0.1"}])
    );
    assert_eq!(
        bench.node.sh("cat /proc/sys/net/ipv4/ip_forward").trim(),
        "1"
    );
    bench.del(&conf, "a", &a);
    bench.del(&conf, "b", &b);
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
}

#[test]
fn an_ipv6_pod_is_usable_at_once() {
    let bench = Bench::new();
    let (a, b) = (TestNetns::new("pod"), TestNetns::new("pod"));
    let mut conf = bench.bridge_conf();
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    bench.add(&conf, "a", &a);
    let second = bench.add(&conf, "b", &b);
    assert_eq!(second.json["ips"][1]["address"], "fd99::3/64");
    assert_eq!(second.json["routes"].as_array().unwrap().len(), 2);
    assert_eq!(talk(&a, &b, "fd99::3").ip().to_string(), "fd99::2");
    bench.del(&conf, "a", &a);
    assert_eq!(bench.leases(), ["10.99.0.3", "fd99::3"]);
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_in_place() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let conf = bench.bridge_conf();
    let first = bench.add(&conf, "a", &pod);
    assert_eq!(bench.call("ADD", &conf, "a", pod.path()).code(), Some(102));
    // Another namespace with the same container id: the lease tells.
    let other = TestNetns::new("pod");
    assert_eq!(
        bench.call("ADD", &conf, "a", other.path()).code(),
        Some(102)
    );
    assert_eq!(bench.leases(), [first.ip()]);
    assert_eq!(
        talk(&bench.node, &pod, &first.ip()).ip().to_string(),
        "10.99.0.1"
    );
    assert!(other.links().is_empty());
}

#[test]
fn del_can_be_repeated_and_needs_no_namespace() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let conf = bench.bridge_conf();
    bench.add(&conf, "a", &pod);
    bench.del(&conf, "a", &pod);
    bench.del(&conf, "a", &pod);
    assert!(pod.links().is_empty());

    bench.add(&conf, "b", &pod);
    let path = pod.path().to_owned();
    drop(pod);
    bench.call("DEL", &conf, "b", &path).expect_ok();
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));

    let pod = TestNetns::new("pod");
    bench.add(&conf, "c", &pod);
    bench.call("DEL", &conf, "c", Path::new("")).expect_ok();
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
    // Never added at all.
    bench
        .call("DEL", &conf, "d", Path::new("/run/netns/skiff-t-never-was"))
        .expect_ok();
}

#[test]
fn a_failure_in_the_middle_leaves_nothing() {
    let bench = Bench::new();
    let mut conf = bench.bridge_conf();
    conf["ipMasq"] = json!(true);
    let pod = TestNetns::new("pod");

    // Address taken, then the bridge has another one.
    bench
        .node
        .sh("ip link add br0 type bridge && ip addr add 10.5.0.1/24 dev br0 && ip link set br0 up");
    let before = nat_rules(&bench);
    assert_eq!(bench.call("ADD", &conf, "a", pod.path()).code(), Some(102));
    assert_eq!(
        (bench.veths().len(), bench.leases().len(), pod.links().len()),
        (0, 0, 0)
    );
    assert_eq!(nat_rules(&bench), before);
    conf["forceAddress"] = json!(true);
    bench.add(&conf, "a", &pod);
    assert!(
        !bench
            .node
            .sh("ip -o addr show dev br0")
            .contains("10.5.0.1")
    );

    // A route that the kernel refuses.
    let other = TestNetns::new("pod");
    conf["ipam"]["routes"] = json!([{"dst": "192.168.0.0/16", "gw": "172.16.0.1"}]);
    assert_eq!(
        bench.call("ADD", &conf, "b", other.path()).code(),
        Some(100)
    );
    assert_eq!(
        (
            bench.veths().len(),
            bench.leases().len(),
            other.links().len()
        ),
        (1, 1, 0)
    );

    // No address left.
    let mut small = bench.bridge_conf();
    small["name"] = json!("small");
    small["bridge"] = json!("br1");
    small["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/30"}]]);
    let third = TestNetns::new("pod");
    bench.add(&small, "x", &third);
    assert_eq!(
        bench.call("ADD", &small, "y", other.path()).code(),
        Some(101)
    );
    assert_eq!((bench.veths().len(), other.links().len()), (2, 0));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_configurations_are_refused_before_anything_is_made() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let change = |key: &str, value: Value| {
        let mut conf = bench.bridge_conf();
        conf[key] = value;
        conf
    };
    let ipam = |value: Value| {
        let mut conf = bench.bridge_conf();
        conf["ipam"] = value;
        conf
    };
    let dir = bench.dir.path().join("networks");
    let table = [
        ("vlan", change("vlan", json!(4095)), 7),
        ("vlan of wrong type", change("vlan", json!("7")), 6),
        ("trunk id", change("vlanTrunk", json!([{"id": 0}])), 7),
        (
            "half a range",
            change("vlanTrunk", json!([{"minID": 5}])),
            7,
        ),
        (
            "range backwards",
            change("vlanTrunk", json!([{"minID": 6, "maxID": 5}])),
            7,
        ),
        (
            "name of the VLAN's gateway",
            {
                let mut conf = change("vlan", json!(4000));
                conf["bridge"] = json!("fifteen-letters");
                conf
            },
            7,
        ),
        (
            "uplink that is no port",
            {
                let mut conf = change("vlan", json!(7));
                conf["uplinkInterface"] = json!("lo");
                conf
            },
            7,
        ),
        (
            "disabled link with addresses",
            change("disableContainerInterface", json!(true)),
            7,
        ),
        (
            "masquerade backend",
            {
                let mut conf = change("ipMasq", json!(true));
                conf["ipMasqBackend"] = json!("ipfw");
                conf
            },
            7,
        ),
        ("mtu of wrong type", change("mtu", json!("big")), 6),
        ("mtu out of range", change("mtu", json!(-1)), 7),
        ("bridge name", change("bridge", json!("../x")), 7),
        (
            "hairpin and promisc",
            {
                let mut conf = change("hairpinMode", json!(true));
                conf["promiscMode"] = json!(true);
                conf
            },
            7,
        ),
        ("bridge that is none", change("bridge", json!("lo")), 7),
        ("mac", change("runtimeConfig", json!({"mac": "zz"})), 7),
        ("ipam that is not there", ipam(json!({"type": "nope"})), 105),
        (
            "ipam outside of CNI_PATH",
            ipam(json!({"type": "../sh"})),
            7,
        ),
        ("ipam of wrong type", ipam(json!([])), 6),
        (
            "no range",
            ipam(json!({"type": "host-local", "dataDir": dir})),
            7,
        ),
        (
            "host bits",
            ipam(json!({"type": "host-local", "dataDir": dir, "subnet": "10.0.0.1/24"})),
            7,
        ),
        (
            "subnet of wrong form",
            ipam(json!({"type": "host-local", "dataDir": dir, "subnet": "x"})),
            6,
        ),
        (
            "relative dataDir",
            ipam(json!({"type": "host-local", "dataDir": "x", "subnet": "10.0.0.0/24"})),
            7,
        ),
        (
            "requested address",
            change("runtimeConfig", json!({"ips": ["10.1.1.1/24"]})),
            102,
        ),
        (
            "prevResult",
            change("prevResult", json!({"cniVersion": "1.0.0", "ips": "x"})),
            6,
        ),
    ];
    for (name, conf, code) in table {
        let answer = bench.call("ADD", &conf, "a", pod.path());
        assert_eq!(
            (answer.ok, answer.code()),
            (false, Some(code)),
            "{name}: {}",
            answer.json
        );
        assert!(bench.node.links().is_empty(), "{name}");
        assert!(
            bench.leases().is_empty() && pod.links().is_empty(),
            "{name}"
        );
    }
    let conf = bench.bridge_conf();
    let file = bench.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [
        file.as_path(),
        Path::new("/proc/self/ns/uts"),
        Path::new("/nowhere"),
    ] {
        let answer = bench.call("ADD", &conf, "a", path);
        assert_eq!(
            answer.code(),
            Some(4),
            "{}: {}",
            path.display(),
            answer.json
        );
    }
    assert!(bench.leases().is_empty());
}

#[test]
fn twenty_at_once_get_different_addresses() {
    let bench = Bench::new();
    let conf = bench.bridge_conf();
    let pods: Vec<TestNetns> = (0..20).map(|_| TestNetns::new("pod")).collect();
    let ips: HashSet<String> = thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                let (bench, conf) = (&bench, &conf);
                scope.spawn(move || bench.add(conf, &format!("c{number}"), pod).ip())
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    assert_eq!(
        (ips.len(), bench.veths().len(), bench.leases().len()),
        (20, 20, 20)
    );
    thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            let (bench, conf) = (&bench, &conf);
            scope.spawn(move || bench.del(conf, &format!("c{number}"), pod));
        }
    });
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
}

#[test]
fn check_misses_what_is_gone() {
    let bench = Bench::new();
    let mut conf = bench.bridge_conf();
    conf["ipMasq"] = json!(true);
    let damages = [
        ("address", "pod", "ip addr del 10.99.0.2/24 dev eth0"),
        ("route", "pod", "ip route del default"),
        ("link down", "pod", "ip link set eth0 down"),
        ("link", "pod", "ip link del eth0"),
        (
            "hardware address",
            "pod",
            "ip link set eth0 address 02:00:00:00:00:01",
        ),
        (
            "port",
            "node",
            "ip link set $(ls /sys/class/net | grep ^veth) nomaster",
        ),
        ("gateway", "node", "ip addr del 10.99.0.1/24 dev br0"),
        ("bridge", "node", "ip link del br0"),
        ("rules", "node", "iptables -w -t nat -F POSTROUTING"),
    ];
    for (name, place, damage) in damages {
        let (bench, pod) = (Bench::new(), TestNetns::new("pod"));
        conf["ipam"]["dataDir"] = json!(bench.dir.path().join("networks"));
        let result = bench.add(&conf, "a", &pod);
        let mut check = conf.clone();
        check["prevResult"] = result.json;
        bench.call("CHECK", &check, "a", pod.path()).expect_ok();
        // `ls /sys` would show the machine's links: sysfs is bound to the namespace that mounted it.
        let damage = damage.replace(
            "$(ls /sys/class/net | grep ^veth)",
            bench.veths().first().map_or("", String::as_str),
        );
        let place = if place == "pod" { &pod } else { &bench.node };
        place.sh(&damage);
        let answer = bench.call("CHECK", &check, "a", pod.path());
        assert_eq!(answer.code(), Some(103), "{name}: {}", answer.json);
        bench.del(&check, "a", &pod);
        assert!(
            bench.veths().is_empty() && bench.leases().is_empty(),
            "{name}"
        );
    }
    let pod = TestNetns::new("pod");
    conf["ipam"]["dataDir"] = json!(bench.dir.path().join("networks"));
    let result = bench.add(&conf, "a", &pod);
    conf["prevResult"] = result.json;
    std::fs::remove_file(bench.dir.path().join("networks/net/10.99.0.2")).unwrap();
    assert_eq!(
        bench.call("CHECK", &conf, "a", pod.path()).code(),
        Some(103)
    );
}

#[test]
fn each_version_gets_its_result() {
    let bench = Bench::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = TestNetns::new("pod");
        let mut conf = bench.bridge_conf();
        conf["cniVersion"] = json!(version);
        let json = bench.add(&conf, "a", &pod).json;
        assert_eq!(json["cniVersion"], version);
        let family = json["ips"][0].get("version");
        assert_eq!(
            family.and_then(Value::as_str),
            version.starts_with('0').then_some("4"),
            "{version}"
        );
        let mtu = json["interfaces"][2].get("mtu");
        assert_eq!(mtu.is_some(), version == "1.1.0", "{version}");
        bench.del(&conf, "a", &pod);
    }
    let pod = TestNetns::new("pod");
    for version in ["0.0.9", "2.0.0", "x"] {
        let mut conf = bench.bridge_conf();
        conf["cniVersion"] = json!(version);
        assert_eq!(
            bench.call("ADD", &conf, "a", pod.path()).code(),
            Some(1),
            "{version:?}"
        );
    }
}

#[test]
fn packets_to_the_outside_carry_the_nodes_address() {
    let bench = Bench::new();
    let (pod, other, outside) = (
        TestNetns::new("pod"),
        TestNetns::new("pod"),
        TestNetns::new("out"),
    );
    bench.node.sh(&format!(
        "ip link add up0 type veth peer name up0 netns {} && ip addr add 192.0.2.1/24 dev up0 && ip link set up0 up",
        outside.path().file_name().unwrap().to_str().unwrap()
    ));
    outside.sh("ip addr add 192.0.2.2/24 dev up0 && ip link set up0 up");
    let mut conf = bench.bridge_conf();
    conf["ipMasq"] = json!(true);
    let first = bench.add(&conf, "a", &pod);
    let second = bench.add(&conf, "b", &other);
    assert_eq!(
        talk(&pod, &outside, "192.0.2.2").ip().to_string(),
        "192.0.2.1"
    );
    assert_eq!(
        talk(&pod, &other, &second.ip()).ip().to_string(),
        first.ip()
    );
    assert_eq!(
        talk(&pod, &bench.node, "10.99.0.1").ip().to_string(),
        first.ip()
    );

    let rules = nat_rules(&bench);
    assert_eq!(rules.matches("-j MASQUERADE").count(), 2, "{rules}");
    bench.del(&conf, "a", &pod);
    let rules = nat_rules(&bench);
    assert_eq!(rules.matches("-j MASQUERADE").count(), 1, "{rules}");
    assert!(rules.contains("id:b") && !rules.contains("id:a"), "{rules}");
    assert_eq!(
        talk(&other, &outside, "192.0.2.2").ip().to_string(),
        "192.0.2.1"
    );
    // The namespace and the result are gone: the rule is found by the container's name.
    bench.call("DEL", &conf, "b", Path::new("")).expect_ok();
    assert!(
        !nat_rules(&bench).contains("SKIFF"),
        "{}",
        nat_rules(&bench)
    );
}

#[test]
fn gc_removes_what_no_valid_attachment_owns() {
    let bench = Bench::new();
    let mut conf = bench.bridge_conf();
    conf["ipMasq"] = json!(true);
    let pods = [TestNetns::new("pod"), TestNetns::new("pod")];
    for (name, pod) in ["keep", "stale"].iter().zip(&pods) {
        bench.add(&conf, name, pod);
    }
    let mut other = bench.bridge_conf();
    other["name"] = json!("other");
    other["bridge"] = json!("br1");
    other["ipMasq"] = json!(true);
    other["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/24"}]]);
    let third = TestNetns::new("pod");
    bench.add(&other, "elsewhere", &third);
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    bench.call("GC", &conf, "x", Path::new("")).expect_ok();
    assert_eq!(bench.leases(), ["10.99.0.2"]);
    assert_eq!(bench.veths().len(), 2);
    assert!(pods[1].links().is_empty() && !third.links().is_empty());
    let rules = nat_rules(&bench);
    assert!(
        rules.contains("id:keep") && rules.contains("id:elsewhere") && !rules.contains("id:stale")
    );
    bench.call("STATUS", &conf, "x", Path::new("")).expect_ok();
}

#[test]
fn options_of_link_and_port_arrive() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = bench.bridge_conf();
    conf["mtu"] = json!(1400);
    conf["hairpinMode"] = json!(true);
    conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:aa", "ips": ["10.99.0.77/24"]});
    let answer = bench.add(&conf, "a", &pod);
    assert_eq!(answer.ip(), "10.99.0.77");
    let link = pod.sh("ip -o link show eth0");
    assert!(
        link.contains("mtu 1400") && link.contains("02:00:00:00:00:aa"),
        "{link}"
    );
    let port = bench
        .node
        .sh(&format!("ip -d -o link show {}", bench.veths()[0]));
    assert!(
        port.contains("hairpin on") && port.contains("skiff-cni net a eth0"),
        "{port}"
    );
    assert!(port.contains("mtu 1400"), "{port}");
}
