//! What the program in the uplink's driver makes of frames, one by one and from real sockets.

mod site;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::Uplinks;
use skiff_netns::NetNs;
use skiff_tests_datapath::{
    TestNode,
    packet::{ACK, Packet, RST, SYN, TCP, UDP, packet},
    protocol::Command as Say,
};

use crate::site::{
    CLIENT, CLIENT_MAC, FAR, FAR_MAC, NODE, NODE_MAC, PROGRAM, Site, TARGET, TO_FAR, TO_NOBODY,
    TO_NOTHING, TO_POD, UPLINK, frontends,
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

/// From the client to a frontend, as it comes in.
fn asked(proto: u8, port: u16, to: SocketAddr) -> Packet {
    Packet {
        ethernet: [NODE_MAC, CLIENT_MAC],
        ..packet(
            proto,
            (CLIENT[usize::from(to.is_ipv6())], port),
            (to.ip(), to.port()),
        )
    }
}

/// As it goes on to the other node, from this port of ours.
fn to_far(asked: &Packet, source: u16) -> Packet {
    let number = usize::from(asked.to.is_ipv6());
    Packet {
        ethernet: [FAR_MAC, NODE_MAC],
        from: (NODE[number], source).into(),
        to: (FAR[number], TARGET).into(),
        ttl: asked.ttl - 1,
        ..*asked
    }
}

/// The source port of a frame without options.
fn source_port(frame: &[u8]) -> Result<u16> {
    let at = match frame.get(12..14) {
        Some([0x08, 0]) => 34,
        _ => 54,
    };
    let bytes = frame.get(at..at + 2).context("short frame")?;
    Ok(u16::from_be_bytes(bytes.try_into()?))
}

#[test]
fn packets_to_another_node_leave_by_the_link_that_they_came_by_and_so_do_answers() -> Result<()> {
    let site = Site::new()?;
    for proto in [TCP, UDP] {
        for (to, port) in frontends(TO_FAR).into_iter().zip(5000..) {
            let opening = asked(proto, port, to);
            let first = site.run(&opening.frame())?;
            assert_eq!(first.verdict, TX, "{opening:?}");
            let source = source_port(&first.packet)?;
            assert!((10_240..26_624).contains(&source), "{source}");
            assert_eq!(first.packet, to_far(&opening, source).frame());
            // Known by now.
            let next = Packet {
                flags: ACK,
                payload: b"more of it, and more than before",
                ..opening
            };
            let got = site.run(&next.frame())?;
            assert_eq!(
                (got.verdict, got.packet),
                (TX, to_far(&next, source).frame())
            );
            let answer = Packet {
                ethernet: [NODE_MAC, FAR_MAC],
                flags: SYN | ACK,
                payload: b"an answer",
                ..packet(
                    proto,
                    (FAR[usize::from(to.is_ipv6())], TARGET),
                    (NODE[usize::from(to.is_ipv6())], source),
                )
            };
            let expected = Packet {
                ethernet: [CLIENT_MAC, NODE_MAC],
                from: to,
                to: opening.from,
                ttl: answer.ttl - 1,
                ..answer
            };
            let got = site.run(&answer.frame())?;
            assert_eq!((got.verdict, got.packet), (TX, expected.frame()));
        }
    }
    let counters = site.datapath.counters()?;
    assert_eq!(
        (
            counters.nat_flows,
            counters.nat_packets,
            counters.nat_reply_packets
        ),
        (8, 16, 8)
    );
    Ok(())
}

#[test]
fn a_datagram_without_a_checksum_gets_none_and_options_stay() -> Result<()> {
    let site = Site::new()?;
    let [to, ..] = frontends(TO_FAR);
    let unsummed = Packet {
        unsummed: true,
        ..asked(UDP, 6000, to)
    };
    let got = site.run(&unsummed.frame())?;
    let source = source_port(&got.packet)?;
    assert_eq!(
        (got.verdict, got.packet),
        (TX, to_far(&unsummed, source).frame())
    );
    let options = Packet {
        options: 3,
        ..asked(UDP, 6000, to)
    };
    let got = site.run(&options.frame())?;
    assert_eq!(
        (got.verdict, got.packet),
        (TX, to_far(&options, source).frame())
    );
    Ok(())
}

/// Name, packet in, verdict: nothing of it is changed.
fn left_alone() -> Vec<(&'static str, Packet, u32)> {
    let mut all = Vec::new();
    for number in [0, 2] {
        let [far, pod, nobody, nothing] =
            [TO_FAR, TO_POD, TO_NOBODY, TO_NOTHING].map(|port| frontends(port)[number]);
        let tcp = asked(TCP, 7000, far);
        let of = |to| Packet { to, ..tcp };
        let other_host = Packet {
            ethernet: [FAR_MAC, CLIENT_MAC],
            from: (tcp.from.ip(), 7001).into(),
            ..tcp
        };
        let reset = Packet {
            flags: RST,
            from: (tcp.from.ip(), 7002).into(),
            ..tcp
        };
        let expired = Packet {
            ttl: 1,
            from: (tcp.from.ip(), 7003).into(),
            ..tcp
        };
        all.extend([
            ("a pod of this node", of(pod), PASS),
            ("no neighbour", of(nobody), PASS),
            ("no backend", of(nothing), PASS),
            ("no Service", of((far.ip(), 99).into()), PASS),
            ("a frame for another host", other_host, PASS),
            ("RST of nobody", reset, PASS),
            ("the last hop", expired, DROP),
        ]);
    }
    let [far, ..] = frontends(TO_FAR);
    let fragment = Packet {
        fragment: 0x2000,
        ..asked(UDP, 7004, far)
    };
    all.push(("a fragment", fragment, PASS));
    all
}

#[test]
fn all_else_is_left_to_the_kernel() -> Result<()> {
    let site = Site::new()?;
    // Twice: not known, and known.
    for (name, packet, verdict) in left_alone().into_iter().chain(left_alone()) {
        let got = site.run(&packet.frame())?;
        assert_eq!(
            (got.verdict, got.packet),
            (verdict, packet.frame()),
            "{name}: {packet:?}"
        );
    }
    let counters = site.datapath.counters()?;
    assert_eq!((counters.nat_refused, counters.nat_no_way), (0, 0));
    Ok(())
}

#[test]
fn truncated_frames_are_left_alone() -> Result<()> {
    let site = Site::new()?;
    for known in [false, true] {
        for proto in [TCP, UDP] {
            for to in frontends(TO_FAR) {
                let packet = asked(proto, 8000, to);
                let whole = packet.frame();
                // The kernel takes nothing shorter than an Ethernet header.
                for length in 14..whole.len() {
                    let cut = &whole[..length];
                    let got = site.run(cut)?;
                    assert_eq!(
                        (got.verdict, &*got.packet),
                        (PASS, cut),
                        "{packet:?} cut to {length}"
                    );
                }
                if known {
                    assert_eq!(site.run(&whole)?.verdict, TX);
                }
            }
        }
    }
    Ok(())
}

/// Whatever a frame holds, the program comes to an end with it, and its length stays.
#[test]
fn broken_frames_come_to_no_harm() -> Result<()> {
    let site = Site::new()?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap_or_default()
    };
    let kinds: Vec<Packet> = [TCP, UDP]
        .into_iter()
        .flat_map(|proto| frontends(TO_FAR).map(|to| asked(proto, 8000, to)))
        .collect();
    let mut sent = 0;
    for round in 0..6_000 {
        let mut frame = kinds[random(kinds.len())].frame();
        for _ in 0..=random(4) {
            let at = 12 + random(if round % 3 == 0 { frame.len() - 12 } else { 12 });
            frame[at] = u8::try_from(random(256))?;
        }
        frame.truncate(54 + random(frame.len() - 53));
        let got = site.run(&frame)?;
        assert!([DROP, PASS, TX].contains(&got.verdict), "{frame:x?}");
        assert_eq!(got.packet.len(), frame.len());
        if got.verdict != TX {
            assert_eq!(got.packet, frame);
        }
        sent += u32::from(got.verdict == TX);
    }
    // Enough of them were still good: else this tests nothing.
    assert!(sent > 50, "{sent}");
    Ok(())
}

#[test]
fn real_clients_are_served_by_the_driver_alone() -> Result<()> {
    let site = Site::new()?;
    let mut far = site.far()?;
    for ip in FAR {
        let (addr, name) = ((ip, TARGET).into(), "far".to_owned());
        far.tell(&Say::TcpServe {
            addr,
            name: name.clone(),
        })?;
        far.tell(&Say::UdpServe { addr, name })?;
    }
    let mut client = site.client()?;
    for addr in frontends(TO_FAR) {
        for ask in [
            Say::Tcp { addr, times: 20 },
            Say::UdpConnected { addr, times: 20 },
        ] {
            let answer = client.tell(&ask)?;
            assert_eq!(
                (answer.total(), answer.errors.len()),
                (20, 0),
                "{ask:?}: {answer:?}"
            );
            assert_eq!(answer.names, [("far".to_owned(), 20)].into());
            // The other node sees this one as its client.
            let seen = NODE[usize::from(addr.is_ipv6())].to_string();
            assert_eq!(answer.sources, [(seen, 20)].into());
        }
    }
    // There is no other program at the uplink, and the node's own stack knows none of these addresses and ports.
    let counters = site.datapath.counters()?;
    assert!(counters.nat_packets >= 4 * 20 * 5, "{counters:?}");
    assert!(counters.nat_reply_packets >= 4 * 20 * 4, "{counters:?}");
    Ok(())
}

#[test]
fn another_ones_program_is_never_replaced() -> Result<()> {
    let site = Site::new()?;
    let netns = NetNs::open(&site.node.netns)?;
    let attach = |uplinks: &Uplinks| netns.run(|| uplinks.attach_xdp(UPLINK));
    assert!(attach(&site.uplinks)??, "twice is as good as once");
    let other = TestNode::new(PROGRAM)?;
    let _datapath = other.open()?;
    let others = Uplinks::open(&other.bpffs)?;
    assert!(!attach(&others)??);
    site.uplinks.retain(&[])?;
    assert!(site.uplinks.attached().is_empty());
    assert!(attach(&others)??);
    assert!(!attach(&site.uplinks)??);
    Ok(())
}
