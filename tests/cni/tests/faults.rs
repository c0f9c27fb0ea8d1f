//! A plugin that dies: `kill -9` at each of its steps, and then DEL.
//!
//! A tracer stops the plugin, its threads and its children at every system call that can change something, and kills
//! all of them before the one whose turn it is. So every state in which a plugin can be left is visited, and always the
//! same ones.
#![cfg(target_arch = "x86_64")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::{collections::BTreeSet, fs, process::Child};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::{Value, json};
use skiff_tests_cni::{Bench, TestNetns, raw::RawCall};

/// More steps than any plugin takes.
const MAX_STEPS: usize = 3000;

/// The system calls that can change something, or begin a process that does.
const CHANGES: [i64; 24] = [
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_symlink,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_ioctl,
    libc::SYS_execve,
    libc::SYS_exit_group,
];

/// Whether the tracee stands before a system call that counts.
fn is_change(pid: Pid) -> bool {
    let Ok(registers) = ptrace::getregs(pid) else {
        return false;
    };
    // What the kernel puts there on the way in; on the way out it is the result.
    let entering = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
    let call = registers.orig_rax.cast_signed();
    let creates = call == libc::SYS_openat && registers.rdx & libc::O_CREAT as u64 != 0;
    entering && (creates || CHANGES.contains(&call))
}

/// Lets a plugin that waits for its stdin run, and kills it before its change number `fatal`. Returns whether it came
/// that far.
fn run_until(call: &RawCall, child: &mut Child, fatal: usize) -> bool {
    let main = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).unwrap();
    ptrace::interrupt(main).unwrap();
    call.feed(child);
    let mut tracees = BTreeSet::from([main]);
    let mut changes = 0;
    let mut killed = false;
    while !tracees.is_empty() {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => break,
            Err(errno) => panic!("waitpid: {errno}"),
        };
        let Some(pid) = status.pid() else { continue };
        let signal = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                tracees.remove(&pid);
                continue;
            }
            WaitStatus::PtraceSyscall(_) => {
                if !killed && is_change(pid) {
                    killed = changes == fatal;
                    changes += 1;
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        tracees.insert(pid);
        if killed {
            for tracee in &tracees {
                // Threads end with their process.
                kill(*tracee, Signal::SIGKILL).ok();
            }
        }
        // One that was killed meanwhile is reported by the next waitpid.
        ptrace::syscall(pid, signal).ok();
    }
    killed
}

/// One plugin with the configuration that makes it do the most.
struct Case {
    name: &'static str,
    plugin: &'static str,
    keys: Value,
    /// Whether it only has work on a link that another plugin made.
    chained: bool,
    /// What the node needs before.
    node: &'static str,
}

fn case(name: &'static str, plugin: &'static str, keys: Value) -> Case {
    Case {
        name,
        plugin,
        keys,
        chained: false,
        node: "true",
    }
}

fn chained(name: &'static str, plugin: &'static str, keys: Value) -> Case {
    Case {
        chained: true,
        ..case(name, plugin, keys)
    }
}

/// A node on which a container lives that nothing may happen to.
struct Scene {
    bench: Bench,
    keep: TestNetns,
    pod: TestNetns,
    bridge: Value,
    conf: Value,
    chained: bool,
}

impl Scene {
    fn new(case: &Case) -> Self {
        let bench = Bench::new();
        bench.node.sh(case.node);
        let mut bridge = bench.bridge_conf();
        bridge["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
        let mut conf = bridge.clone();
        conf["type"] = json!(case.plugin);
        for (key, value) in case.keys.as_object().unwrap() {
            conf[key] = value.clone();
        }
        Self {
            bench,
            keep: TestNetns::new("pod"),
            pod: TestNetns::new("pod"),
            bridge,
            conf,
            chained: case.chained,
        }
    }

    fn call(&self, command: &str, container: &str, pod: &TestNetns, conf: &Value) -> RawCall {
        let plugin = conf["type"].as_str().unwrap();
        RawCall::new(self.bench.plugins(), plugin)
            .command(command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", pod.path())
            .stdin(conf.to_string())
    }

    fn run(
        &self,
        command: &str,
        container: &str,
        pod: &TestNetns,
        conf: &Value,
        what: &str,
    ) -> Value {
        let answer = self
            .call(command, container, pod, conf)
            .run(&self.bench.node);
        let code = answer.code(what);
        let stdout = String::from_utf8_lossy(&answer.stdout);
        assert_eq!(code, None, "{what}: {command}: {stdout}");
        serde_json::from_slice(&answer.stdout).unwrap_or_default()
    }

    /// The configuration for a container's plugin call, after what comes before it in its list.
    fn prepare(&self, container: &str, pod: &TestNetns, what: &str) -> Value {
        let mut conf = self.conf.clone();
        if self.chained {
            conf["prevResult"] = self.run("ADD", container, pod, &self.bridge, what);
        }
        conf
    }

    fn undo(&self, container: &str, pod: &TestNetns, conf: &Value, what: &str) {
        self.run("DEL", container, pod, conf, what);
        if self.chained {
            self.run("DEL", container, pod, &self.bridge, what);
        }
    }

    /// Compares everything with what it was.
    fn assert_state(&self, before: &[String], what: &str) {
        for (now, before) in self.state().iter().zip(before) {
            assert_eq!(now, before, "{what}");
        }
    }

    /// All but whether a link has its carrier yet that may differ when something was left behind, or taken away from the container that stays.
    fn state(&self) -> Vec<String> {
        let node = [
            "ip -o link | sed 's/^[0-9]*: //; s/<.*> mtu/mtu/; s/ state [A-Z]*//' | sort",
            "ip -o addr | sed 's/^[0-9]*: //; s/valid_lft.*//' | grep -v ' fe80' | sort",
            "(ip route; ip -6 route) | grep -v '^fe80\\|^ff00' | sed 's/ linkdown//'",
            "ip rule; ip -6 rule",
            "bridge vlan",
            "iptables-save | grep -v '^[#:]'; ip6tables-save | grep -v '^[#:]'",
            "nft list tables",
            "tc qdisc | sed 's/ [0-9a-f]*: / /g' | sort",
        ];
        let inside = [
            "ip -o link | sed 's/^[0-9]*: //; s/<.*> mtu/mtu/; s/ state [A-Z]*//'",
            "ip -o addr | sed 's/valid_lft.*//' | grep -v ' fe80'",
            "(ip route; ip -6 route) | grep -v '^fe80\\|^ff00' | sed 's/ linkdown//'",
        ];
        let mut state: Vec<String> = node
            .map(|command| self.bench.node.sh(&format!("{command} || true")))
            .into();
        state.extend(inside.map(|command| self.keep.sh(&format!("{command} || true"))));
        state.push(self.pod.links().join("\n"));
        state.push(self.bench.leases().join("\n"));
        state
    }

    /// A lease is there with its owner, or it is not there.
    fn assert_leases_whole(&self, what: &str) {
        for ip in self.bench.leases() {
            let path = self.bench.dir.path().join("networks/net").join(&ip);
            let text = fs::read_to_string(path).unwrap();
            assert!(
                ["keep\r\neth0", "c1\r\neth0"].contains(&&*text),
                "{what}: {ip}: {text:?}"
            );
        }
    }
}

fn assert_survives(case: &Case) {
    let scene = Scene::new(case);
    let kept = scene.prepare("keep", &scene.keep, case.name);
    scene.run("ADD", "keep", &scene.keep, &kept, case.name);
    // Once without a fault: what belongs to the node and not to a container is made.
    let conf = scene.prepare("c1", &scene.pod, case.name);
    scene.run("ADD", "c1", &scene.pod, &conf, case.name);
    scene.undo("c1", &scene.pod, &conf, case.name);
    let before = scene.state();
    for command in ["ADD", "DEL"] {
        let mut steps = 0;
        loop {
            let what = format!("{} killed before change {steps} of {command}", case.name);
            assert!(steps < MAX_STEPS, "{what}: is there an end?");
            let conf = scene.prepare("c1", &scene.pod, &what);
            if command == "DEL" {
                scene.run("ADD", "c1", &scene.pod, &conf, &what);
            }
            let call = scene.call(command, "c1", &scene.pod, &conf);
            let mut child = call.spawn(&scene.bench.node);
            let killed = run_until(&call, &mut child, steps);
            scene.assert_leases_whole(&what);
            scene.undo("c1", &scene.pod, &conf, &what);
            scene.assert_state(&before, &what);
            if !killed {
                break;
            }
            steps += 1;
        }
        assert!(steps > 2, "{}: {command} changed nothing", case.name);
    }
    // It works as before.
    let conf = scene.prepare("c1", &scene.pod, case.name);
    scene.run("ADD", "c1", &scene.pod, &conf, case.name);
    scene.undo("c1", &scene.pod, &conf, case.name);
    scene.undo("keep", &scene.keep, &kept, case.name);
    assert!(scene.bench.leases().is_empty(), "{}", case.name);
    assert_eq!(scene.bench.veths(), [""; 0], "{}", case.name);
}

#[test]
fn host_local_dies() {
    assert_survives(&case("host-local", "host-local", json!({})));
}

#[test]
fn bridge_dies() {
    assert_survives(&case("bridge", "bridge", json!({})));
}

#[test]
fn bridge_with_masquerading_dies() {
    for backend in ["iptables", "nftables"] {
        assert_survives(&case(
            "bridge with ipMasq",
            "bridge",
            json!({"ipMasq": true, "ipMasqBackend": backend}),
        ));
    }
}

#[test]
fn ptp_dies() {
    assert_survives(&case("ptp", "ptp", json!({"ipMasq": true})));
}

#[test]
fn vxlan_dies() {
    assert_survives(&Case {
        node: "ip link add up0 type veth peer name up1 && ip addr add 192.0.2.1/24 dev up0 \
               && ip link set up0 up && ip link set up1 up",
        ..case(
            "vxlan",
            "vxlan",
            json!({"vni": 7, "nodes": [
                {"name": "a", "underlay": ["192.0.2.1"], "podCIDRs": ["10.99.0.0/24", "fd99::/64"]},
                {"name": "b", "underlay": ["192.0.2.2"], "podCIDRs": ["10.98.0.0/24", "fd98::/64"]},
            ]}),
        )
    });
}

#[test]
fn portmap_dies() {
    let keys = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    ]}});
    assert_survives(&chained("portmap", "portmap", keys));
}

#[test]
fn firewall_dies() {
    let keys = json!({"backend": "iptables"});
    assert_survives(&chained("firewall", "firewall", keys));
}

#[test]
fn bandwidth_dies() {
    let keys = json!({
        "ingressRate": 1_000_000, "ingressBurst": 1_000_000,
        "egressRate": 1_000_000, "egressBurst": 1_000_000,
    });
    assert_survives(&chained("bandwidth", "bandwidth", keys));
}
