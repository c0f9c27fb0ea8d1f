//! A node with pods, another node's pods and the world beyond an uplink: network namespaces, joined by veth pairs.
//!
//! ```text
//! pods b0 … b3, c0, c1 ── bridge ── node ── uplink ── world (clients, gateway)
//!                                     └──── link ──── other node (pods r0, r1)
//! ```

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use skiff_netns::{NetNs, delete_pinned};
use skiff_test_harness::probe::{Probe, protocol::Command as Say};

use crate::{
    PROBE,
    who::{Client, Family, TARGETS, Who, bridge_address, net, node_address},
};

/// The namespaces beside those of pods.
const NODE: &str = "node";
const WORLD: &str = "world";
const OTHER: &str = "other";
/// Pods that only ask.
const CLIENTS: [(&str, Client); 2] = [("c0", Client::Pod), ("c1", Client::OtherPod)];

/// The node and its surroundings. Removed when dropped.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    /// The node's cgroup.
    pub(crate) cgroup: PathBuf,
    /// The same, from the mount.
    pub(crate) cgroup_root: String,
    servers: Vec<Probe>,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let cgroup_root = format!("/skiff-s-{}", std::process::id());
        let site = Self {
            folder: tempfile::tempdir()?,
            cgroup: cgroup2_mount()?.join(cgroup_root.trim_start_matches('/')),
            cgroup_root,
            servers: Vec::new(),
        };
        fs::create_dir(&site.cgroup).context("making the node's cgroup")?;
        for name in site.namespaces() {
            let netns = NetNs::create_pinned(site.netns_path(name))?;
            let forwards = [NODE, WORLD, OTHER].contains(&name);
            netns.run(|| set_up_kernel(forwards))??;
        }
        site.join_up()?;
        let mut site = site;
        site.start_servers()?;
        Ok(site)
    }

    /// A file of this run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn node_netns(&self) -> Result<NetNs> {
        Ok(NetNs::open(self.netns_path(NODE))?)
    }

    fn netns_path(&self, name: &str) -> PathBuf {
        self.path(&format!("net-{name}"))
    }

    fn namespaces(&self) -> Vec<&'static str> {
        let pods = Who::PODS.map(Who::name);
        let clients = CLIENTS.map(|(name, _)| name);
        [&[NODE, WORLD, OTHER][..], &pods, &clients].concat()
    }

    /// Links, addresses and routes.
    fn join_up(&self) -> Result<()> {
        let mut node = String::from("link add br0 type bridge\n");
        let pods = Who::PODS.map(|who| (who.name(), Client::Backend, Some(who)));
        let clients = CLIENTS.map(|(name, client)| (name, client, None));
        for (name, client, who) in pods.into_iter().chain(clients) {
            let path = self.netns_path(name);
            writeln!(
                node,
                "link add v-{name} type veth peer name eth0 netns {}",
                path.display()
            )?;
            writeln!(node, "link set v-{name} master br0 up")?;
            // As the bridge plugin's `hairpinMode`: the kernel bridges what rules translate to the pod that sent it.
            writeln!(node, "link set v-{name} type bridge_slave hairpin on")?;
            self.plans_of_pod(name, client, who).map(drop)?;
        }
        for (link, far) in [("eth0", WORLD), ("eth1", OTHER)] {
            let path = self.netns_path(far);
            writeln!(
                node,
                "link add {link} type veth peer name eth0 netns {}",
                path.display()
            )?;
            writeln!(node, "link set {link} up")?;
        }
        writeln!(node, "link set br0 up")?;
        for family in [Family::V4, Family::V6] {
            let length = prefix(family);
            let own = |net, low| family.address(net, 0, low);
            writeln!(
                node,
                "address add {}/{length} dev br0",
                bridge_address(family)
            )?;
            writeln!(
                node,
                "address add {}/{length} dev eth0",
                node_address(family)
            )?;
            writeln!(node, "address add {}/{length} dev eth1", own(net::LINK, 1))?;
            writeln!(
                node,
                "route add {}/{length} via {}",
                own(net::OTHER_PODS, 0),
                own(net::LINK, 2)
            )?;
            writeln!(node, "route add default via {}", own(net::UPLINK, 254))?;
        }
        ip(&self.netns_path(NODE), &node)?;
        for (name, client, who) in Who::PODS
            .map(|who| (who.name(), Client::Backend, Some(who)))
            .into_iter()
            .chain(CLIENTS.map(|(name, client)| (name, client, None)))
        {
            ip(
                &self.netns_path(name),
                &self.plans_of_pod(name, client, who)?,
            )?;
        }
        ip(&self.netns_path(OTHER), &other_node()?)?;
        let world = self.netns_path(WORLD);
        ip(&world, "link set eth0 up\n")?;
        ip_with(&world, &["-4"], &gateway(Family::V4)?)?;
        ip_with(&world, &["-6"], &gateway(Family::V6)?)
    }

    fn plans_of_pod(&self, _name: &str, client: Client, who: Option<Who>) -> Result<String> {
        let mut pod = String::from("link set eth0 up\n");
        for family in [Family::V4, Family::V6] {
            let own = match who {
                Some(who) => vec![who.address(family)],
                None => client.addresses(family),
            };
            for address in own {
                writeln!(pod, "address add {address}/{} dev eth0", prefix(family))?;
            }
            writeln!(pod, "route add default via {}", bridge_address(family))?;
        }
        Ok(pod)
    }

    fn start_servers(&mut self) -> Result<()> {
        for who in Who::PODS {
            let mut probe = self.probe(who.name(), true)?;
            for port in TARGETS {
                serve(&mut probe, who, port)?;
            }
            self.servers.push(probe);
        }
        let mut other = self.probe(OTHER, false)?;
        for who in Who::REMOTE {
            for port in TARGETS {
                serve(&mut other, who, port)?;
            }
        }
        let mut node = self.probe(NODE, true)?;
        serve(&mut node, Who::Node, 9090)?;
        let mut world = self.probe(WORLD, false)?;
        for family in [Family::V4, Family::V6] {
            serve_at(
                &mut world,
                (outside_balancer(family), 80).into(),
                "balancer",
            )?;
        }
        self.servers.extend([other, node, world]);
        Ok(())
    }

    /// A process in a namespace, and in the node's cgroup if it is of the node.
    fn probe(&self, netns: &str, of_node: bool) -> Result<Probe> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(PROBE);
        let cgroup = of_node.then_some(self.cgroup.as_path());
        Probe::start_by(&mut command, cgroup, &self.netns_path(netns))
    }

    /// A process that asks.
    pub(crate) fn client(&self, client: Client) -> Result<Probe> {
        match client {
            Client::Pod => self.probe("c0", true),
            Client::OtherPod => self.probe("c1", true),
            Client::Backend => self.probe(Who::B0.name(), true),
            Client::Host => self.probe(NODE, true),
            Client::Outside | Client::OtherOutside => self.probe(WORLD, false),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.servers.clear();
        let mut problems = Vec::new();
        for name in self.namespaces() {
            if let Err(error) = delete_pinned(self.netns_path(name)) {
                problems.push(error.to_string());
            }
        }
        // The processes that were killed leave it in their own time.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = fs::remove_dir(&self.cgroup) {
            if Instant::now() > deadline {
                problems.push(error.to_string());
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        if !problems.is_empty() {
            println!("not removed: {problems:?}");
        }
    }
}

fn prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// The namespace of the other node, whose pods are addresses of its own.
fn other_node() -> Result<String> {
    let mut text = String::from("link set eth0 up\n");
    for family in [Family::V4, Family::V6] {
        let length = prefix(family);
        let here = family.address(net::LINK, 0, 2);
        writeln!(text, "address add {here}/{length} dev eth0")?;
        for who in Who::REMOTE {
            writeln!(text, "address add {} dev eth0", who.address(family))?;
        }
        writeln!(
            text,
            "route add default via {}",
            family.address(net::LINK, 0, 1)
        )?;
    }
    Ok(text)
}

/// The world, for one family. The gateway tells who wants to go further that there is nothing; what starts in the world
/// goes to the node.
fn gateway(family: Family) -> Result<String> {
    let mut text = String::new();
    let length = prefix(family);
    for client in [Client::Outside, Client::OtherOutside] {
        for address in client.addresses(family) {
            writeln!(text, "address add {address}/{length} dev eth0")?;
        }
    }
    let own = family.address(net::UPLINK, 0, 254);
    writeln!(text, "address add {own}/{length} dev eth0")?;
    let balancer = outside_balancer(family);
    writeln!(text, "address add {balancer} dev eth0")?;
    let node = node_address(family);
    writeln!(text, "route add default via {node} table 100")?;
    writeln!(text, "rule add iif lo lookup 100")?;
    writeln!(text, "route add unreachable default metric 1")?;
    Ok(text)
}

fn serve(probe: &mut Probe, who: Who, port: u16) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let addr = (who.address(family), port).into();
        serve_at(probe, addr, &who.on(port))?;
    }
    Ok(())
}

fn serve_at(probe: &mut Probe, addr: SocketAddr, name: &str) -> Result<()> {
    let name = name.to_owned();
    probe.tell(&Say::TcpServe {
        addr,
        name: name.clone(),
    })?;
    probe.tell(&Say::UdpServe { addr, name })?;
    Ok(())
}

/// Settings of the calling thread's namespace.
fn set_up_kernel(forwards: bool) -> Result<()> {
    let set = |key: &str, value: &str| {
        let path = Path::new("/proc/sys/net").join(key);
        fs::write(&path, value).with_context(|| format!("writing {}", path.display()))
    };
    // Addresses are usable at once.
    for which in ["all", "default"] {
        set(&format!("ipv6/conf/{which}/accept_dad"), "0")?;
    }
    if forwards {
        set("ipv4/ip_forward", "1")?;
        set("ipv6/conf/all/forwarding", "1")?;
    }
    // Several ask from one namespace and provoke thousands of refusals.
    set("ipv4/icmp_ratelimit", "0")?;
    set("ipv6/icmp/ratelimit", "0")
}

/// Many commands of `ip` in one process, in a namespace.
fn ip(netns: &Path, batch: &str) -> Result<()> {
    ip_with(netns, &[], batch)
}

/// The same, with options before the commands.
fn ip_with(netns: &Path, options: &[&str], batch: &str) -> Result<()> {
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .arg("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(batch.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip: {}\nin\n{batch}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Where cgroup2 is mounted.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let line = line.context("no cgroup2")?;
    Ok(PathBuf::from(line.split(' ').nth(4).context("mountinfo")?))
}

/// The address of a load balancer in the world that answers itself.
pub(crate) fn outside_balancer(family: Family) -> IpAddr {
    family.address(net::PROXIES, 0, 1)
}
