//! The bandwidth plugin: what the kernel's queues are told, and what that does to packets.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    net::{SocketAddr, UdpSocket},
    ops::Deref,
    path::Path,
};

use serde_json::{Value, json};
use skiff_tests_cni::{
    TestNetns, chained::Chained, compare::References, raw::RawCall, traffic::talk,
};

/// What the reference plugin calls the device of container `a` in the network `net`.
const IFB: &str = "bwpc3a99edf74e2";

/// A container, and its link's end in the node.
struct Scene {
    chained: Chained,
    veth: String,
}

impl Deref for Scene {
    type Target = Chained;

    fn deref(&self) -> &Chained {
        &self.chained
    }
}

impl Scene {
    fn new() -> Self {
        let chained = Chained::new("bandwidth");
        let veth = chained.bench.veths()[0].clone();
        Self { chained, veth }
    }

    /// Neighbours find each other, so that no packet waits for that.
    fn acquaint(&self) {
        let node = &self.bench.node;
        for (host, container) in [("10.99.0.1", "10.99.0.2"), ("fd99::1", "fd99::2")] {
            assert_eq!(talk(&self.pod, node, host).ip().to_string(), container);
            assert_eq!(talk(node, &self.pod, container).ip().to_string(), host);
        }
    }

    /// The queue at a link's root with its statistics.
    fn root(&self, link: &str) -> Value {
        let json = self
            .bench
            .node
            .sh(&format!("tc -s -j qdisc show dev {link}"));
        let queues: Vec<Value> = serde_json::from_str(&json).unwrap();
        let root = queues.into_iter().find(|queue| queue["root"] == true);
        root.unwrap()
    }

    fn ifb(&self) -> Option<String> {
        let links = self.bench.node.links();
        links.into_iter().find(|link| link.starts_with("bwp"))
    }

    #[track_caller]
    fn assert_unlimited(&self) {
        assert_eq!(self.ifb(), None);
        let queues = self
            .bench
            .node
            .sh(&format!("tc qdisc show dev {}", self.veth));
        assert!(
            !queues.contains("tbf") && !queues.contains("htb"),
            "{queues}"
        );
        assert!(!queues.contains("ingress"), "{queues}");
        // Packets go both ways.
        assert_eq!(
            talk(&self.pod, &self.bench.node, "10.99.0.1")
                .ip()
                .to_string(),
            "10.99.0.2"
        );
        assert_eq!(
            talk(&self.bench.node, &self.pod, "10.99.0.2")
                .ip()
                .to_string(),
            "10.99.0.1"
        );
    }
}

/// Slower than any machine sends: of a hundred packets most wait or are dropped.
fn slow() -> Value {
    json!({
        "ingressRate": 80_000, "ingressBurst": 160_000,
        "egressRate": 160_000, "egressBurst": 240_000,
    })
}

/// Sends so many packets of 1,000 bytes as fast as can be.
fn flood(from: &TestNetns, to: &str, count: usize) {
    let local = if to.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = from.run(|| UdpSocket::bind(local)).unwrap();
    let to: SocketAddr = if to.contains(':') {
        format!("[{to}]:9").parse().unwrap()
    } else {
        format!("{to}:9").parse().unwrap()
    };
    socket.set_nonblocking(true).unwrap();
    for _ in 0..count {
        // A full queue may say so.
        socket.send_to(&[0; 1000], to).ok();
    }
}

/// How many packets the queue has sent, and how many it has dropped or holds back.
fn counts(queue: &Value) -> (u64, u64) {
    let number = |key: &str| queue[key].as_u64().unwrap_or(0);
    (number("packets"), number("drops") + number("qlen"))
}

#[test]
fn the_kernel_is_told_what_the_reference_plugin_tells_it() {
    let scene = Scene::new();
    let keys = json!({
        "ingressRate": 1_000_000, "ingressBurst": 80_000,
        "egressRate": 2_000_000, "egressBurst": 160_000,
    });
    let answer = scene.add(&keys);
    // Bytes a second, bytes, microseconds.
    let limits = |queue: &Value| {
        let options = &queue["options"];
        (
            queue["kind"].as_str().unwrap().to_owned(),
            options["rate"].as_u64().unwrap(),
            options["burst"].as_u64().unwrap(),
        )
    };
    assert_eq!(
        limits(&scene.root(&scene.veth)),
        ("tbf".to_owned(), 125_000, 10_000)
    );
    let ifb = scene.ifb().unwrap();
    assert_eq!(
        limits(&scene.root(&ifb)),
        ("tbf".to_owned(), 250_000, 20_000)
    );
    let device = scene.bench.node.sh(&format!("ip -d -o link show {ifb}"));
    assert!(
        device.contains("mtu 1400") && device.contains(",UP"),
        "{device}"
    );
    assert!(device.contains("alias skiff-cni net a eth0"), "{device}");
    let filter = scene
        .bench
        .node
        .sh(&format!("tc filter show dev {} parent ffff:", scene.veth));
    assert!(
        filter.contains(&format!("Egress Redirect to device {ifb}")),
        "{filter}"
    );
    let interfaces = answer.json["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 3);
    assert_eq!(interfaces[2]["name"], ifb.as_str());
    assert!(device.contains(interfaces[2]["mac"].as_str().unwrap()));
    scene.check(&keys).expect_ok();
    scene.del(&keys);
    scene.assert_unlimited();
    scene.del(&keys);
}

#[test]
fn packets_wait_in_both_directions() {
    let scene = Scene::new();
    scene.acquaint();
    scene.add(&slow());
    flood(&scene.bench.node, "10.99.0.2", 200);
    let (sent, held) = counts(&scene.root(&scene.veth));
    assert!(
        held > 100 && sent > 5,
        "to the container: {sent} sent, {held} held"
    );
    flood(&scene.pod, "fd99::1", 200);
    let (sent, held) = counts(&scene.root(&scene.ifb().unwrap()));
    assert!(
        held > 100 && sent > 5,
        "from the container: {sent} sent, {held} held"
    );
    scene.del(&slow());
    scene.assert_unlimited();
    let queue = scene.root(&scene.veth);
    flood(&scene.bench.node, "10.99.0.2", 200);
    assert_eq!(counts(&queue).1, 0);
}

#[test]
fn one_direction_alone_is_limited() {
    for (keys, veth, ifb) in [
        (
            json!({"ingressRate": 80_000, "ingressBurst": 80_000}),
            true,
            false,
        ),
        (
            json!({"egressRate": 80_000, "egressBurst": 80_000}),
            false,
            true,
        ),
    ] {
        let scene = Scene::new();
        scene.add(&keys);
        assert_eq!(scene.root(&scene.veth)["kind"] == "tbf", veth, "{keys}");
        assert_eq!(scene.ifb().is_some(), ifb, "{keys}");
        scene.check(&keys).expect_ok();
        scene.del(&keys);
        scene.assert_unlimited();
    }
}

#[test]
fn subnets_are_exempt_or_the_only_ones() {
    // The other side's second address is in the subnet, the first is not.
    for (key, near_is_limited) in [("unshapedSubnets", true), ("shapedSubnets", false)] {
        let scene = Scene::new();
        scene.bench.node.sh(
            "ip addr add 10.7.0.1/32 dev lo && ip addr add fd07::1/128 dev lo && ip link set lo up",
        );
        scene.acquaint();
        let mut keys = slow();
        keys[key] = json!(["10.7.0.0/16", "fd07::/33"]);
        scene.add(&keys);
        scene.check(&keys).expect_ok();
        assert_eq!(scene.check(&slow()).code(), Some(103));
        let ifb = scene.ifb().unwrap();
        let held = |to: &str| {
            let before = counts(&scene.root(&ifb)).1;
            flood(&scene.pod, to, 100);
            counts(&scene.root(&ifb)).1.saturating_sub(before)
        };
        for (ip, limited) in [
            ("10.7.0.1", !near_is_limited),
            ("fd07::1", !near_is_limited),
            ("10.99.0.1", near_is_limited),
            ("fd99::1", near_is_limited),
        ] {
            let held = held(ip);
            assert_eq!(held > 50, limited, "{key}: {held} held on the way to {ip}");
        }
        // Towards the container, the other side's address is the source.
        let sent_from = |from: &str| {
            let before = counts(&scene.root(&scene.veth)).1;
            let socket = scene.bench.node.run(|| UdpSocket::bind((from, 0))).unwrap();
            let to = if from.contains(':') {
                "[fd99::2]:9"
            } else {
                "10.99.0.2:9"
            };
            socket.set_nonblocking(true).unwrap();
            for _ in 0..100 {
                socket.send_to(&[0; 1000], to).ok();
            }
            counts(&scene.root(&scene.veth)).1.saturating_sub(before)
        };
        for (ip, limited) in [
            ("10.7.0.1", !near_is_limited),
            ("fd07::1", !near_is_limited),
            ("10.99.0.1", near_is_limited),
            ("fd99::1", near_is_limited),
        ] {
            let held = sent_from(ip);
            assert_eq!(
                held > 50,
                limited,
                "{key}: {held} held on the way from {ip}"
            );
        }
        scene.del(&keys);
        scene.assert_unlimited();
    }
}

#[test]
fn the_runtime_is_heard_where_the_configuration_is_silent() {
    let scene = Scene::new();
    let rate = |scene: &Scene| scene.root(&scene.veth)["options"]["rate"].as_u64();
    let mut keys = json!({"runtimeConfig": {"bandwidth": {
        "ingressRate": 1_000_000, "ingressBurst": 80_000,
    }}});
    scene.add(&keys);
    assert_eq!(rate(&scene), Some(125_000));
    scene.check(&keys).expect_ok();
    scene.del(&keys);
    keys["ingressRate"] = json!(2_000_000);
    keys["ingressBurst"] = json!(80_000);
    scene.add(&keys);
    assert_eq!(rate(&scene), Some(250_000));
    scene.del(&keys);
    // Nothing asked, nothing done.
    for keys in [
        json!({}),
        json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0}),
        json!({"runtimeConfig": {}}),
    ] {
        assert_eq!(scene.add(&keys).json, scene.first.json);
        scene.check(&keys).expect_ok();
        scene.assert_unlimited();
        scene.del(&keys);
    }
}

#[test]
fn the_fastest_and_the_slowest_are_kept() {
    // More bytes a second than a number of 32 bits holds.
    for (rate, burst) in [(800_000_000_000_u64, 8_000_000_u64), (8_000, 8_000_000_000)] {
        let scene = Scene::new();
        let keys = json!({"ingressRate": rate, "ingressBurst": burst});
        scene.add(&keys);
        let queue = scene.root(&scene.veth);
        assert_eq!(queue["options"]["rate"].as_u64(), Some(rate / 8), "{queue}");
        scene.check(&keys).expect_ok();
    }
}

#[test]
fn check_finds_what_differs() {
    let changes = [
        "tc qdisc del dev VETH root",
        "tc qdisc change dev VETH handle 1: root tbf rate 1mbit burst 20kb latency 25ms",
        "tc qdisc del dev VETH ingress",
        "tc filter del dev VETH parent ffff:",
        "tc qdisc del dev IFB root",
        "ip link del IFB",
        "ip link del VETH",
    ];
    for change in changes {
        let scene = Scene::new();
        scene.add(&slow());
        scene.check(&slow()).expect_ok();
        let ifb = scene.ifb().unwrap();
        let change = change.replace("VETH", &scene.veth).replace("IFB", &ifb);
        scene.bench.node.sh(&change);
        let answer = scene.check(&slow());
        assert_eq!(answer.code(), Some(103), "{change}: {}", answer.json);
    }
    let scene = Scene::new();
    scene.add(&slow());
    let mut other = slow();
    other["egressRate"] = json!(320_000);
    assert_eq!(scene.check(&other).code(), Some(103));
}

#[test]
fn a_failure_in_the_middle_leaves_nothing() {
    // Somebody's queue is in the way: on what the container receives, on what it sends.
    for (queue, kept) in [
        ("root handle 7: pfifo limit 10", "pfifo 7:"),
        ("ingress", "ingress ffff:"),
    ] {
        let scene = Scene::new();
        let veth = &scene.veth;
        let node = &scene.bench.node;
        node.sh(&format!("tc qdisc add dev {veth} {queue}"));
        let conf = scene.conf(&slow());
        let answer = scene.bench.call("ADD", &conf, "a", scene.pod.path());
        assert_eq!(answer.code(), Some(102), "{}", answer.json);
        assert_eq!(scene.ifb(), None);
        let queues = node.sh(&format!("tc qdisc show dev {veth}"));
        assert!(queues.contains(kept) && !queues.contains("tbf"), "{queues}");
        assert_eq!(queues.contains("ingress"), queue == "ingress", "{queues}");
    }
    // A second ADD.
    let scene = Scene::new();
    scene.add(&slow());
    let conf = scene.conf(&slow());
    let answer = scene.bench.call("ADD", &conf, "a", scene.pod.path());
    assert_eq!(answer.code(), Some(102), "{}", answer.json);
    scene.check(&slow()).expect_ok();
}

#[test]
fn del_succeeds_when_half_or_all_of_it_is_gone() {
    for change in [
        "ip link del IFB",
        "tc qdisc del dev VETH ingress",
        "tc qdisc del dev VETH root",
    ] {
        let scene = Scene::new();
        scene.add(&slow());
        let ifb = scene.ifb().unwrap();
        let change = change.replace("VETH", &scene.veth).replace("IFB", &ifb);
        scene.bench.node.sh(&change);
        scene.del(&slow());
        scene.assert_unlimited();
    }
    // The pair; the namespace, told or not; what the plugin before has said.
    let scene = Scene::new();
    scene.add(&slow());
    scene.bench.node.sh(&format!("ip link del {}", scene.veth));
    scene.del(&slow());
    assert_eq!(scene.ifb(), None);
    for told in [true, false] {
        let scene = Scene::new();
        scene.add(&slow());
        let mut conf = scene.conf(&slow());
        conf.as_object_mut().unwrap().remove("prevResult");
        let Chained { bench, pod, .. } = scene.chained;
        let path = pod.path().to_owned();
        drop(pod);
        let path = if told { path.as_path() } else { Path::new("") };
        bench.call("DEL", &conf, "a", path).expect_ok();
        assert!(
            !bench
                .node
                .links()
                .iter()
                .any(|link| link.starts_with("bwp"))
        );
    }
}

#[test]
fn gc_removes_what_no_valid_attachment_owns() {
    let scene = Scene::new();
    scene.add(&slow());
    // Somebody else's, and one of a network that is not asked about.
    scene.bench.node.sh(
        "ip link add bwpstranger type ifb && ip link add bwpother type ifb \
         && ip link set bwpother alias 'skiff-cni other a eth0'",
    );
    let mut conf = scene.conf(&slow());
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    let gc = |conf: &Value| scene.bench.call("GC", conf, "x", Path::new("")).expect_ok();
    gc(&conf);
    scene.check(&slow()).expect_ok();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    gc(&conf);
    let mut left = scene.bench.node.links();
    left.retain(|link| link.starts_with("bwp"));
    left.sort();
    assert_eq!(left, ["bwpother", "bwpstranger"]);
    scene
        .bench
        .call("STATUS", &conf, "x", Path::new(""))
        .expect_ok();
}

#[test]
fn bad_configurations_are_refused_before_anything_is_made() {
    let scene = Scene::new();
    let change = |key: &str, value: Value| {
        let mut keys = slow();
        keys[key] = value;
        keys
    };
    let gigabytes_4 = 4_u64 * 1024 * 1024 * 1024 * 8;
    for (name, keys, code) in [
        ("rate without burst", json!({"ingressRate": 1000}), 7),
        ("burst without rate", json!({"egressBurst": 1000}), 7),
        ("burst of zero", change("egressBurst", json!(0)), 7),
        (
            "rate of less than a byte",
            change("egressRate", json!(7)),
            7,
        ),
        (
            "burst of less than a byte",
            change("egressBurst", json!(7)),
            7,
        ),
        (
            "burst of 4 GB",
            change("ingressBurst", json!(gigabytes_4)),
            7,
        ),
        ("rate negative", change("ingressRate", json!(-1)), 6),
        ("rate with a point", change("ingressRate", json!(1.5)), 6),
        ("rate too large", change("ingressRate", json!(1e30)), 6),
        (
            "rate of wrong type",
            change("ingressRate", json!("fast")),
            6,
        ),
        ("subnet", change("shapedSubnets", json!(["hello"])), 7),
        (
            "subnet without length",
            change("shapedSubnets", json!(["10.0.0.1"])),
            7,
        ),
        (
            "subnets of wrong type",
            change("shapedSubnets", json!("10.0.0.0/8")),
            6,
        ),
        (
            "both kinds of subnets",
            {
                let mut keys = change("shapedSubnets", json!(["10.0.0.0/8"]));
                keys["unshapedSubnets"] = json!(["10.0.0.0/8"]);
                keys
            },
            7,
        ),
        (
            "runtime's",
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1000}}}),
            7,
        ),
    ] {
        let answer = scene
            .bench
            .call("ADD", &scene.conf(&keys), "a", scene.pod.path());
        assert_eq!(answer.code(), Some(code), "{name}: {}", answer.json);
        scene.assert_unlimited();
    }
    let add = |conf: &Value| scene.bench.call("ADD", conf, "a", scene.pod.path()).code();
    let mut conf = scene.conf(&slow());
    conf["prevResult"]["interfaces"][0]["name"] = json!("veth0");
    assert_eq!(add(&conf), Some(7), "another link in prevResult");
    conf.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(add(&conf), Some(7), "no prevResult");
    scene
        .pod
        .sh("ip link set eth0 down && ip link set eth0 name eth1");
    assert_eq!(add(&scene.conf(&slow())), Some(7), "no such link");
    let never = Path::new("/run/netns/skiff-t-never-was");
    let answer = scene.bench.call("ADD", &scene.conf(&slow()), "a", never);
    assert_eq!(answer.code(), Some(4), "{}", answer.json);
}

#[test]
fn either_undoes_what_the_reference_plugin_has_made() {
    let references = References::find();
    for (version, reference) in [("1.0.0", &references.old), ("1.1.0", &references.new)] {
        for ours_first in [true, false] {
            let scene = Scene::new();
            let mut conf = scene.conf(&slow());
            conf["cniVersion"] = json!(version);
            conf["prevResult"]["cniVersion"] = json!(version);
            let call = |command: &str, conf: &Value, ours: bool| {
                let plugins = if ours {
                    scene.bench.plugins()
                } else {
                    reference.as_path()
                };
                let call = RawCall::new(plugins, "bandwidth")
                    .command(command)
                    .env("CNI_CONTAINERID", "a")
                    .env("CNI_NETNS", scene.pod.path())
                    .stdin(conf.to_string());
                let answer = call.run(&scene.bench.node);
                let printed = String::from_utf8_lossy(&answer.stdout);
                assert_eq!(answer.exit, Some(0), "{command} {version}: {printed}");
                serde_json::from_slice::<Value>(&answer.stdout).unwrap_or_default()
            };
            let result = call("ADD", &conf, ours_first);
            assert_eq!(scene.ifb().as_deref(), Some(IFB));
            let mut told = conf.clone();
            told["prevResult"] = result;
            call("CHECK", &told, !ours_first);
            call("DEL", &told, !ours_first);
            assert_eq!(scene.ifb(), None);
        }
    }
}
