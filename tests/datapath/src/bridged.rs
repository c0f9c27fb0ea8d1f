//! A node as the CNI plugins make it: pods of their own behind a bridge, and somebody outside.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use skiff_netns::{NetNs, NodeNetns, delete_pinned};

use crate::{PODS, Probe, TARGET, node::ip, protocol};

/// The node's address in the world, on which NodePorts answer.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// A client in the world.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// The same in IPv6.
pub const UPLINK6: &str = "fd77::1";
/// The bridge's address.
const GATEWAY: &str = "10.88.0.1/24";
const GATEWAY6: &str = "fd88::1/64";
const BRIDGES: usize = 3;

/// The IPv6 address of a pod.
#[must_use]
pub fn pod6(number: usize) -> String {
    format!("fd88::{}", number + 2)
}

/// A node's network namespace with a bridge, three pods and the world, each with addresses of both families. What is
/// made here goes with the namespaces.
#[derive(Debug)]
pub struct BridgedNode {
    /// The node's network namespace.
    pub netns: PathBuf,
    pods: Vec<PathBuf>,
    world: PathBuf,
    program: PathBuf,
    _folder: tempfile::TempDir,
}

impl BridgedNode {
    /// Makes one. `program` is the `datapath-probe` binary.
    ///
    /// # Errors
    /// If something of it cannot be made; nothing is left then.
    pub fn new(program: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let node = Self {
            netns: at("node"),
            pods: (0..BRIDGES)
                .map(|number| at(&format!("pod{number}")))
                .collect(),
            world: at("world"),
            program: program.into(),
            _folder: folder,
        };
        for netns in node.namespaces() {
            NetNs::create_pinned(netns)?;
        }
        let run = |netns, line: &str| ip(netns, &line.split(' ').collect::<Vec<_>>());
        let netns = node.netns.as_path();
        run(netns, "link add br0 type bridge")?;
        run(netns, &format!("address add {GATEWAY} dev br0"))?;
        run(netns, &format!("address add {GATEWAY6} dev br0 nodad"))?;
        run(netns, "link set br0 up")?;
        for (number, pod) in node.pods.iter().enumerate() {
            let peer = pod.display();
            run(
                netns,
                &format!("link add pod{number} type veth peer name eth0 netns {peer}"),
            )?;
            run(netns, &format!("link set pod{number} master br0 up"))?;
            run(
                netns,
                &format!("link set pod{number} type bridge_slave hairpin on"),
            )?;
            let addr = PODS.get(number).context("no address")?;
            run(pod, &format!("address add {addr}/24 dev eth0"))?;
            run(
                pod,
                &format!("address add {}/64 dev eth0 nodad", pod6(number)),
            )?;
            run(pod, "link set eth0 up")?;
            run(pod, "route add default via 10.88.0.1")?;
            run(pod, "-6 route add default via fd88::1")?;
        }
        let world = node.world.display().to_string();
        run(
            netns,
            &format!("link add up0 type veth peer name eth0 netns {world}"),
        )?;
        run(netns, &format!("address add {UPLINK}/24 dev up0"))?;
        run(netns, &format!("address add {UPLINK6}/64 dev up0 nodad"))?;
        run(netns, "link set up0 up")?;
        let world = node.world.as_path();
        run(world, &format!("address add {OUTSIDE}/24 dev eth0"))?;
        run(world, "address add fd77::2/64 dev eth0 nodad")?;
        run(world, "link set eth0 up")?;
        run(world, &format!("route add default via {UPLINK}"))?;
        run(world, &format!("-6 route add default via {UPLINK6}"))?;
        // As on every node: what nothing translates ends here. It decides only where no other route does.
        run(
            netns,
            "route add unreachable 10.96.0.0/16 metric 4278198272",
        )?;
        run(netns, "-6 route add default via fd77::2")?;
        NetNs::open(netns)?.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            // The world asks by the link that Services' addresses are routed to. The kernel would answer with redirects as
            // well, and they share their rate limit with refusals.
            fs::write("/proc/sys/net/ipv4/conf/all/send_redirects", "0")?;
            fs::write("/proc/sys/net/ipv4/conf/up0/send_redirects", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        Ok(node)
    }

    fn namespaces(&self) -> impl Iterator<Item = &PathBuf> {
        self.pods.iter().chain([&self.netns, &self.world])
    }

    /// Its namespace, as the proxy takes it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn node_netns(&self) -> Result<NodeNetns> {
        Ok(NodeNetns::open(&self.netns)?)
    }

    /// A process of a pod.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn pod(&self, number: usize) -> Result<Probe> {
        let netns = self.pods.get(number).context("no such pod")?;
        Probe::start(&self.program, None, netns)
    }

    /// A process of the node.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn host(&self) -> Result<Probe> {
        Probe::start(&self.program, None, &self.netns)
    }

    /// A process in the world.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn outside(&self) -> Result<Probe> {
        Probe::start(&self.program, None, &self.world)
    }

    /// Pods that serve both families, TCP and UDP, and answer with their IPv4 address.
    ///
    /// # Errors
    /// If they cannot be started.
    pub fn serving_pods(&self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for (number, addr) in PODS.iter().take(self.pods.len()).enumerate() {
            let mut probe = self.pod(number)?;
            let v6 = pod6(number).parse::<std::net::Ipv6Addr>()?;
            for addr in [(*addr, TARGET).into(), (v6, TARGET).into()] {
                let name = PODS.get(number).context("no address")?.to_string();
                probe.tell(&protocol::Command::TcpServe {
                    addr,
                    name: name.clone(),
                })?;
                probe.tell(&protocol::Command::UdpServe { addr, name })?;
            }
            probes.push(probe);
        }
        Ok(probes)
    }

    /// What a program prints that runs in the node's network namespace.
    ///
    /// # Errors
    /// What it says if it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display()));
        let output = command.arg(program).args(arguments).output()?;
        if !output.status.success() {
            bail!("{program}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for BridgedNode {
    fn drop(&mut self) {
        let failed: Vec<String> = self
            .namespaces()
            .filter(|netns| netns.exists())
            .filter_map(|netns| delete_pinned(netns).err())
            .map(|error| error.to_string())
            .collect();
        assert!(
            failed.is_empty() || std::thread::panicking(),
            "not removed: {failed:?}"
        );
    }
}
