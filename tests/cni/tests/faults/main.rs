//! A plugin that dies: `kill -9` at each of its steps, and then DEL, or GC.
//!
//! A tracer stops the plugin, its threads and its children at every system call that can change something, and kills
//! all of them before the one whose turn it is. So every state in which a plugin can be left is visited, and always the
//! same ones. What a plugin started may also outlive it: then DEL has to wait for that.
#![cfg(target_arch = "x86_64")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

mod orphan;
mod scene;
mod trace;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use serde_json::{Value, json};
use skiff_tests_cni::TestNetns;

use self::{
    orphan::assert_waits_for_orphan,
    scene::{Case, Scene, case, chained},
    trace::run_until,
};

/// More steps than any plugin takes.
const MAX_STEPS: usize = 3000;
/// A step is waiting for the kernel most of the time: so many nodes take turns in visiting them.
const NODES: usize = 8;

/// Which steps of a command were visited, and whether the last one was.
#[derive(Default)]
struct Steps {
    next: AtomicUsize,
    ended: AtomicBool,
}

/// `commands` die, and DEL removes what they leave.
fn assert_survives(case: &Case) {
    assert_undone(case, &["ADD", "DEL"], Scene::undo);
}

/// The same with a GC in the place of DEL, for a container that nobody knows of.
fn assert_collected(case: &Case) {
    assert_undone(case, &["ADD"], Scene::collect);
}

/// How a container's traces are removed.
type Undo = fn(&Scene, &str, &TestNetns, &Value, &str);

fn assert_undone(case: &Case, commands: &[&'static str], undo: Undo) {
    let steps = commands.iter().map(|command| (*command, Steps::default()));
    let steps: Vec<_> = steps.collect();
    thread::scope(|scope| {
        for number in 0..NODES {
            let steps = &steps;
            scope.spawn(move || visit(case, number, steps, undo));
        }
    });
    for (command, steps) in &steps {
        let taken = steps.next.load(Ordering::Relaxed);
        assert!(
            taken > 2 + NODES,
            "{}: {command} changed nothing",
            case.name
        );
    }
}

/// Visits the steps that no other node has visited.
fn visit(case: &Case, number: usize, steps: &[(&str, Steps)], undo: Undo) {
    let scene = Scene::new(case, number);
    let (container, pod) = (scene.container.as_str(), &scene.pod);
    let kept = scene.prepare(&scene.kept, &scene.keep, case.name);
    scene.run("ADD", &scene.kept, &scene.keep, &kept, case.name);
    // Once without a fault: what belongs to the node and not to a container is made.
    let conf = scene.prepare(container, pod, case.name);
    scene.run("ADD", container, pod, &conf, case.name);
    scene.undo(container, pod, &conf, case.name);
    let before = scene.state();
    for (command, steps) in steps {
        while !steps.ended.load(Ordering::Relaxed) {
            let step = steps.next.fetch_add(1, Ordering::Relaxed);
            let what = format!("{} killed before change {step} of {command}", case.name);
            assert!(step < MAX_STEPS, "{what}: is there an end?");
            let conf = scene.prepare(container, pod, &what);
            if *command == "DEL" {
                scene.run("ADD", container, pod, &conf, &what);
            }
            let call = scene.call(command, container, pod, &conf);
            let mut child = call.spawn(&scene.bench.node);
            let killed = run_until(&call, &mut child, step);
            scene.assert_leases_whole(&what);
            undo(&scene, container, pod, &conf, &what);
            scene.assert_state(&before, &what);
            if !killed {
                steps.ended.store(true, Ordering::Relaxed);
            }
        }
    }
    // It works as before.
    let conf = scene.prepare(container, pod, case.name);
    scene.run("ADD", container, pod, &conf, case.name);
    scene.undo(container, pod, &conf, case.name);
    scene.undo(&scene.kept, &scene.keep, &kept, case.name);
    assert!(scene.bench.leases().is_empty(), "{}", case.name);
    assert_eq!(scene.bench.veths(), [""; 0], "{}", case.name);
}

#[test]
fn host_local_dies() {
    assert_survives(&case("host-local", "host-local", json!({})));
}

#[test]
fn bridge_dies() {
    let case = case("bridge", "bridge", json!({}));
    assert_survives(&case);
    assert_collected(&case);
}

#[test]
fn bridge_with_masquerading_dies() {
    for backend in ["iptables", "nftables"] {
        let case = case(
            "bridge with ipMasq",
            "bridge",
            json!({"ipMasq": true, "ipMasqBackend": backend, "macspoofchk": true}),
        );
        assert_survives(&case);
        if backend == "nftables" {
            assert_collected(&case);
        }
    }
}

#[test]
fn ptp_dies() {
    assert_survives(&case("ptp", "ptp", json!({"ipMasq": true})));
}

fn vxlan() -> Case {
    Case {
        node: "ip link add up0 type veth peer name up1 && ip addr add 192.0.2.1/24 dev up0 \
               && ip link set up0 up && ip link set up1 up",
        ..case(
            "vxlan",
            "vxlan",
            json!({"vni": 7, "ipMasq": true, "clusterCIDR": "10.96.0.0/11,fd00::/8", "nodes": [
                {"name": "a", "underlay": ["192.0.2.1"], "podCIDRs": ["10.99.0.0/24", "fd99::/64"]},
                {"name": "b", "underlay": ["192.0.2.2"], "podCIDRs": ["10.98.0.0/24", "fd98::/64"]},
            ]}),
        )
    }
}

#[test]
fn vxlan_dies() {
    assert_survives(&vxlan());
}

fn portmap(backend: &str) -> Case {
    let keys = json!({"backend": backend, "runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    ]}});
    chained("portmap", "portmap", keys)
}

#[test]
fn portmap_dies() {
    for backend in ["iptables", "nftables"] {
        assert_survives(&portmap(backend));
    }
}

fn firewall() -> Case {
    chained("firewall", "firewall", json!({"backend": "iptables"}))
}

#[test]
fn firewall_dies() {
    assert_survives(&firewall());
}

#[test]
fn tuning_dies() {
    let keys = json!({
        "mtu": 1400, "promisc": true, "allmulti": true,
        "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"},
    });
    assert_survives(&chained("tuning", "tuning", keys));
}

#[test]
fn bandwidth_dies() {
    let keys = json!({
        "ingressRate": 1_000_000, "ingressBurst": 1_000_000,
        "egressRate": 1_000_000, "egressBurst": 1_000_000,
    });
    assert_survives(&chained("bandwidth", "bandwidth", keys));
}

#[test]
fn what_a_plugin_started_is_waited_for() {
    let masquerading = json!({"ipMasq": true, "ipMasqBackend": "iptables"});
    for case in [
        case("bridge", "bridge", masquerading.clone()),
        case("ptp", "ptp", masquerading),
        vxlan(),
        portmap("iptables"),
        firewall(),
    ] {
        assert_waits_for_orphan(&case, "iptables-restore");
    }
    assert_waits_for_orphan(&portmap("nftables"), "nft");
}
