//! Clients outside the node: their packets come in by a link of the node and reach its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::{
    Backend, Datapath, DesiredTables, FlowState, FlowTable, Frontend, FrontendSpec, IpFamily,
    NodeSettings, Protocol, SetId, Uplinks,
};
use skiff_netns::{NetNs, delete_pinned};
use skiff_tests_datapath::{
    POD_PORT, Pod, Probe, TestNode, addr_v6, bridge, ip, program,
    protocol::{Answer, Command as Say, How},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// The node's end of its link to the outside.
const UPLINK: u32 = 50;
/// Where pods send back what they get.
const ECHO: u16 = 9090;
const NODE_PORT: u16 = 30_080;
const ECHO_PORT: u16 = 30_090;
const ECONNREFUSED: i32 = 111;

const NODE: [IpAddr; 2] = [v4([192, 0, 2, 1]), v6(0xdb8, 0, 1)];
const CLIENT: [IpAddr; 2] = [v4([192, 0, 2, 2]), v6(0xdb8, 0, 2)];
/// An address that nobody has: the client's router sends it to the node.
const BALANCER: [IpAddr; 2] = [v4([203, 0, 113, 7]), v6(0xdb8, 1, 7)];

const fn v4([a, b, c, d]: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(second: u16, third: u16, last: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(
        0x2001, second, third, 0, 0, 0, 0, last,
    ))
}

/// A node with two pods, and a client at the other end of its uplink.
struct Site {
    node: TestNode,
    pods: [Pod; 2],
    client: PathBuf,
    datapath: Datapath,
    uplinks: Uplinks,
}

impl Site {
    fn new() -> Result<Self> {
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
    fn plug_in(&self, index: u32) -> Result<()> {
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

    fn attach(&self, index: u32) -> Result<()> {
        Ok(NetNs::open(&self.node.netns)?.run(|| self.uplinks.attach(index))??)
    }

    fn client(&self) -> Result<Probe> {
        Probe::start(PROGRAM.as_ref(), None, &self.client)
    }

    /// A server in each pod that answers with its name and the client's address, and one that sends back what it gets.
    fn serve(&self) -> Result<Vec<Probe>> {
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

    fn apply(&mut self, tables: &DesiredTables) -> Result<()> {
        program(&mut self.datapath, tables)
    }

    /// The first pods behind everything.
    fn tables(&self, count: usize) -> DesiredTables {
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
                        inside: inside(),
                        outside: Some(outside(family, port)),
                        affinity_seconds: 0,
                        local_only: false,
                    };
                    let at = Frontend::Address {
                        addr: BALANCER[number],
                        port,
                        protocol,
                    };
                    tables.frontends.insert(at, spec);
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

fn inside() -> SetId {
    SetId::of(&["test", "web"])
}

fn outside(family: IpFamily, port: u16) -> SetId {
    SetId::of_outside(&["test", "web", &format!("{family:?}"), &port.to_string()])
}

fn frontends() -> [SocketAddr; 4] {
    [
        (NODE[0], NODE_PORT).into(),
        (BALANCER[0], POD_PORT).into(),
        (NODE[1], NODE_PORT).into(),
        (BALANCER[1], POD_PORT).into(),
    ]
}

fn only(key: impl ToString, count: u32) -> BTreeMap<String, u32> {
    [(key.to_string(), count)].into()
}

/// Which pods answered, having seen `client` as the client.
fn answered(answer: &Answer, client: IpAddr) -> BTreeSet<String> {
    assert_eq!(answer.sources, only(client, answer.total()));
    answer.names.keys().cloned().collect()
}

/// A TCP connection that stays open.
fn open(client: &mut Probe, addr: SocketAddr) -> Result<()> {
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
fn say(client: &mut Probe) -> Result<BTreeMap<String, u32>> {
    let said = Say::Say {
        id: 1,
        patience_ms: 5_000,
    };
    Ok(client.tell(&said)?.names)
}

#[test]
fn clients_outside_reach_pods_by_every_frontend_and_keep_their_address() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(2))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let both: BTreeSet<String> = site.pods.iter().map(|pod| pod.addr.to_string()).collect();
    for addr in frontends() {
        let seen = CLIENT[usize::from(addr.is_ipv6())];
        let answer = client.tell(&Say::Tcp { addr, times: 40 })?;
        assert_eq!(answer.errors, BTreeMap::new(), "{addr}");
        assert_eq!(answer.total(), 40);
        assert_eq!(answer.peers, only(addr, 40));
        assert_eq!(answered(&answer, seen), both, "{addr}");
        let answer = client.tell(&Say::UdpConnected { addr, times: 40 })?;
        assert_eq!(answer.errors, BTreeMap::new(), "{addr}");
        assert_eq!(answer.total(), 40);
        assert_eq!(answered(&answer, seen), both, "{addr}");
    }
    let counters = site.datapath.counters()?;
    // A client may be given the same port twice.
    assert!((300..=4 * 80).contains(&counters.nat_flows), "{counters:?}");
    assert!(counters.nat_packets >= 4 * 40 * 5, "{counters:?}");
    assert!(counters.nat_reply_packets >= 4 * 40 * 4, "{counters:?}");
    assert!(counters.nat_reply_bytes > counters.nat_reply_packets * 54);
    Ok(())
}

#[test]
fn full_segments_pass_both_ways_unharmed() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(2))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    for addr in NODE.map(|ip| SocketAddr::new(ip, ECHO_PORT)) {
        let bytes = 8 << 20;
        let answer = client.tell(&Say::Transfer { addr, bytes })?;
        assert_eq!(
            (answer.names, answer.errors),
            (only("same", 1), BTreeMap::new()),
            "{addr}"
        );
    }
    Ok(())
}

#[test]
fn an_open_connection_outlives_the_daemon_its_backend_s_removal_and_its_uplink() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    open(&mut client, (BALANCER[0], POD_PORT).into())?;
    let said = only(site.pods[0].addr, 1);
    assert_eq!(say(&mut client)?, said);
    // The daemon dies.
    site.datapath = site.node.open()?;
    site.datapath.set_node(&NodeSettings {
        addresses: NODE.to_vec(),
        ..site.node.settings()?
    })?;
    assert_eq!(say(&mut client)?, said);
    // The backend is not to be used any more; the next connection goes to the other one.
    let mut moved = site.tables(2);
    for members in moved.sets.values_mut() {
        members.retain(|backend| !site.pods[0].port.addrs.contains(&backend.addr));
    }
    site.apply(&moved)?;
    assert_eq!(say(&mut client)?, said);
    let next = (BALANCER[0], POD_PORT).into();
    let answer = client.tell(&Say::Tcp {
        addr: next,
        times: 5,
    })?;
    assert_eq!(
        answered(&answer, CLIENT[0]),
        [site.pods[1].addr.to_string()].into()
    );
    // The link goes and comes back under another number.
    ip(&site.node.netns, &["link", "delete", "up0"])?;
    site.plug_in(UPLINK + 1)?;
    site.uplinks.retain(&[UPLINK + 1])?;
    assert_eq!(site.uplinks.attached(), [UPLINK + 1]);
    assert_eq!(say(&mut client)?, said);
    Ok(())
}

#[test]
fn datagrams_leave_a_removed_backend_at_once() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    for addr in [
        SocketAddr::from((NODE[0], NODE_PORT)),
        (NODE[1], NODE_PORT).into(),
    ] {
        site.apply(&site.tables(1))?;
        let first = client.tell(&Say::UdpUnconnected {
            addrs: vec![addr],
            times: 3,
        })?;
        assert_eq!(first.total(), 3);
        let mut moved = site.tables(2);
        for members in moved.sets.values_mut() {
            members.retain(|backend| !site.pods[0].port.addrs.contains(&backend.addr));
        }
        site.apply(&moved)?;
        let then = client.tell(&Say::UdpUnconnected {
            addrs: vec![addr],
            times: 3,
        })?;
        assert_eq!(then.peers, only(addr, 3));
        let other = [site.pods[1].addr.to_string()].into();
        assert_eq!(answered(&then, CLIENT[usize::from(addr.is_ipv6())]), other);
    }
    Ok(())
}

#[test]
fn a_service_without_backends_refuses_at_once_or_drops_by_its_policy() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(0))?;
    let mut client = site.client()?;
    for addr in frontends() {
        let refused: BTreeMap<i32, u32> = [(ECONNREFUSED, 2)].into();
        let answer = client.tell(&Say::Tcp { addr, times: 2 })?;
        assert_eq!(answer.errors, refused, "{addr}");
    }
    let mut local = site.tables(0);
    for spec in local.frontends.values_mut() {
        spec.local_only = true;
    }
    site.apply(&local)?;
    let addr = (NODE[0], NODE_PORT).into();
    let answer = client.tell(&Say::UdpConnected { addr, times: 1 })?;
    assert_eq!(answer.total(), 0);
    assert!(!answer.errors.contains_key(&ECONNREFUSED), "{answer:?}");
    assert!(site.datapath.counters()?.nat_no_local >= 1);
    // A Service that is open again is served again.
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    for addr in frontends() {
        let answer = client.tell(&Say::Tcp { addr, times: 2 })?;
        assert_eq!(
            (answer.total(), answer.errors),
            (2, BTreeMap::new()),
            "{addr}"
        );
    }
    Ok(())
}

#[test]
fn programs_stay_attached_until_they_are_removed() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let pins = site.node.bpffs.join("uplinks");
    assert_eq!(fs::read_dir(&pins)?.count(), 2);
    site.attach(UPLINK)?;
    assert_eq!(fs::read_dir(&pins)?.count(), 2, "twice is as good as once");
    assert!(site.attach(UPLINK + 7).is_err(), "no such link");
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let addr = (BALANCER[0], POD_PORT).into();
    assert_eq!(client.tell(&Say::Tcp { addr, times: 1 })?.total(), 1);
    site.uplinks.retain(&[])?;
    assert_eq!(fs::read_dir(&pins)?.count(), 0);
    assert_eq!(client.tell(&Say::Tcp { addr, times: 1 })?.total(), 0);
    Ok(())
}

#[test]
fn connections_are_listed_and_removed_when_they_have_been_silent_for_long() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let kept = SocketAddr::from((BALANCER[1], POD_PORT));
    open(&mut client, kept)?;
    say(&mut client)?;
    let ended = SocketAddr::from((NODE[0], NODE_PORT));
    client.tell(&Say::Tcp {
        addr: ended,
        times: 1,
    })?;
    client.tell(&Say::UdpConnected {
        addr: ended,
        times: 1,
    })?;
    let flows = FlowTable::open(&site.node.bpffs)?;
    let states = || {
        let mut all: Vec<_> = flows
            .list()?
            .into_iter()
            .map(|flow| {
                assert_eq!(flow.client.ip(), CLIENT[usize::from(flow.asked.is_ipv6())]);
                assert_eq!(flow.source, None);
                (flow.asked, flow.protocol, flow.state)
            })
            .collect();
        all.sort_unstable();
        Ok::<_, anyhow::Error>(all)
    };
    let tcp = (kept, Protocol::Tcp, FlowState::Open);
    let mut expected = vec![
        (ended, Protocol::Tcp, FlowState::Closing),
        // The client has said one word, and heard one.
        (ended, Protocol::Udp, FlowState::Opening),
        tcp,
    ];
    expected.sort_unstable();
    assert_eq!(states()?, expected);
    assert_eq!(flows.sweep()?.removed, 0);
    let now = Duration::from_millis(uptime_millis()?);
    let swept = flows.sweep_at(now + Duration::from_secs(130))?;
    assert_eq!((swept.removed, swept.kept), (4, 2));
    assert_eq!(states()?, [tcp]);
    assert_eq!(say(&mut client)?, only(site.pods[0].addr, 1));
    assert_eq!(flows.sweep_at(now + Duration::from_secs(9_000))?.kept, 0);
    Ok(())
}

/// The kernel's monotonic clock, as `/proc` has it.
fn uptime_millis() -> Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().context("uptime")?;
    Ok(seconds.replace('.', "").parse::<u64>()? * 10)
}

/// With its table full the oldest connections go; new ones are served.
#[test]
fn a_full_table_serves_new_connections() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let addr = SocketAddr::from((NODE[0], NODE_PORT));
    // Twice as many as the table takes: 1024 directions.
    let answer = client.tell(&Say::UdpConnected { addr, times: 1024 })?;
    assert_eq!((answer.total(), answer.errors), (1024, BTreeMap::new()));
    let swept = FlowTable::open(&site.node.bpffs)?.sweep()?;
    assert!(swept.kept <= swept.limit as usize, "{swept:?}");
    Ok(())
}
