//! What the programs at links make of single packets, whole and broken: {name, packet in, verdict, packet out}.

mod errors;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use skiff_ebpf_loader::{
    Backend, Datapath, DesiredTables, Frontend, FrontendSpec, IpFamily, NodeSettings, Protocol,
    SetId, test_run,
};
use skiff_tests_datapath::{
    TestNode,
    packet::{ACK, Packet, RST, SYN, TCP, UDP, packet},
    program,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// Goes on: to the next program, and to the node's stack.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

const NODE: [IpAddr; 2] = [v4(192, 1), v6(1)];
const CLIENT: [IpAddr; 2] = [v4(198, 2), v6(2)];
const BALANCER: [IpAddr; 2] = [v4(203, 3), v6(3)];
const POD: [IpAddr; 2] = [v4(10, 4), v6(4)];

const fn v4(first: u8, last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(first, 51, 100, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))
}

/// A node with the Services of these tests: each frontend leads to one pod, on port 8080, with 80 and 30080 for pods that are
/// there, 81 and 30081 without, 82 with `externalTrafficPolicy: Local`
/// and none here, 83 with that and none at all.
struct Site {
    node: TestNode,
    _datapath: Datapath,
}

impl Site {
    fn new() -> Result<Self> {
        let node = TestNode::new(PROGRAM)?;
        let mut datapath = node.open()?;
        datapath.set_node(&NodeSettings {
            addresses: NODE.to_vec(),
            ..node.settings()?
        })?;
        let mut tables = DesiredTables::default();
        let inside = SetId::of(&["inside"]);
        tables.sets.insert(inside, Vec::new());
        let elsewhere = SetId::of(&["elsewhere"]);
        let members = POD.map(|pod| Backend::new(pod, 8080));
        tables.sets.insert(elsewhere, members.into());
        for (number, family) in [(0, IpFamily::V4), (1, IpFamily::V6)] {
            for (port, pods, inside) in [
                (80_u16, 1, inside),
                (81, 0, inside),
                (82, 0, elsewhere),
                (83, 0, inside),
            ] {
                let set = SetId::of_outside(&[&port.to_string(), &number.to_string()]);
                let pod = Backend {
                    local: true,
                    ..Backend::new(POD[number], 8080)
                };
                tables.sets.insert(set, vec![pod; pods]);
                let spec = FrontendSpec {
                    outside: Some(set),
                    local_only: port > 81,
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
                    let port = port + 30_000;
                    let at = Frontend::NodePort {
                        family,
                        port,
                        protocol,
                    };
                    tables.frontends.insert(at, spec.clone());
                }
            }
        }
        program(&mut datapath, &tables)?;
        Ok(Self {
            node,
            _datapath: datapath,
        })
    }

    fn run(&self, name: &str, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let run = test_run(&self.node.bpffs, name, frame, 1)?;
        Ok((run.verdict, run.packet))
    }
}

/// Everything that a Service takes.
fn good() -> Vec<Packet> {
    let mut all = Vec::new();
    for number in [0, 1] {
        for proto in [TCP, UDP] {
            for to in [(BALANCER[number], 80), (NODE[number], 30_080)] {
                // Each from a port of its own.
                let port = 4000 + u16::try_from(all.len()).unwrap_or_default();
                all.push(packet(proto, (CLIENT[number], port), to));
            }
        }
    }
    all
}

/// The packet as it is to go on to the pod.
fn to_pod(packet: Packet) -> Packet {
    let number = usize::from(packet.to.is_ipv6());
    Packet {
        to: (POD[number], 8080).into(),
        ..packet
    }
}

/// Name, packet in, verdict, packet out.
type Case = (&'static str, Packet, u32, Packet);

/// What is translated.
fn translated() -> Vec<Case> {
    let udp = packet(UDP, (CLIENT[0], 5000), (BALANCER[0], 80));
    let tcp = packet(TCP, (CLIENT[0], 5000), (BALANCER[0], 80));
    let unsummed = Packet {
        unsummed: true,
        ..udp
    };
    let options = Packet { options: 3, ..tcp };
    let refused = Packet {
        to: (BALANCER[0], 81).into(),
        ..tcp
    };
    let nowhere = Packet {
        to: (BALANCER[0], 83).into(),
        ..udp
    };
    let refused6 = packet(UDP, (CLIENT[1], 5000), (BALANCER[1], 81));
    let first = Packet {
        fragment: 0x2000,
        from: (CLIENT[0], 5002).into(),
        ..udp
    };
    let rest = Packet {
        fragment: 3,
        ..first
    };
    vec![
        ("without a checksum", unsummed, NEXT, to_pod(unsummed)),
        ("IPv4 options", options, NEXT, to_pod(options)),
        (
            "no backend",
            refused,
            NEXT,
            Packet {
                to: (NODE[0], 0).into(),
                ..refused
            },
        ),
        (
            "no backend, IPv6",
            refused6,
            NEXT,
            Packet {
                to: (NODE[1], 0).into(),
                ..refused6
            },
        ),
        (
            "no backend anywhere",
            nowhere,
            NEXT,
            Packet {
                to: (NODE[0], 0).into(),
                ..nowhere
            },
        ),
        ("first fragment", first, NEXT, to_pod(first)),
        ("the rest", rest, NEXT, to_pod(rest)),
    ]
}

/// What is left alone or dropped.
fn not_translated() -> Vec<Case> {
    let udp = packet(UDP, (CLIENT[0], 5000), (BALANCER[0], 80));
    let tcp = packet(TCP, (CLIENT[0], 5000), (BALANCER[0], 80));
    let other = Packet {
        to: (BALANCER[0], 99).into(),
        ..tcp
    };
    let foreign = Packet {
        to: (CLIENT[0], 30_080).into(),
        ..tcp
    };
    let reset = Packet {
        flags: RST,
        from: (CLIENT[0], 5001).into(),
        ..tcp
    };
    let closed_port = Packet {
        to: (NODE[0], 30_081).into(),
        ..tcp
    };
    let no_local = Packet {
        to: (BALANCER[0], 82).into(),
        ..tcp
    };
    let closed_everywhere = Packet {
        to: (NODE[0], 30_083).into(),
        ..tcp
    };
    let stray = Packet {
        fragment: 3,
        from: (POD[0], 1).into(),
        ..udp
    };
    vec![
        ("no such port", other, NEXT, other),
        ("NodePort of another host", foreign, NEXT, foreign),
        ("RST of nobody", reset, NEXT, reset),
        ("NodePort without backend", closed_port, NEXT, closed_port),
        ("no local backend", no_local, DROP, no_local),
        (
            "NodePort, Local, without any backend",
            closed_everywhere,
            NEXT,
            closed_everywhere,
        ),
        ("a fragment of nothing", stray, NEXT, stray),
    ]
}

#[test]
fn packets_are_translated_as_the_table_says() -> Result<()> {
    let site = Site::new()?;
    let mut cases = translated();
    cases.extend(not_translated());
    cases.extend(
        good()
            .into_iter()
            .map(|packet| ("good", packet, NEXT, to_pod(packet))),
    );
    // Known by now.
    cases.extend(
        good()
            .into_iter()
            .map(|packet| ("good again", packet, NEXT, to_pod(packet))),
    );
    for (name, packet, verdict, out) in cases {
        let got = site.run("uplink_in", &packet.frame())?;
        assert_eq!(got, (verdict, out.frame()), "{name}: {packet:?}");
    }
    for packet in good() {
        let asked = packet;
        let answer = Packet {
            from: to_pod(asked).to,
            to: asked.from,
            flags: SYN | ACK,
            payload: b"an answer",
            ..asked
        };
        let expected = Packet {
            from: asked.to,
            ..answer
        };
        let got = site.run("uplink_out", &answer.frame())?;
        assert_eq!(got, (NEXT, expected.frame()), "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_frame_for_another_host_is_left_alone() -> Result<()> {
    let site = Site::new()?;
    let mut frame = good()[0].frame();
    frame[5] = 9;
    assert_eq!(site.run("uplink_in", &frame)?, (NEXT, frame));
    Ok(())
}

/// Cut off anywhere, a packet that is for a Service goes on as it is, whether its flow is known or not.
#[test]
fn truncated_packets_are_never_translated() -> Result<()> {
    let site = Site::new()?;
    let fragment = Packet {
        fragment: 0x2000,
        ..good()[2]
    };
    for known in [false, true] {
        for packet in good().into_iter().chain([
            Packet {
                options: 5,
                ..good()[0]
            },
            fragment,
        ]) {
            let whole = packet.frame();
            // The kernel itself runs no program on less than an IP header.
            let header = 14 + if packet.from.is_ipv4() { 20 } else { 40 };
            for length in header..whole.len() {
                let cut = &whole[..length];
                for name in ["uplink_in", "uplink_out", "pod_egress"] {
                    let got = site.run(name, cut)?;
                    assert_eq!(
                        got,
                        (NEXT, cut.to_vec()),
                        "{name}: {packet:?} cut to {length}"
                    );
                }
            }
            if known {
                assert_ne!(site.run("uplink_in", &whole)?.1, whole);
            }
        }
    }
    Ok(())
}

/// Whatever a frame holds, the programs come to an end with it, and its length stays.
#[test]
fn broken_packets_come_to_no_harm() -> Result<()> {
    let site = Site::new()?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap_or_default()
    };
    let kinds = good();
    for round in 0..6_000 {
        let mut frame = kinds[random(kinds.len())].frame();
        // Mostly the headers.
        for _ in 0..=random(4) {
            let at = 12 + random(if round % 3 == 0 { frame.len() - 12 } else { 12 });
            frame[at] = u8::try_from(random(256))?;
        }
        frame.truncate(54 + random(frame.len() - 53));
        for name in ["uplink_in", "uplink_out", "pod_egress"] {
            let (verdict, out) = site.run(name, &frame)?;
            assert!([NEXT, DROP].contains(&verdict), "{verdict}: {frame:x?}");
            assert_eq!(out.len(), frame.len());
            // What lies before the IP header is not the programs'.
            assert_eq!(out[..14], frame[..14]);
        }
    }
    Ok(())
}
