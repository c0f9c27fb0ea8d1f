//! What the program in an uplink's driver takes for a packet, for `cargo xtask bench service`: nanoseconds for a plain `XDP_TX`,
//! for packets of known flows (of one, and of many), for those that open one, and for two insertions into such a table; a line for
//! each kind of packet.
//!
//!     packet_cost SERVICES ROUNDS
#![allow(clippy::print_stdout, reason = "speaks with the bench")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use skiff_ebpf_loader::{
    Backend, Datapath, DatapathConfig, DesiredTables, Frontend, FrontendSpec, Limits, NodeSettings,
    PacketGenerator, Protocol, SetId, Uplinks,
};
use skiff_netns::NetNs;
use skiff_tests_datapath::{
    TestNode, ip,
    packet::{ACK, Packet, SYN, TCP, UDP, packet},
    program,
};

const UPLINK: u32 = 50;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const XDP_TX: u32 = 3;
const PORT: u16 = 80;
/// Endpoints of each of the other Services.
const ENDPOINTS: u8 = 5;
/// Endpoints of the one that is asked: each has 16,384 clients at most at a time, for they are told apart by their port of this node.
const ASKED_ENDPOINTS: u8 = 50;
/// Clients of "many flows".
const MANY: u32 = 4096;
/// Packets of known flows in one run.
const KNOWN: u32 = 20_000;
/// Packets in one run that open a flow.
const NEW: u32 = 1_024;

const NODE: [IpAddr; 2] = [v4(192, 0, 1), v6(0, 1)];
const VIP: [IpAddr; 2] = [v4(203, 0, 7), v6(1, 7)];

const fn v4(first: u8, third: u8, last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(first, 0, third, last))
}

const fn v6(fourth: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, fourth, 0, 0, 0, last))
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut number = || words.next().context("usage: see the source's first lines");
    let (services, rounds): (u32, usize) = (number()?.parse()?, number()?.parse()?);
    let node = TestNode::new("")?;
    let mut datapath = Datapath::open(&DatapathConfig {
        limits: Limits::default(),
        ..node.config()
    })?;
    datapath.set_node(&NodeSettings {
        addresses: NODE.to_vec(),
        ..node.settings()?
    })?;
    wire(&node)?;
    program(&mut datapath, &tables(services))?;
    let netns = NetNs::open(&node.netns)?;
    let uplinks = Uplinks::open(&node.bpffs)?;
    ensure!(
        netns.run(|| uplinks.attach_xdp(UPLINK))??,
        "this kernel has no XDP for veth"
    );
    let mut generator = PacketGenerator::load()?;
    // So that no client is new twice.
    let mut clients = 0;
    for (name, proto, number) in [
        ("tcp4", TCP, 0),
        ("tcp6", TCP, 1),
        ("udp4", UDP, 0),
        ("udp6", UDP, 1),
    ] {
        let cost = netns
            .run(|| measure(&mut generator, &node, (proto, number), rounds, &mut clients))??;
        println!("{name} {}", cost.map(|ns| format!("{ns:.1}")).join(" "));
    }
    Ok(())
}

/// Medians: sent back at once, known, known among many, new, remembered only.
fn measure(
    generator: &mut PacketGenerator,
    node: &TestNode,
    (proto, number): (u8, usize),
    rounds: usize,
    clients: &mut u32,
) -> Result<[f64; 5]> {
    let opening = Packet {
        ethernet: [MAC, [2, 0, 0, 0, 0, 2]],
        ..packet(proto, (VIP[number], 0), (VIP[number], PORT))
    };
    let from = [v4(198, 51, 0), v6(2, 0)][number];
    let opening = Packet {
        from: (from, 0).into(),
        flags: SYN,
        ..opening
    };
    let known = Packet {
        flags: ACK,
        ..opening
    };
    let mut samples: [Vec<f64>; 5] = Default::default();
    for _ in 0..rounds {
        let run = |generator: &mut PacketGenerator, packet: &Packet, who, times| {
            let (verdict, time) = generator.run(&packet.frame(), who, times, UPLINK)?;
            ensure!(verdict == XDP_TX, "{packet:?}: verdict {verdict}");
            Ok(time)
        };
        generator.feed_bounce()?;
        let bounced = run(generator, &known, (0, 1), KNOWN)?;
        generator.feed(&node.bpffs, "uplink_xdp")?;
        // Seen once before.
        run(generator, &opening, (0, MANY), MANY)?;
        run(generator, &known, (0, MANY), MANY)?;
        let one = run(generator, &known, (0, 1), KNOWN)?;
        let many = run(generator, &known, (0, MANY), KNOWN)?;
        *clients += NEW;
        let new = run(generator, &opening, (MANY + *clients, 0), NEW)?;
        generator.feed_remember()?;
        let floor = run(generator, &opening, (MANY + *clients, 0), NEW)?;
        for (samples, time) in samples.iter_mut().zip([bounced, one, many, new, floor]) {
            samples.push(nanos(time));
        }
    }
    Ok(samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples.get(rounds / 2).copied().unwrap_or(f64::NAN)
    }))
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// An uplink with all backends behind one router.
fn wire(node: &TestNode) -> Result<()> {
    let index = UPLINK.to_string();
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let veth = [
        "link", "add", "up0", "index", &index, "address", &mac, "type", "veth", "peer", "name",
        "up1",
    ];
    ip(&node.netns, &veth)?;
    for link in ["up0", "up1"] {
        ip(&node.netns, &["link", "set", link, "up"])?;
    }
    for (number, (bits, all)) in [("24", "0.0.0.0/0"), ("64", "::/0")]
        .into_iter()
        .enumerate()
    {
        let addr = format!("{}/{bits}", NODE[number]);
        ip(
            &node.netns,
            &["address", "add", &addr, "dev", "up0", "nodad"],
        )?;
        let router = ["192.0.0.9", "2001:db8::9"][number];
        let neighbour = ["neigh", "replace", router, "lladdr", "02:00:00:00:00:09"];
        ip(
            &node.netns,
            &[&neighbour[..], &["dev", "up0", "nud", "permanent"]].concat(),
        )?;
        ip(
            &node.netns,
            &["route", "add", all, "via", router, "dev", "up0"],
        )?;
    }
    let netns = NetNs::open(&node.netns)?;
    for file in [
        "ipv4/conf/all/forwarding",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/up0/forwarding",
    ] {
        netns.run(|| std::fs::write(format!("/proc/sys/net/{file}"), "1"))??;
    }
    Ok(())
}

/// The Service that is asked, in both families, and others beside it, all with backends on other nodes.
fn tables(services: u32) -> DesiredTables {
    let mut tables = DesiredTables::default();
    let mut add = |set: SetId, outside, addr, members: Vec<Backend>| {
        tables.sets.insert(set, members);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let at = Frontend::Address {
                addr,
                port: PORT,
                protocol,
            };
            let spec = FrontendSpec {
                outside,
                ..FrontendSpec::to(set)
            };
            tables.frontends.insert(at, spec);
        }
    };
    for (number, vip) in VIP.into_iter().enumerate() {
        let set = SetId::of_outside(&["bench", &number.to_string()]);
        let members = (1..=ASKED_ENDPOINTS).map(|endpoint| {
            let addr = [v4(10, 0, endpoint), v6(3, endpoint.into())][number];
            Backend::new(addr, 8080)
        });
        add(set, Some(set), vip, members.collect());
    }
    for service in 1..services {
        let [_, high, middle, low] = service.to_be_bytes();
        let members = (1..=ENDPOINTS).map(|endpoint| {
            let addr = Ipv4Addr::new(10, 128 + 8 * endpoint + high, middle, low);
            Backend::new(addr.into(), 8080)
        });
        let set = SetId::of(&["bench", "other", &service.to_string()]);
        let addr = Ipv4Addr::new(10, 100 + high, middle, low);
        add(set, None, addr.into(), members.collect());
    }
    tables
}
