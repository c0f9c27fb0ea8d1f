//! Hosts on a switch.

use serde_json::{Value, json};
use skiff_cni::overlay::{NodeTable, Settings, Underlay, Vni};
use skiff_netns::NodeNetns;
use skiff_tests_cni::{Answer, Bench, TestNetns};

/// Which address family carries the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outer {
    V4,
    V6,
}

impl Outer {
    /// What is left of 1500 bytes.
    pub(crate) fn mtu(self) -> u32 {
        match self {
            Self::V4 => 1450,
            Self::V6 => 1430,
        }
    }
}

/// One host, its plugins and their files.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) bench: Bench,
    pub(crate) number: usize,
}

/// Some hosts on one switch. The last field is dropped last: links go with their hosts.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) outer: Outer,
    pub(crate) hosts: Vec<Host>,
    pub(crate) switch: TestNetns,
}

/// A pod and what its ADD answered.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) netns: TestNetns,
    pub(crate) answer: Answer,
}

impl Pod {
    /// Its address of one family.
    pub(crate) fn ip(&self, v4: bool) -> String {
        let ips = self.answer.json["ips"].as_array().unwrap();
        let address = ips
            .iter()
            .map(|ip| ip["address"].as_str().unwrap())
            .find(|address| address.contains(':') != v4)
            .unwrap();
        address.split('/').next().unwrap().to_owned()
    }
}

impl Cluster {
    pub(crate) fn new(outer: Outer, hosts: usize) -> Self {
        let switch = TestNetns::new("switch");
        switch.sh("ip link add br0 type bridge && ip link set br0 up");
        let mut cluster = Self {
            outer,
            hosts: Vec::new(),
            switch,
        };
        for _ in 0..hosts {
            cluster.plug_in();
        }
        cluster
    }

    /// One host more.
    pub(crate) fn plug_in(&mut self) -> &Host {
        let number = self.hosts.len() + 1;
        let host = Host {
            bench: Bench::new(),
            number,
        };
        let switch = self.switch.path().file_name().unwrap().to_str().unwrap();
        let underlay = underlay(self.outer, number);
        let prefix = if self.outer == Outer::V4 { 24 } else { 64 };
        host.bench.node.sh(&format!(
            "ip link add uplink type veth peer name port{number} netns {switch} &&
             ip address add {underlay}/{prefix} dev uplink nodad && ip link set uplink addrgenmode none up"
        ));
        self.switch.sh(&format!(
            "ip link set port{number} master br0 && ip link set port{number} up"
        ));
        self.hosts.push(host);
        self.hosts.last().unwrap()
    }

    /// The table's entries for hosts of these numbers.
    pub(crate) fn nodes(&self, numbers: &[usize]) -> Value {
        numbers
            .iter()
            .map(|number| {
                json!({
                    "name": format!("host{number}"),
                    "underlay": [underlay(self.outer, *number)],
                    "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")],
                })
            })
            .collect()
    }

    /// The table of all hosts.
    pub(crate) fn all(&self) -> Value {
        let numbers: Vec<usize> = self.hosts.iter().map(|host| host.number).collect();
        self.nodes(&numbers)
    }

    /// The configuration of a host with the given table: the same on every host, but for where leases are.
    pub(crate) fn conf(&self, host: usize, nodes: &Value) -> Value {
        let leases = self.hosts[host].bench.dir.path().join("networks");
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "vxlan", "vni": 7, "nodes": nodes,
            "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
            "ipam": { "type": "host-local", "dataDir": leases },
        })
    }

    /// A pod on a host, with the table of all hosts.
    #[track_caller]
    pub(crate) fn pod(&self, host: usize, name: &str) -> Pod {
        self.pod_with(host, name, &self.conf(host, &self.all()))
    }

    /// A pod on a host with a configuration of its own.
    #[track_caller]
    pub(crate) fn pod_with(&self, host: usize, name: &str, conf: &Value) -> Pod {
        let netns = TestNetns::new("pod");
        let answer = self.hosts[host].bench.add(conf, name, &netns);
        Pod {
            name: name.to_owned(),
            netns,
            answer,
        }
    }

    #[track_caller]
    pub(crate) fn del(&self, host: usize, pod: &Pod) {
        let conf = self.conf(host, &self.all());
        self.hosts[host].bench.del(&conf, &pod.name, &pod.netns);
    }

    /// GC with the given table and the pods that there still are.
    pub(crate) fn gc(&self, host: usize, nodes: &Value, pods: &[&Pod]) -> Answer {
        let mut conf = self.conf(host, nodes);
        conf["cni.dev/valid-attachments"] = pods
            .iter()
            .map(|pod| json!({"containerID": pod.name, "ifname": "eth0"}))
            .collect();
        self.hosts[host]
            .bench
            .call("GC", &conf, "", std::path::Path::new(""))
    }

    /// CHECK of a pod with the table of all hosts.
    pub(crate) fn check(&self, host: usize, pod: &Pod) -> Answer {
        let mut conf = self.conf(host, &self.all());
        conf["prevResult"] = pod.answer.json.clone();
        self.hosts[host]
            .bench
            .call("CHECK", &conf, &pod.name, pod.netns.path())
    }
}

impl Host {
    pub(crate) fn netns(&self) -> NodeNetns {
        NodeNetns::open(self.bench.node.path()).unwrap()
    }

    /// What the kernel holds for the overlay: the device and its entries for other nodes.
    pub(crate) fn overlay_state(&self) -> String {
        self.bench
            .node
            .sh("ip -d link show dev skvx7 | grep -v -e qdisc -e state
             ip -o address show dev skvx7 scope global | sed 's/^[0-9]*: //'
             bridge fdb show dev skvx7 | sort
             ip neigh show dev skvx7 nud permanent | sort
             ip -4 route show dev skvx7 | sort; ip -6 route show dev skvx7 | grep via | sort")
    }

    /// All routes, neighbours and forwarding entries by which packets to other nodes go, and the links; but not whether
    /// these have their carrier yet, or still.
    pub(crate) fn whole_state(&self) -> String {
        let state = self.bench.node.sh(
            "ip -o link | sed 's/ qdisc.*//; s/NO-CARRIER,//; s/,LOWER_UP//'
             (ip -4 route show table all; ip -6 route show table all) | sed 's/ linkdown//' |
                 grep -v -e 'local fe80' -e 'anycast fe80'
             ip neigh show dev skvx7; bridge fdb show dev skvx7",
        );
        format!("{state}{}", self.overlay_state())
    }

    /// So many forwarding entries, neighbours and routes (without the unreachable ones).
    pub(crate) fn counts(&self) -> [usize; 3] {
        let count = |command: &str| self.bench.node.sh(command).lines().count();
        [
            count("bridge fdb show dev skvx7"),
            count(
                "ip -4 neigh show dev skvx7 nud permanent; ip -6 neigh show dev skvx7 nud permanent",
            ),
            count(
                "ip -4 route show dev skvx7 | grep via; ip -6 route show dev skvx7 | grep via || true",
            ),
        ]
    }
}

/// The same overlay as [`Cluster::conf`] for the library.
pub(crate) fn settings() -> Settings {
    Settings {
        vni: Vni::new(7).unwrap(),
        port: skiff_cni::overlay::DEFAULT_PORT,
        mtu: None,
        underlay: Underlay::default(),
        node: None,
        cluster_cidrs: ["10.244.0.0/16", "fd00:244::/48"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
    }
}

/// Entries as the library has them.
pub(crate) fn table(nodes: &Value) -> NodeTable {
    NodeTable::new(serde_json::from_value(nodes.clone()).unwrap()).unwrap()
}

pub(crate) fn underlay(outer: Outer, number: usize) -> String {
    match outer {
        Outer::V4 => format!("192.168.77.{number}"),
        Outer::V6 => format!("fd77::{number}"),
    }
}
