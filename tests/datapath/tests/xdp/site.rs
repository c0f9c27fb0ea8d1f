//! A node whose driver sends on what is for other nodes, and a client and a backend on the same link as that node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use skiff_ebpf_loader::{
    Backend, Datapath, DesiredTables, Frontend, FrontendSpec, IpFamily, NodeSettings, Protocol,
    SetId, TestRun, Uplinks, test_run_xdp,
};
use skiff_netns::{NetNs, delete_pinned};
use skiff_tests_datapath::{Probe, TestNode, ip, program};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// The node's end of its link to the outside.
pub(crate) const UPLINK: u32 = 50;
/// The first port of the bridge: the node's.
const PORT: u32 = 60;
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

pub(crate) const NODE: [IpAddr; 2] = [v4(192, 1), v6(1)];
pub(crate) const CLIENT: [IpAddr; 2] = [v4(192, 2), v6(2)];
/// Where the other node's backend is.
pub(crate) const FAR: [IpAddr; 2] = [v4(192, 3), v6(3)];
/// Of the same network, but nobody has it.
pub(crate) const NOBODY: [IpAddr; 2] = [v4(192, 4), v6(4)];
pub(crate) const BALANCER: [IpAddr; 2] = [v4(203, 7), v6(7)];
/// A pod of the node.
pub(crate) const POD: [IpAddr; 2] = [v4(10, 4), v6(44)];

/// Frontends' ports: the backend on the other node, a pod of this one, a backend that does not answer for its address, none.
pub(crate) const TO_FAR: u16 = 80;
pub(crate) const TO_POD: u16 = 81;
pub(crate) const TO_NOBODY: u16 = 82;
pub(crate) const TO_NOTHING: u16 = 83;
/// Where backends listen.
pub(crate) const TARGET: u16 = 8080;

const fn v4(first: u8, last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(first, 0, 2, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))
}

/// The namespaces of the client and the other node are its own; a bridge in a third joins them with the node.
pub(crate) struct Site {
    pub(crate) node: TestNode,
    pub(crate) datapath: Datapath,
    pub(crate) uplinks: Uplinks,
    switch: PathBuf,
    client: PathBuf,
    far: PathBuf,
}

impl Site {
    /// With the program in the driver of the uplink, and no other there: what it leaves alone the node's own stack gets.
    pub(crate) fn new() -> Result<Self> {
        let node = TestNode::new(PROGRAM)?;
        let [switch, client, far] =
            ["switch", "client", "far"].map(|name| node.netns.with_file_name(name));
        let mut datapath = node.open()?;
        datapath.set_node(&NodeSettings {
            addresses: NODE.to_vec(),
            ..node.settings()?
        })?;
        let uplinks = Uplinks::open(&node.bpffs)?;
        let mut site = Self {
            node,
            datapath,
            uplinks,
            switch,
            client,
            far,
        };
        site.wire()?;
        let netns = NetNs::open(&site.node.netns)?;
        for file in [
            "ipv4/conf/all/forwarding",
            "ipv6/conf/all/forwarding",
            "ipv6/conf/up0/forwarding",
        ] {
            netns.run(|| std::fs::write(format!("/proc/sys/net/{file}"), "1"))??;
        }
        // What the driver of a veth sends back, its peer takes at once only if there is a program too. Nothing is for that one.
        let switch = NetNs::open(&site.switch)?;
        for (netns, link) in [(netns, UPLINK), (switch, PORT)] {
            ensure!(
                netns.run(|| site.uplinks.attach_xdp(link))??,
                "this kernel has no XDP for veth"
            );
        }
        program(&mut site.datapath, &tables())?;
        Ok(site)
    }

    fn wire(&mut self) -> Result<()> {
        for netns in [&self.switch, &self.client, &self.far] {
            NetNs::create_pinned(netns)?;
        }
        ip(
            &self.switch,
            &["link", "add", "br0", "up", "type", "bridge"],
        )?;
        let ends = [
            (&self.node.netns, "up0", NODE, NODE_MAC),
            (&self.client, "eth0", CLIENT, CLIENT_MAC),
            (&self.far, "eth0", FAR, FAR_MAC),
        ];
        for (number, (netns, link, addrs, mac)) in (0..).zip(ends) {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            let (index, port) = ((UPLINK + number).to_string(), format!("p{number}"));
            let peer = (PORT + number).to_string();
            let there = self.switch.to_string_lossy().into_owned();
            let veth = [
                "link", "add", link, "index", &index, "address", &mac, "type", "veth", "peer",
                "name", &port, "index", &peer, "netns", &there,
            ];
            ip(netns, &veth)?;
            ip(&self.switch, &["link", "set", &port, "master", "br0", "up"])?;
            ip(netns, &["link", "set", link, "up"])?;
            for (addr, bits) in addrs.iter().zip([24, 64]) {
                let addr = format!("{addr}/{bits}");
                ip(netns, &["address", "add", &addr, "dev", link, "nodad"])?;
            }
            // A veth leaves checksums to be completed by a hardware that is not there; what comes from a real link has them.
            ethtool(netns, &["-K", link, "tx", "off"])?;
        }
        for (addr, node) in BALANCER.iter().zip(NODE) {
            let via = ["via", &node.to_string(), "dev", "eth0"];
            let addr = addr.to_string();
            ip(&self.client, &[&["route", "add", &addr][..], &via].concat())?;
        }
        // Known from the start: the first packet goes like all others.
        for (addr, mac) in CLIENT
            .iter()
            .zip([CLIENT_MAC; 2])
            .chain(FAR.iter().zip([FAR_MAC; 2]))
        {
            let (addr, mac) = (addr.to_string(), mac.map(|byte| format!("{byte:02x}")));
            let mac = mac.join(":");
            let neighbour = ["neigh", "replace", &addr, "lladdr", &mac, "dev", "up0"];
            ip(
                &self.node.netns,
                &[&neighbour[..], &["nud", "permanent"]].concat(),
            )?;
        }
        Ok(())
    }

    /// What the program makes of a frame that comes in by the uplink.
    pub(crate) fn run(&self, frame: &[u8]) -> Result<TestRun> {
        let netns = NetNs::open(&self.node.netns)?;
        let run = || test_run_xdp(&self.node.bpffs, "uplink_xdp", frame, 1, UPLINK);
        Ok(netns.run(run)??)
    }

    pub(crate) fn client(&self) -> Result<Probe> {
        Probe::start(PROGRAM.as_ref(), None, &self.client)
    }

    pub(crate) fn far(&self) -> Result<Probe> {
        Probe::start(PROGRAM.as_ref(), None, &self.far)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for netns in [&self.client, &self.far, &self.switch] {
            drop(delete_pinned(netns));
        }
    }
}

fn ethtool(netns: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .arg("ethtool")
        .args(arguments)
        .output()
        .context("running ethtool")?;
    ensure!(
        output.status.success(),
        "ethtool {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn tables() -> DesiredTables {
    let mut tables = DesiredTables::default();
    let inside = SetId::of(&["inside"]);
    tables.sets.insert(inside, Vec::new());
    for (number, family) in [(0, IpFamily::V4), (1, IpFamily::V6)] {
        let pod = Backend {
            local: true,
            ..Backend::new(POD[number], TARGET)
        };
        let far = Backend::new(FAR[number], TARGET);
        let nobody = Backend::new(NOBODY[number], TARGET);
        for (port, members) in [
            (TO_FAR, vec![far]),
            (TO_POD, vec![pod]),
            (TO_NOBODY, vec![nobody]),
            (TO_NOTHING, Vec::new()),
        ] {
            let set = SetId::of_outside(&[&port.to_string(), &number.to_string()]);
            tables.sets.insert(set, members);
            let spec = FrontendSpec {
                outside: Some(set),
                ..FrontendSpec::to(inside)
            };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let addr = BALANCER[number];
                let at = Frontend::Address {
                    addr,
                    port,
                    protocol,
                };
                tables.frontends.insert(at, spec.clone());
                let port = node_port(port);
                let at = Frontend::NodePort {
                    family,
                    port,
                    protocol,
                };
                tables.frontends.insert(at, spec.clone());
            }
        }
    }
    tables
}

/// The NodePort of the Service with this port.
pub(crate) const fn node_port(port: u16) -> u16 {
    port + 30_000
}

/// Both ways to the Service with this port, in both families.
pub(crate) fn frontends(port: u16) -> [SocketAddr; 4] {
    [
        (NODE[0], node_port(port)).into(),
        (BALANCER[0], port).into(),
        (NODE[1], node_port(port)).into(),
        (BALANCER[1], port).into(),
    ]
}
