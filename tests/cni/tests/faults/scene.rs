//! What happens, and where.

use std::fs;

use serde_json::{Value, json};
use skiff_tests_cni::{Bench, TestNetns, raw::RawCall};

/// One plugin with the configuration that makes it do the most.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) plugin: &'static str,
    pub(crate) keys: Value,
    /// Whether it only has work on a link that another plugin made.
    pub(crate) chained: bool,
    /// What the node needs before.
    pub(crate) node: &'static str,
}

pub(crate) fn case(name: &'static str, plugin: &'static str, keys: Value) -> Case {
    Case {
        name,
        plugin,
        keys,
        chained: false,
        node: "true",
    }
}

pub(crate) fn chained(name: &'static str, plugin: &'static str, keys: Value) -> Case {
    Case {
        chained: true,
        ..case(name, plugin, keys)
    }
}

/// A node on which a container lives that nothing may happen to.
pub(crate) struct Scene {
    pub(crate) bench: Bench,
    /// What is killed. No two nodes have the same: plugins lock a container's attachment machine-wide.
    pub(crate) container: String,
    /// What stays.
    pub(crate) kept: String,
    pub(crate) keep: TestNetns,
    pub(crate) pod: TestNetns,
    bridge: Value,
    conf: Value,
    pub(crate) chained: bool,
}

impl Scene {
    pub(crate) fn new(case: &Case, number: usize) -> Self {
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
            container: format!("c{number}"),
            kept: format!("keep{number}"),
            keep: TestNetns::new("pod"),
            pod: TestNetns::new("pod"),
            bridge,
            conf,
            chained: case.chained,
        }
    }

    pub(crate) fn call(
        &self,
        command: &str,
        container: &str,
        pod: &TestNetns,
        conf: &Value,
    ) -> RawCall {
        let plugin = conf["type"].as_str().unwrap();
        RawCall::new(self.bench.plugins(), plugin)
            .command(command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", pod.path())
            .stdin(conf.to_string())
    }

    pub(crate) fn run(
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
    pub(crate) fn prepare(&self, container: &str, pod: &TestNetns, what: &str) -> Value {
        let mut conf = self.conf.clone();
        if self.chained {
            conf["prevResult"] = self.run("ADD", container, pod, &self.bridge, what);
        }
        conf
    }

    pub(crate) fn undo(&self, container: &str, pod: &TestNetns, conf: &Value, what: &str) {
        self.run("DEL", container, pod, conf, what);
        if self.chained {
            self.run("DEL", container, pod, &self.bridge, what);
        }
    }

    /// Removes what is there of all containers but the one that stays.
    pub(crate) fn collect(&self, container: &str, pod: &TestNetns, conf: &Value, what: &str) {
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = json!([{"containerID": self.kept, "ifname": "eth0"}]);
        self.run("GC", container, pod, &conf, what);
    }

    /// Compares everything with what it was.
    pub(crate) fn assert_state(&self, before: &[String], what: &str) {
        for (now, before) in self.state().iter().zip(before) {
            assert_eq!(now, before, "{what}");
        }
    }

    /// All but whether a link has its carrier yet that may differ when something was left behind, or taken away from the container that stays.
    pub(crate) fn state(&self) -> Vec<String> {
        const END: &str = "\n=====\n";
        let node = [
            "ip -o link | sed 's/^[0-9]*: //; s/<.*> mtu/mtu/; s/ state [A-Z]*//' | sort",
            "ip -o addr | sed 's/^[0-9]*: //; s/valid_lft.*//' | grep -v ' fe80' | sort",
            "(ip route; ip -6 route) | grep -v '^fe80\\|^ff00' | sed 's/ linkdown//'",
            "ip rule; ip -6 rule",
            "bridge vlan",
            "iptables-save | grep -v '^[#:]'; ip6tables-save | grep -v '^[#:]'",
            "nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//'",
            "tc qdisc | sed 's/ [0-9a-f]*: / /g' | sort",
        ];
        let inside = [
            "ip -o link | sed 's/^[0-9]*: //; s/<.*> mtu/mtu/; s/ state [A-Z]*//'",
            "ip -o addr | sed 's/valid_lft.*//' | grep -v ' fe80'",
            "(ip route; ip -6 route) | grep -v '^fe80\\|^ff00' | sed 's/ linkdown//'",
        ];
        let mut state = Vec::new();
        for (netns, commands) in [(&self.bench.node, &node[..]), (&self.keep, &inside[..])] {
            let script = commands.join("; echo; echo =====; ") + "; true";
            state.extend(netns.sh(&script).split(END).map(str::to_owned));
        }
        state.push(self.pod.links().join("\n"));
        state.push(self.bench.leases().join("\n"));
        state
    }

    /// A lease is there with its owner, or it is not there.
    pub(crate) fn assert_leases_whole(&self, what: &str) {
        for ip in self.bench.leases() {
            let path = self.bench.dir.path().join("networks/net").join(&ip);
            let text = fs::read_to_string(path).unwrap();
            let owners = [&self.kept, &self.container];
            assert!(
                owners
                    .map(|owner| format!("{owner}\r\neth0"))
                    .contains(&text),
                "{what}: {ip}: {text:?}"
            );
        }
    }
}
