//! A node with an uplink, and what its tests have in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::Result;
use skiff_ebpf_loader::{
    Backend, Datapath, DesiredTables, Frontend, FrontendSpec, IpFamily, NodeSettings, Protocol,
    SetId, Uplinks,
};
use skiff_netns::{NetNs, delete_pinned};
use skiff_tests_datapath::{
    POD_PORT, Pod, Probe, TestNode, addr_v6, bridge, ip, program,
    protocol::{Answer, Command as Say, How},
};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// The node's end of its link to the outside.
pub(crate) const UPLINK: u32 = 50;
/// Where pods send back what they get.
pub(crate) const ECHO: u16 = 9090;
pub(crate) const NODE_PORT: u16 = 30_080;
pub(crate) const ECHO_PORT: u16 = 30_090;
pub(crate) const ECONNREFUSED: i32 = 111;

pub(crate) const NODE: [IpAddr; 2] = [v4([192, 0, 2, 1]), v6(0xdb8, 0, 1)];
pub(crate) const CLIENT: [IpAddr; 2] = [v4([192, 0, 2, 2]), v6(0xdb8, 0, 2)];
/// An address that nobody has: the client's router sends it to the node.
pub(crate) const BALANCER: [IpAddr; 2] = [v4([203, 0, 113, 7]), v6(0xdb8, 1, 7)];

const fn v4([a, b, c, d]: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(second: u16, third: u16, last: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(
        0x2001, second, third, 0, 0, 0, 0, last,
    ))
}

/// A node with two pods, and a client at the other end of its uplink.
pub(crate) struct Site {
    pub(crate) node: TestNode,
    pub(crate) pods: [Pod; 2],
    pub(crate) client: PathBuf,
    pub(crate) datapath: Datapath,
    pub(crate) uplinks: Uplinks,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let node = TestNode::new(PROGRAM)?;
        bridge(&node)?;
        ip(
            &node.netns,
            &["address", "add", "fd00:77::1/64", "dev", "br0", "nodad"],
        )?;
        let pods = [Pod::new(&node, 2)?, Pod::new(&node, 3)?];
        for pod in &pods {
            let addr = format!("{}/64", addr_v6(pod.addr.octets()[3]));
            ip(
                &pod.netns,
                &["address", "add", &addr, "dev", "eth0", "nodad"],
            )?;
            ip(&pod.netns, &["route", "add", "default", "via", "10.77.0.1"])?;
            ip(
                &pod.netns,
                &["route", "add", "default", "via", "fd00:77::1"],
            )?;
        }
        let client = node.netns.with_file_name("client");
        NetNs::create_pinned(&client)?;
        let mut datapath = node.open()?;
        datapath.set_node(&NodeSettings {
            addresses: NODE.to_vec(),
            ..node.settings()?
        })?;
        let paths = datapath.pods()?;
        let netns = NetNs::open(&node.netns)?;
        for pod in &pods {
            netns.run(|| paths.attach(&pod.port))??;
        }
        let uplinks = Uplinks::open(&node.bpffs)?;
        let site = Self {
            node,
            pods,
            client,
            datapath,
            uplinks,
        };
        site.plug_in(UPLINK)?;
        Ok(site)
    }

    /// Makes the uplink, and has it watched.
    pub(crate) fn plug_in(&self, index: u32) -> Result<()> {
        let (node, client) = (&self.node.netns, self.client.to_string_lossy().into_owned());
        let index = index.to_string();
        let veth = [
            "link", "add", "up0", "index", &index, "type", "veth", "peer", "name", "eth0", "netns",
            &client,
        ];
        ip(node, &veth)?;
        for (netns, link, addrs) in [(node, "up0", NODE), (&self.client, "eth0", CLIENT)] {
            ip(netns, &["link", "set", link, "up"])?;
            ip(
                netns,
                &["address", "add", &format!("{}/24", addrs[0]), "dev", link],
            )?;
            ip(
                netns,
                &[
                    "address",
                    "add",
                    &format!("{}/48", addrs[1]),
                    "dev",
                    link,
                    "nodad",
                ],
            )?;
        }
        for (range, via) in [("203.0.113.0/24", NODE[0]), ("2001:db8:1::/64", NODE[1])] {
            ip(
                &self.client,
                &["route", "add", range, "via", &via.to_string()],
            )?;
        }
        self.attach(index.parse()?)
    }

    pub(crate) fn attach(&self, index: u32) -> Result<()> {
        Ok(NetNs::open(&self.node.netns)?.run(|| self.uplinks.attach(index))??)
    }

    pub(crate) fn client(&self) -> Result<Probe> {
        Probe::start(PROGRAM.as_ref(), None, &self.client)
    }

    /// A server in each pod that answers with its name and the client's address, and one that sends back what it gets.
    pub(crate) fn serve(&self) -> Result<Vec<Probe>> {
        let serve = |pod: &Pod| {
            let mut probe = pod.probe()?;
            let name = pod.addr.to_string();
            for ip in &pod.port.addrs {
                let addr = (*ip, POD_PORT).into();
                let name = name.clone();
                probe.tell(&Say::TcpServe {
                    addr,
                    name: name.clone(),
                })?;
                probe.tell(&Say::UdpServe { addr, name })?;
                probe.tell(&Say::TcpEcho {
                    addr: (*ip, ECHO).into(),
                })?;
            }
            Ok(probe)
        };
        self.pods.iter().map(serve).collect()
    }

    /// Lets the node's own stack pass packets on, as every node with pods does.
    pub(crate) fn forward(&self) -> Result<()> {
        let netns = NetNs::open(&self.node.netns)?;
        for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            netns.run(|| std::fs::write(format!("/proc/sys/net/{file}"), "1"))??;
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, tables: &DesiredTables) -> Result<()> {
        program(&mut self.datapath, tables)
    }

    /// The first pods behind everything.
    pub(crate) fn tables(&self, count: usize) -> DesiredTables {
        let mut tables = DesiredTables::default();
        for (number, family) in [(0, IpFamily::V4), (1, IpFamily::V6)] {
            for (port, node_port) in [(POD_PORT, NODE_PORT), (ECHO, ECHO_PORT)] {
                let members = self.pods.iter().take(count).map(|pod| Backend {
                    local: true,
                    ..Backend::new(pod.port.addrs[number], port)
                });
                tables.sets.insert(outside(family, port), members.collect());
                tables.sets.insert(inside(), Vec::new());
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let spec = FrontendSpec {
                        outside: Some(outside(family, port)),
                        ..FrontendSpec::to(inside())
                    };
                    let at = Frontend::Address {
                        addr: BALANCER[number],
                        port,
                        protocol,
                    };
                    tables.frontends.insert(at, spec.clone());
                    let at = Frontend::NodePort {
                        family,
                        port: node_port,
                        protocol,
                    };
                    tables.frontends.insert(at, spec);
                }
            }
        }
        tables
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(delete_pinned(&self.client));
    }
}

pub(crate) fn inside() -> SetId {
    SetId::of(&["test", "web"])
}

pub(crate) fn outside(family: IpFamily, port: u16) -> SetId {
    SetId::of_outside(&["test", "web", &format!("{family:?}"), &port.to_string()])
}

pub(crate) fn frontends() -> [SocketAddr; 4] {
    [
        (NODE[0], NODE_PORT).into(),
        (BALANCER[0], POD_PORT).into(),
        (NODE[1], NODE_PORT).into(),
        (BALANCER[1], POD_PORT).into(),
    ]
}

pub(crate) fn only(key: impl ToString, count: u32) -> BTreeMap<String, u32> {
    [(key.to_string(), count)].into()
}

/// Which pods answered, having seen `client` as the client.
pub(crate) fn answered(answer: &Answer, client: IpAddr) -> BTreeSet<String> {
    assert_eq!(answer.sources, only(client, answer.total()));
    answer.names.keys().cloned().collect()
}

/// A TCP connection that stays open.
pub(crate) fn open(client: &mut Probe, addr: SocketAddr) -> Result<()> {
    let opened = client.tell(&Say::Open {
        id: 1,
        how: How::Tcp,
        addr,
        patience_ms: 5_000,
    })?;
    assert_eq!(opened.errors, BTreeMap::new());
    Ok(())
}

/// Asks once on it; who answers.
pub(crate) fn say(client: &mut Probe) -> Result<BTreeMap<String, u32>> {
    let said = Say::Say {
        id: 1,
        patience_ms: 5_000,
    };
    Ok(client.tell(&said)?.names)
}
