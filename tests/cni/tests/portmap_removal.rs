//! The portmap plugin's rules: whose they are, and that they go.

use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use skiff_tests_cni::{
    Bench,
    forwarding::{
        NODE, OUTSIDE, Pod, Protocol, REFERENCE, World, format_target, mapping,
        plugins_with_variant, reach, seen, take_calls,
    },
};

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

#[test]
fn del_finds_a_container_by_its_name_alone() {
    for backend in BACKENDS {
        let world = World::new();
        let pod = Pod::new(&world, "a");
        let conf = pod.conf(backend, &json!([mapping(8080, 80, "tcp")]));
        pod.add(&world, &conf);
        let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap"});
        for _again in 0..2 {
            world
                .bench
                .call("DEL", &bare, "a", Path::new(""))
                .expect_ok();
            assert_eq!(world.rules(), "", "{backend}");
        }
        // Ports that are not those of ADD.
        pod.add(&world, &conf);
        pod.del(
            &world,
            &pod.conf(backend, &json!([mapping(9090, 90, "udp")])),
        );
        assert_eq!(world.rules(), "", "{backend}");
        // The backend has changed.
        pod.add(&world, &conf);
        let other = BACKENDS
            .into_iter()
            .find(|other| *other != backend)
            .unwrap();
        pod.del(&world, &pod.conf(other, &json!([mapping(8080, 80, "tcp")])));
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn gc_keeps_valid_attachments_and_other_networks() {
    for backend in BACKENDS {
        let world = World::new();
        let pods = ["keep", "stale", "other"].map(|name| Pod::new(&world, name));
        let mut confs = Vec::new();
        for (pod, port) in pods.iter().zip([8080, 8081, 8082]) {
            let mut conf = pod.conf(backend, &json!([mapping(port, 80, "tcp")]));
            if pod.name == "other" {
                conf["name"] = json!("elsewhere");
            }
            pod.add(&world, &conf);
            confs.push(conf);
        }
        let mut gc = confs[0].clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
        world.bench.call("GC", &gc, "x", Path::new("")).expect_ok();
        pods[0].call(&world, "CHECK", &confs[0]).expect_ok();
        assert_eq!(
            pods[1].call(&world, "CHECK", &confs[1]).code(),
            Some(103),
            "{backend}"
        );
        pods[2].call(&world, "CHECK", &confs[2]).expect_ok();
        pods[0].del(&world, &confs[0]);
        pods[2].del(&world, &confs[2]);
        assert_eq!(world.rules(), "", "{backend}");
        world
            .bench
            .call("STATUS", &confs[0], "x", Path::new(""))
            .expect_ok();
    }
}

#[test]
fn without_ports_the_result_is_passed_on_and_nothing_is_made() {
    let world = World::new();
    let pod = Pod::new(&world, "a");
    let conf = pod.conf("iptables", &json!([]));
    pod.add(&world, &conf);
    pod.call(&world, "CHECK", &conf).expect_ok();
    pod.del(&world, &conf);
    assert_eq!(world.rules(), "");
    let mut alone = pod.conf("iptables", &json!([mapping(8080, 80, "tcp")]));
    alone.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(pod.call(&world, "ADD", &alone).code(), Some(7));
    let bad = pod.conf("iptables", &json!([mapping(0, 80, "tcp")]));
    assert_eq!(pod.call(&world, "ADD", &bad).code(), Some(7));
    assert_eq!(world.rules(), "");
}

#[test]
fn thirty_at_once_leave_nothing() {
    for backend in BACKENDS {
        let world = World::new();
        let stays = Pod::new(&world, "stays");
        let stays_conf = stays.conf(backend, &json!([mapping(8080, 80, "tcp")]));
        stays.add(&world, &stays_conf);
        thread::scope(|scope| {
            for number in 0..30 {
                let (world, stays) = (&world, &stays);
                scope.spawn(move || {
                    let name = format!("c{number}");
                    let ports = json!([
                        mapping(9000 + number, 80, "tcp"),
                        mapping(9000 + number, 80, "udp")
                    ]);
                    let mut conf = stays.conf(backend, &ports);
                    for (index, ip) in ["10.99.0.1", "fd99::1"].iter().enumerate() {
                        let length = [24, 64][index];
                        conf["prevResult"]["ips"][index]["address"] =
                            json!(format!("{ip}{number}/{length}"));
                    }
                    let netns = stays.netns.path();
                    world.bench.call("ADD", &conf, &name, netns).expect_ok();
                    world.bench.call("CHECK", &conf, &name, netns).expect_ok();
                    world.bench.call("DEL", &conf, &name, netns).expect_ok();
                });
            }
        });
        let found = reach(
            Protocol::Tcp,
            &world.outside,
            "192.0.2.1:8080",
            &stays.netns,
            80,
        );
        assert_eq!(found, seen(OUTSIDE[0]), "{backend}");
        stays.del(&world, &stays_conf);
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn beside_others_add_and_del_are_one_process() {
    for variant in ["nft", "legacy"] {
        let ours = Bench::new();
        let plugins = plugins_with_variant(&ours, variant);
        let world = World::with_plugins(&plugins);
        let pods = [Pod::new(&world, "a"), Pod::new(&world, "b")];
        let confs = [(0, 8080), (1, 8081)].map(|(pod, port): (usize, u16)| {
            pods[pod].conf("iptables", &json!([mapping(port, 80, "tcp")]))
        });
        let once = ["ip6tables-restore", "iptables-restore"];
        pods[0].add(&world, &confs[0]);
        let _of_first = take_calls(&plugins);
        pods[1].add(&world, &confs[1]);
        assert_eq!(take_calls(&plugins), once, "{variant}");
        for (pod, conf) in pods.iter().zip(&confs) {
            pod.del(&world, conf);
            assert_eq!(take_calls(&plugins), once, "{variant}: {}", pod.name);
        }
        let saved = format!("iptables-{variant}-save -t nat; ip6tables-{variant}-save -t nat");
        let rules = world.bench.node.sh(&saved);
        assert!(!rules.contains("-A"), "{variant}: {rules}");
    }
}

#[test]
fn shared_chains_that_come_and_go_all_the_time_lose_nobody() {
    for variant in ["nft", "legacy"] {
        let ours = Bench::new();
        let world = World::with_plugins(&plugins_with_variant(&ours, variant));
        let pod = Pod::new(&world, "any");
        thread::scope(|scope| {
            for number in 0..4 {
                let (world, pod) = (&world, &pod);
                scope.spawn(move || {
                    let name = format!("c{number}");
                    let ports = json!([mapping(9000 + number, 80, "tcp")]);
                    let conf = pod.conf("iptables", &ports);
                    let call = |command| {
                        let netns = pod.netns.path();
                        world.bench.call(command, &conf, &name, netns).expect_ok();
                    };
                    for _round in 0..5 {
                        call("ADD");
                        call("CHECK");
                        call("DEL");
                    }
                });
            }
        });
        let saved = format!("iptables-{variant}-save -t nat; ip6tables-{variant}-save -t nat");
        let rules = world.bench.node.sh(&saved);
        assert!(!rules.contains("-A"), "{variant}: {rules}");
    }
}

#[test]
fn a_killed_add_is_undone_by_del() {
    for backend in BACKENDS {
        let world = World::new();
        let pod = Pod::new(&world, "a");
        let conf = pod.conf(
            backend,
            &json!([mapping(8080, 80, "tcp"), mapping(8080, 80, "udp")]),
        );
        // Killed the later the more: somewhere in it, and at last not at all.
        for spent in 0..12_u64 {
            let mut child = world.bench.start("ADD", &conf, "a", pod.netns.path());
            let deadline = Instant::now() + Duration::from_millis(spent);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                thread::yield_now();
            }
            child.kill().ok();
            child.wait().unwrap();
            // What it had started may still be at work: DEL waits for that.
            pod.del(&world, &conf);
            assert_eq!(world.rules(), "", "{backend}, killed after {spent} ms");
        }
        pod.add(&world, &conf);
        pod.del(&world, &conf);
        assert_eq!(world.rules(), "", "{backend}");
    }
}

#[test]
fn a_node_switches_from_the_reference_plugin_and_back() {
    let world = World::new();
    let pods = [Pod::new(&world, "a"), Pod::new(&world, "b")];
    let confs = [(0, 8080), (1, 8081)].map(|(pod, port): (usize, u16)| {
        let mut conf = pods[pod].conf("iptables", &json!([mapping(port, 80, "tcp")]));
        conf["cniVersion"] = json!("1.0.0");
        conf["prevResult"]["cniVersion"] = json!("1.0.0");
        conf
    });
    let theirs = |command: &str, index: usize| {
        let mut call = Command::new("sh");
        call.arg("-c")
            .arg(format!("echo '{}' | {REFERENCE}/portmap", confs[index]))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pods[index].name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", pods[index].netns.path())
            .env("CNI_PATH", REFERENCE);
        let output = world.bench.node.run(|| call.output()).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {said}");
    };
    let reaches = |index: usize, port| {
        let target = format_target(NODE[0], port);
        reach(
            Protocol::Tcp,
            &world.outside,
            &target,
            &pods[index].netns,
            80,
        )
        .is_some()
    };
    // Theirs, then ours beside it, then our DEL of both.
    theirs("ADD", 0);
    pods[1].call(&world, "ADD", &confs[1]).expect_ok();
    assert!(reaches(0, 8080) && reaches(1, 8081));
    pods[0].call(&world, "CHECK", &confs[0]).expect_ok();
    pods[0].del(&world, &confs[0]);
    assert!(reaches(1, 8081));
    pods[1].del(&world, &confs[1]);
    assert_eq!(world.rules(), "");
    // Ours, then theirs beside it, then their DEL of both, which leaves the shared chains. (Their CHECK of 1.1.1 looks
    // for IPv4 rules among the IPv6 ones.)
    pods[0].call(&world, "ADD", &confs[0]).expect_ok();
    theirs("ADD", 1);
    assert!(reaches(0, 8080) && reaches(1, 8081));
    theirs("DEL", 0);
    theirs("DEL", 1);
    assert!(!world.rules().contains("CNI-DN-"), "{}", world.rules());
    pods[0].call(&world, "ADD", &confs[0]).expect_ok();
    assert!(reaches(0, 8080));
    pods[0].del(&world, &confs[0]);
    assert_eq!(world.rules(), "");
}
