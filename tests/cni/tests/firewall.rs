//! The firewall plugin on nodes that forward nothing by themselves.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{path::Path, thread};

use serde_json::{Value, json};
use skiff_tests_cni::{
    Answer, Bench, TestNetns,
    compare::References,
    raw::RawCall,
    traffic::{after, reaches, talk},
};

/// A node that drops what it should forward, with a host beyond it.
struct Scene {
    bench: Bench,
    outside: TestNetns,
}

impl Scene {
    fn new() -> Self {
        let bench = Bench::new();
        let outside = TestNetns::new("out");
        let name = outside.path().file_name().unwrap().to_str().unwrap();
        bench.node.sh(&format!(
            "iptables -P FORWARD DROP && ip6tables -P FORWARD DROP \
             && ip link add up0 type veth peer name up0 netns {name} && ip link set up0 up \
             && ip addr add 192.0.2.1/24 dev up0 && ip addr add 2001:db8::1/64 dev up0 nodad"
        ));
        outside.sh("ip link set up0 up && ip addr add 192.0.2.2/24 dev up0 \
             && ip addr add 2001:db8::2/64 dev up0 nodad \
             && ip route add default via 192.0.2.1 && ip route add default via 2001:db8::1");
        Self { bench, outside }
    }

    /// A container by ptp; its result.
    fn container(&self, name: &str, pod: &TestNetns) -> Answer {
        let conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "ptp",
            "ipam": {
                "type": "host-local", "dataDir": self.bench.dir.path().join("networks"),
                "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        });
        self.bench.add(&conf, name, pod)
    }

    fn rules(&self) -> String {
        self.bench
            .node
            // Without the comments, which tell the time.
            .sh("(iptables-save -t filter; ip6tables-save -t filter) | grep -v '^#'")
    }
}

fn conf(previous: &Answer) -> Value {
    // Whatever firewalld the machine has is none of ours.
    let conf = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "firewall", "backend": "iptables",
    });
    after(previous, &conf)
}

/// A result without a link behind it: rules need none.
fn result(version: &str, ips: &[&str]) -> Answer {
    let ips: Vec<Value> = ips
        .iter()
        .map(|ip| json!({"address": ip, "interface": 2}))
        .collect();
    Answer {
        ok: true,
        json: json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "br0"}, {"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/x"},
            ],
            "ips": ips,
        }),
    }
}

#[test]
fn packets_pass_with_the_plugin_only() {
    let scene = Scene::new();
    let pod = TestNetns::new("pod");
    let first = scene.container("a", &pod);
    let conf = conf(&first);
    let passes = |ip| reaches(&pod, &scene.outside, ip);
    assert!(!passes("192.0.2.2") && !passes("2001:db8::2"));
    let answer = scene.bench.add(&conf, "a", &pod);
    assert_eq!(answer.json, first.json);
    let seen = |ip| talk(&pod, &scene.outside, ip).ip().to_string();
    assert_eq!(seen("192.0.2.2"), "10.99.0.2");
    assert_eq!(seen("2001:db8::2"), "fd99::2");
    // Nobody is let in by that.
    assert!(!reaches(&scene.outside, &pod, "10.99.0.2"));
    scene
        .bench
        .call("CHECK", &conf, "a", pod.path())
        .expect_ok();
    scene.bench.del(&conf, "a", &pod);
    assert!(!passes("192.0.2.2") && !passes("2001:db8::2"));
    let rules = scene.rules();
    assert!(
        !rules.contains("10.99.0.2") && !rules.contains("fd99::2"),
        "{rules}"
    );
    assert!(!rules.contains("SKIFF"), "{rules}");
    scene.bench.del(&conf, "a", &pod);
}

#[test]
fn the_administrators_rules_come_first_and_stay() {
    let scene = Scene::new();
    let pod = TestNetns::new("pod");
    let mut conf = conf(&scene.container("a", &pod));
    conf["iptablesAdminChainName"] = json!("OUR-RULES");
    scene
        .bench
        .node
        .sh("iptables -N OUR-RULES && iptables -A OUR-RULES -d 192.0.2.2 -p tcp -j DROP");
    scene.bench.add(&conf, "a", &pod);
    assert!(!reaches(&pod, &scene.outside, "192.0.2.2"));
    let seen = talk(&pod, &scene.outside, "2001:db8::2");
    assert_eq!(seen.ip().to_string(), "fd99::2");
    scene.bench.del(&conf, "a", &pod);
    let rules = scene.rules();
    assert!(
        rules.contains("-A OUR-RULES -d 192.0.2.2/32 -p tcp -j DROP"),
        "{rules}"
    );
    assert!(!rules.contains("CNI-ADMIN"), "{rules}");
}

/// A container on a bridge of its own network.
fn on_bridge(scene: &Scene, bridge: &str, net: u8, name: &str, pod: &TestNetns) -> (Value, String) {
    let conf = json!({
        "cniVersion": "1.1.0", "name": bridge, "type": "bridge", "bridge": bridge,
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": scene.bench.dir.path().join("networks"),
            "subnet": format!("10.{net}.0.0/24"),
        },
    });
    let first = scene.bench.add(&conf, name, pod);
    let conf = json!({
        "cniVersion": "1.1.0", "name": bridge, "type": "firewall", "backend": "iptables",
    });
    (after(&first, &conf), first.ip())
}

#[test]
fn bridges_are_kept_apart() {
    let scene = Scene::new();
    // Whoever connects is let through by its own rule: what keeps them apart is the policy.
    let policies = ["open", "same-bridge", "isolated"];
    for (number, policy) in policies.into_iter().enumerate() {
        let pods = [
            TestNetns::new("pod"),
            TestNetns::new("pod"),
            TestNetns::new("pod"),
        ];
        let number = u8::try_from(number).unwrap();
        let near = format!("br{}", 2 * number);
        let far = format!("br{}", 2 * number + 1);
        let mut confs = [
            on_bridge(&scene, &near, 10 + 2 * number, "a", &pods[0]),
            on_bridge(&scene, &near, 10 + 2 * number, "b", &pods[1]),
            on_bridge(&scene, &far, 11 + 2 * number, "c", &pods[2]),
        ];
        for ((conf, _), (name, pod)) in confs.iter_mut().zip(["a", "b", "c"].iter().zip(&pods)) {
            conf["ingressPolicy"] = json!(policy);
            scene.bench.add(conf, name, pod);
            scene
                .bench
                .call("CHECK", conf, name, pod.path())
                .expect_ok();
        }
        let open = policy == "open";
        for (from, to) in [(0, 2), (2, 1)] {
            if open {
                let seen = talk(&pods[from], &pods[to], &confs[to].1);
                assert_eq!(seen.ip().to_string(), confs[from].1);
            } else {
                assert!(!reaches(&pods[from], &pods[to], &confs[to].1), "{policy}");
            }
        }
        let seen = talk(&pods[0], &scene.outside, "192.0.2.2");
        assert_eq!(seen.ip().to_string(), confs[0].1);
        let rules = scene.rules();
        let drop = format!("-A CNI-ISOLATION-STAGE-1 -i {near} -o {near} ");
        assert_eq!(rules.contains(&drop), policy == "isolated", "{rules}");
        for ((conf, _), (name, pod)) in confs.iter().zip(["a", "b", "c"].iter().zip(&pods)) {
            scene.bench.del(conf, name, pod);
        }
        // What belongs to a bridge stays: others may be on it.
        let rules = scene.rules();
        assert_eq!(
            rules.contains(&format!("-i {near} ! -o {near}")),
            !open,
            "{rules}"
        );
        assert!(
            !rules.contains("SKIFF") && !rules.contains(&confs[0].1),
            "{rules}"
        );
    }
}

#[test]
fn adding_again_changes_nothing() {
    let scene = Scene::new();
    let mut conf = conf(&result("1.1.0", &["10.9.0.2/24", "fd09::2/64"]));
    conf["ingressPolicy"] = json!("same-bridge");
    let add = || {
        let call = scene.bench.call("ADD", &conf, "a", scene.outside.path());
        call.expect_ok();
    };
    add();
    let first = scene.rules();
    add();
    add();
    // What is there twice is taken away twice.
    scene
        .bench
        .call("DEL", &conf, "a", Path::new(""))
        .expect_ok();
    let rules = scene.rules();
    assert!(
        !rules.contains("10.9.0.2") && !rules.contains("fd09::2"),
        "{rules}"
    );
    assert!(!rules.contains("SKIFF"), "{rules}");
    assert!(first.contains("10.9.0.2"));
}

#[test]
fn del_succeeds_when_half_or_all_of_it_is_gone() {
    let scene = Scene::new();
    let ips = ["10.9.0.2/24", "fd09::2/64"];
    let netns = scene.outside.path();
    let told = conf(&result("1.1.0", &ips));
    let mut untold = told.clone();
    untold.as_object_mut().unwrap().remove("prevResult");
    let del = |conf: &Value| {
        scene
            .bench
            .call("DEL", conf, "a", Path::new(""))
            .expect_ok()
    };
    del(&told);
    del(&untold);
    assert!(!scene.rules().contains("CNI-"), "DEL makes nothing");
    for (change, conf) in [
        ("true", &told),
        ("true", &untold),
        ("iptables -D CNI-FORWARD 2", &told),
        ("iptables -D CNI-FORWARD 3", &untold),
        ("iptables -F CNI-FORWARD", &told),
        ("iptables -F SKIFF-FW-OWNERS", &told),
        (
            "iptables -F SKIFF-FW-OWNERS && iptables -X SKIFF-FW-OWNERS",
            &told,
        ),
        ("iptables -F && iptables -X", &told),
        ("iptables -F && iptables -X", &untold),
    ] {
        scene.bench.call("ADD", &told, "a", netns).expect_ok();
        scene.bench.node.sh(change);
        del(conf);
        let rules = scene.rules();
        assert!(!rules.contains("10.9.0.2"), "{change}: {rules}");
        assert!(!rules.contains("fd09::2"), "{change}: {rules}");
        assert!(!rules.contains("SKIFF"), "{change}: {rules}");
        del(conf);
    }
}

#[test]
fn another_containers_rules_are_not_touched() {
    let scene = Scene::new();
    let netns = scene.outside.path();
    let call = |command: &str, container: &str, ip: &str| {
        let conf = conf(&result("1.1.0", &[ip]));
        scene
            .bench
            .call(command, &conf, container, netns)
            .expect_ok();
    };
    call("ADD", "a", "10.9.0.2/24");
    call("ADD", "b", "10.9.0.20/24");
    // The address was given on before the late DEL.
    call("ADD", "c", "10.9.0.2/24");
    call("DEL", "b", "10.9.0.20/24");
    let rules = scene.rules();
    assert!(
        !rules.contains("10.9.0.20") && rules.contains("10.9.0.2/32"),
        "{rules}"
    );
    call("DEL", "a", "10.9.0.2/24");
    let rules = scene.rules();
    assert!(
        rules.contains("-A CNI-FORWARD -s 10.9.0.2/32 -j ACCEPT"),
        "{rules}"
    );
    call("DEL", "c", "10.9.0.2/24");
    assert!(!scene.rules().contains("10.9.0.2"));
}

#[test]
fn another_interface_in_the_same_network_keeps_its_rules() {
    let scene = Scene::new();
    let pod = TestNetns::new("pod");
    let [first, second] = ["10.99.0.2/24", "10.99.0.3/24"].map(|ip| conf(&result("1.1.0", &[ip])));
    scene.bench.add(&first, "a", &pod);
    scene.bench.add(&second, "a", &pod);
    scene.bench.del(&first, "a", &pod);
    let rules = scene.rules();
    assert!(!rules.contains("10.99.0.2/32"), "{rules}");
    assert_eq!(rules.matches("10.99.0.3/32").count(), 3, "{rules}");
    scene.bench.del(&second, "a", &pod);
    assert!(!scene.rules().contains("10.99.0."), "{}", scene.rules());
}

#[test]
fn check_names_the_rule_that_is_missing() {
    let scene = Scene::new();
    let netns = scene.outside.path();
    let mut conf = conf(&result("1.1.0", &["10.9.0.2/24", "fd09::2/64"]));
    conf["ingressPolicy"] = json!("isolated");
    let call = |command: &str| scene.bench.call(command, &conf, "a", netns);
    assert_eq!(call("CHECK").code(), Some(103));
    for (change, chain) in [
        ("iptables -D CNI-FORWARD 1", "CNI-FORWARD"),
        ("iptables -D CNI-FORWARD 2", "CNI-FORWARD"),
        ("iptables -D CNI-FORWARD 3", "CNI-FORWARD"),
        ("ip6tables -D CNI-FORWARD 3", "CNI-FORWARD"),
        ("iptables -D FORWARD 1", "FORWARD"),
        ("ip6tables -D FORWARD 2", "FORWARD"),
        ("iptables -D CNI-ISOLATION-STAGE-1 1", "STAGE-1"),
        ("iptables -D CNI-ISOLATION-STAGE-2 1", "STAGE-2"),
    ] {
        call("ADD").expect_ok();
        call("CHECK").expect_ok();
        scene.bench.node.sh(change);
        let answer = call("CHECK");
        assert_eq!(answer.code(), Some(103), "{change}: {}", answer.json);
        assert!(
            answer.json["msg"].as_str().unwrap().contains(chain),
            "{change}"
        );
        call("DEL").expect_ok();
    }
}

#[test]
fn gc_removes_what_no_valid_attachment_owns() {
    let scene = Scene::new();
    let netns = scene.outside.path();
    for (network, container, ip) in [
        ("net", "keep", "10.9.0.2/24"),
        ("net", "stale", "10.9.0.3/24"),
        ("net", "stale6", "fd09::4/64"),
        ("other", "elsewhere", "10.8.0.5/24"),
    ] {
        let mut conf = conf(&result("1.1.0", &[ip]));
        conf["name"] = json!(network);
        scene.bench.call("ADD", &conf, container, netns).expect_ok();
    }
    let gc = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "firewall",
        "cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}],
    });
    scene.bench.call("GC", &gc, "x", Path::new("")).expect_ok();
    let rules = scene.rules();
    assert!(
        rules.contains("10.9.0.2/32") && rules.contains("10.8.0.5/32"),
        "{rules}"
    );
    assert!(
        !rules.contains("10.9.0.3") && !rules.contains("fd09::4"),
        "{rules}"
    );
    scene
        .bench
        .call("STATUS", &gc, "x", Path::new(""))
        .expect_ok();
}

#[test]
fn many_at_once_do_not_get_in_each_others_way() {
    let scene = Scene::new();
    let run = |command: &str| {
        thread::scope(|scope| {
            for number in 0..20 {
                let (scene, command) = (&scene, command.to_owned());
                scope.spawn(move || {
                    let ip = format!("10.9.0.{}/24", 2 + number);
                    let ip6 = format!("fd09::{}/64", 2 + number);
                    let conf = conf(&result("1.1.0", &[&ip, &ip6]));
                    let name = format!("c{number}");
                    let netns = scene.outside.path();
                    scene.bench.call(&command, &conf, &name, netns).expect_ok();
                });
            }
        });
    };
    run("ADD");
    let rules = scene.rules();
    assert_eq!(
        rules.matches("-A CNI-FORWARD -s 10.9.0.").count(),
        20,
        "{rules}"
    );
    assert_eq!(rules.matches("-A FORWARD ").count(), 2, "{rules}");
    run("CHECK");
    run("DEL");
    let rules = scene.rules();
    assert!(
        !rules.contains("10.9.0.") && !rules.contains("SKIFF"),
        "{rules}"
    );
}

#[test]
fn bad_configurations_are_refused_before_anything_is_made() {
    let scene = Scene::new();
    let before = scene.rules();
    let long = "A".repeat(29);
    let change = |key: &str, value: Value| {
        let mut conf = conf(&result("1.1.0", &["10.9.0.2/24"]));
        conf[key] = value;
        conf
    };
    let with_policy = |name: &str| {
        let mut conf = change("ingressPolicy", json!("same-bridge"));
        conf["prevResult"]["interfaces"][0]["name"] = json!(name);
        conf
    };
    for (name, conf, code) in [
        ("backend", change("backend", json!("ipfw")), 7),
        ("backend of wrong type", change("backend", json!(1)), 6),
        ("policy", change("ingressPolicy", json!("closed")), 7),
        ("bridge without a name", with_policy(""), 7),
        (
            "bridge with a rule in its name",
            with_policy("a -j ACCEPT"),
            7,
        ),
        (
            "no interfaces",
            {
                let mut conf = change("ingressPolicy", json!("isolated"));
                conf["prevResult"] = json!({"cniVersion": "1.1.0", "ips": []});
                conf
            },
            7,
        ),
        (
            "admin chain too long",
            change("iptablesAdminChainName", json!(long)),
            7,
        ),
        (
            "admin chain that is a verdict",
            change("iptablesAdminChainName", json!("ACCEPT")),
            7,
        ),
        (
            "admin chain in a circle",
            change("iptablesAdminChainName", json!("CNI-FORWARD")),
            7,
        ),
        (
            "admin chain with a rule",
            change("iptablesAdminChainName", json!("A -j X")),
            7,
        ),
        (
            "admin chain as an option",
            change("iptablesAdminChainName", json!("-F")),
            7,
        ),
        (
            "admin chain in two lines",
            change("iptablesAdminChainName", json!("A\nB")),
            7,
        ),
        ("zone of wrong type", change("firewalldZone", json!([])), 6),
        (
            "no prevResult",
            json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall"}),
            7,
        ),
    ] {
        let answer = scene.bench.call("ADD", &conf, "a", scene.outside.path());
        assert_eq!(answer.code(), Some(code), "{name}: {}", answer.json);
        assert_eq!(scene.rules(), before, "{name}");
    }
}

#[test]
fn either_undoes_what_the_reference_plugin_has_made() {
    let references = References::find();
    for (version, reference) in [("1.0.0", &references.old), ("1.1.0", &references.new)] {
        for ours_first in [true, false] {
            let scene = Scene::new();
            let mut conf = conf(&result(version, &["10.9.0.2/24", "fd09::2/64"]));
            conf["cniVersion"] = json!(version);
            let call = |command: &str, ours: bool| {
                let plugins = if ours {
                    scene.bench.plugins()
                } else {
                    reference.as_path()
                };
                let call = RawCall::new(plugins, "firewall")
                    .command(command)
                    .env("CNI_NETNS", scene.outside.path())
                    .stdin(conf.to_string());
                let answer = call.run(&scene.bench.node);
                let printed = String::from_utf8_lossy(&answer.stdout);
                assert_eq!(answer.exit, Some(0), "{command} {version}: {printed}");
            };
            call("ADD", ours_first);
            call("CHECK", !ours_first);
            call("CHECK", ours_first);
            // Both have it: no rule is there twice.
            call("DEL", !ours_first);
            let rules = scene.rules();
            assert!(!rules.contains("CNI-FORWARD -s 10.9.0.2"), "{rules}");
            assert!(!rules.contains("CNI-FORWARD -d fd09::2"), "{rules}");
            // The reference does not know our record, which our own DEL or GC takes.
            call("DEL", true);
            let rules = scene.rules();
            assert!(
                !rules.contains("10.9.0.2") && !rules.contains("SKIFF"),
                "{rules}"
            );
        }
    }
}
