//! ICMP errors about packets of translated connections: the packet inside is translated back, and the error with it.

use std::net::IpAddr;

use anyhow::Result;

use skiff_tests_datapath::packet::{ACK, Packet, SYN, TCP, UDP, checksum, length, octets, packet};

use crate::{BALANCER, CLIENT, NEXT, NODE, POD, Site, to_pod, v4, v6};

/// A router between the node and its clients.
const ROUTER: [IpAddr; 2] = [v4(198, 9), v6(9)];

/// An error about a packet, of which so many bytes behind the IP header are quoted.
#[derive(Clone, Copy, Debug)]
struct Error {
    from: IpAddr,
    to: IpAddr,
    /// Type and code, of IPv4 and of IPv6.
    kind: [[u8; 2]; 2],
    about: Packet,
    quoted: usize,
}

const UNREACHABLE: [[u8; 2]; 2] = [[3, 3], [1, 4]];
const TOO_BIG: [[u8; 2]; 2] = [[3, 4], [2, 0]];
const EXPIRED: [[u8; 2]; 2] = [[11, 0], [3, 0]];

impl Error {
    fn frame(&self) -> Vec<u8> {
        let number = usize::from(self.from.is_ipv6());
        let header = if self.from.is_ipv4() {
            20 + self.about.options * 4
        } else {
            40
        };
        let mut icmp = self.kind[number].to_vec();
        icmp.extend([0, 0, 0, 0, 5, 0]);
        let about = self.about.frame();
        icmp.extend(about.iter().skip(14).take(header + self.quoted));
        let mut summed = Vec::new();
        if self.from.is_ipv6() {
            summed.extend(octets(self.from));
            summed.extend(octets(self.to));
            summed.extend([0, 58]);
            summed.extend(length(icmp.len()));
        }
        summed.extend(&icmp);
        icmp[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
        let mut frame = vec![0; 12];
        if self.from.is_ipv4() {
            frame.extend(0x0800_u16.to_be_bytes());
            let mut ip = vec![0x45, 0];
            ip.extend(length(20 + icmp.len()));
            ip.extend([0, 7, 0, 0, 64, 1, 0, 0]);
            ip.extend(octets(self.from));
            ip.extend(octets(self.to));
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(ip);
        } else {
            frame.extend(0x86dd_u16.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length(icmp.len()));
            frame.extend([58, 64]);
            frame.extend(octets(self.from));
            frame.extend(octets(self.to));
        }
        frame.extend(icmp);
        frame
    }
}

/// What clients ask for in these tests, with and without a backend: all known to the site.
fn asked(site: &Site) -> Result<Vec<Packet>> {
    let mut all = Vec::new();
    for number in [0, 1] {
        for proto in [TCP, UDP] {
            for port in [80, 81] {
                let from = 7000 + u16::try_from(all.len())?;
                all.push(packet(
                    proto,
                    (CLIENT[number], from),
                    (BALANCER[number], port),
                ));
            }
        }
        let udp = packet(UDP, (CLIENT[number], 7100), (BALANCER[number], 80));
        all.push(Packet {
            unsummed: number == 0,
            ..udp
        });
    }
    for packet in &all {
        site.run("uplink_in", &packet.frame())?;
    }
    Ok(all)
}

/// As [`asked`] goes on.
fn translated(asked: Packet) -> Packet {
    let number = usize::from(asked.to.is_ipv6());
    match asked.to.port() {
        81 => Packet {
            to: (NODE[number], 0).into(),
            ..asked
        },
        _ => to_pod(asked),
    }
}

#[test]
fn a_client_hears_what_became_of_its_packets() -> Result<()> {
    let site = Site::new()?;
    for asked in asked(&site)? {
        let about = translated(asked);
        for (kind, from) in [
            (UNREACHABLE, about.to.ip()),
            (TOO_BIG, NODE[0]),
            (EXPIRED, NODE[1]),
        ] {
            if from.is_ipv4() != asked.to.is_ipv4() {
                continue;
            }
            for (quoted, options) in [(8, 0), (8, 3), (20, 0), (200, 10)] {
                if options > 0 && from.is_ipv6() {
                    continue;
                }
                let about = Packet { options, ..about };
                let error = Error {
                    from,
                    to: asked.from.ip(),
                    kind,
                    about,
                    quoted,
                };
                let expected = Error {
                    from: asked.to.ip(),
                    about: Packet { options, ..asked },
                    ..error
                };
                let got = site.run("uplink_out", &error.frame())?;
                assert_eq!(got, (NEXT, expected.frame()), "{error:?}");
                // Nobody outside saw that packet.
                let frame = Error {
                    from: ROUTER[usize::from(from.is_ipv6())],
                    ..error
                }
                .frame();
                assert_eq!(site.run("uplink_in", &frame)?, (NEXT, frame), "{error:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_hears_what_became_of_its_answers() -> Result<()> {
    let site = Site::new()?;
    let known = asked(&site)?.into_iter();
    for asked in known.filter(|asked| asked.to.port() == 80) {
        let number = usize::from(asked.to.is_ipv6());
        let answer = Packet {
            from: to_pod(asked).to,
            to: asked.from,
            flags: SYN | ACK,
            payload: b"an answer",
            ..asked
        };
        for kind in [UNREACHABLE, TOO_BIG, EXPIRED] {
            for (from, quoted) in [(ROUTER[number], 8), (asked.from.ip(), 200)] {
                let error = Error {
                    from,
                    to: asked.to.ip(),
                    kind,
                    about: Packet {
                        from: asked.to,
                        ..answer
                    },
                    quoted,
                };
                let expected = Error {
                    to: answer.from.ip(),
                    about: answer,
                    ..error
                };
                let got = site.run("uplink_in", &error.frame())?;
                assert_eq!(got, (NEXT, expected.frame()), "{error:?}");
            }
        }
    }
    Ok(())
}

/// What is about nothing known, or cut off anywhere, goes on as it is.
#[test]
fn other_errors_are_left_alone() -> Result<()> {
    let site = Site::new()?;
    for asked in asked(&site)? {
        let number = usize::from(asked.to.is_ipv6());
        let error = Error {
            from: NODE[number],
            to: asked.from.ip(),
            kind: UNREACHABLE,
            about: translated(asked),
            quoted: 8,
        };
        let whole = error.frame();
        let another_port = Packet {
            from: (CLIENT[number], 9).into(),
            ..error.about
        };
        let echo = Error {
            kind: [[8, 0], [128, 0]],
            ..error
        };
        let stranger = Error {
            to: POD[number],
            ..error
        };
        let unknown = Error {
            about: another_port,
            ..error
        };
        let header = if number == 0 { 34 } else { 54 };
        let cut = (header..whole.len()).map(|length| whole[..length].to_vec());
        let others = [echo, stranger, unknown].map(|error| error.frame());
        for frame in others.into_iter().chain(cut) {
            for name in ["uplink_in", "uplink_out", "pod_egress"] {
                let got = site.run(name, &frame)?;
                assert_eq!(got, (NEXT, frame.clone()), "{name}: {error:?}");
            }
        }
        assert_ne!(site.run("uplink_out", &whole)?.1, whole);
    }
    Ok(())
}
