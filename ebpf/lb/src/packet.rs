//! What a frame says: the connection it belongs to. Reads nothing that it has not checked to be there.

use skiff_ebpf_common::{Addr, FlowKey, FragmentKey, PROTO_TCP, PROTO_UDP};

/// The length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// The Ethernet type of IPv4, as it lies in memory.
pub const IPV4: u16 = 0x0800_u16.to_be();
/// The Ethernet type of IPv6, as it lies in memory.
pub const IPV6: u16 = 0x86dd_u16.to_be();

/// TCP's FIN.
pub const TCP_FIN: u8 = 0x01;
/// TCP's SYN.
pub const TCP_SYN: u8 = 0x02;
/// TCP's RST.
pub const TCP_RST: u8 = 0x04;
/// TCP's ACK.
pub const TCP_ACK: u8 = 0x10;

const IPV6_FRAGMENT: u8 = 44;
/// More fragments follow.
const MORE: u16 = 0x2000;
/// Where a fragment belongs, in units of eight bytes.
const PLACE: u16 = 0x1fff;

/// A frame, from its Ethernet header on. All reads are in memory order.
pub trait Packet {
    /// 32-bit words from `offset` on, if the frame has them at hand.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
    /// A 16-bit word.
    fn half(&self, offset: usize) -> Option<u16>;
    /// The length of the frame, in bytes.
    fn length(&self) -> usize;
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that can belong to a Service: another protocol, or broken.
    Other,
    /// Not decided before so many bytes are at hand. The frame has them.
    More(usize),
    /// A packet of a connection.
    Packet(Headers),
}

/// A packet of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The connection. Of a fragment that is not the first, without ports.
    pub key: FlowKey,
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Where the header of the transport begins.
    pub l4: usize,
    /// TCP's flags.
    pub tcp: u8,
    /// The datagram's identification, and which part of it this is.
    pub part: Part,
    /// Its identification.
    pub id: u32,
    /// Hops left.
    pub ttl: u8,
}

/// Which part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// Another fragment.
    Later,
}

impl Headers {
    /// The datagram that it is a fragment of.
    #[inline(always)]
    #[must_use]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            src: self.key.src,
            dst: self.key.dst,
            id: self.id,
            proto: self.key.proto,
            pad: [0; 3],
        }
    }
}

/// Reads the headers.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Seen {
    match packet.half(ETHERNET - 2) {
        Some(IPV4) => parse_v4(packet),
        Some(IPV6) => parse_v6(packet),
        Some(_) => Seen::Other,
        None => more(packet, ETHERNET + 20),
    }
}

/// Asks for more of the frame, or gives up on it if there is no more.
#[inline(always)]
fn more<P: Packet>(packet: &P, needed: usize) -> Seen {
    if packet.length() >= needed {
        Seen::More(needed)
    } else {
        Seen::Other
    }
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P) -> Seen {
    let Some([start, place, kind, src, dst]) = packet.words::<5>(ETHERNET) else {
        return more(packet, ETHERNET + 20);
    };
    let [version_length, _, high, low] = start.to_ne_bytes();
    let header = usize::from(version_length & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([high, low]));
    if version_length >> 4 != 4
        || header < 20
        || total < header
        || ETHERNET + total > packet.length()
    {
        return Seen::Other;
    }
    let [id_high, id_low, place_high, place_low] = place.to_ne_bytes();
    let place = u16::from_be_bytes([place_high, place_low]);
    let [ttl, proto, _, _] = kind.to_ne_bytes();
    let part = match (place & PLACE, place & MORE) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    let headers = Headers {
        key: FlowKey {
            src: Addr::v4(src),
            dst: Addr::v4(dst),
            sport: 0,
            dport: 0,
            proto,
            pad: [0; 3],
        },
        is_v4: true,
        l4: ETHERNET + header,
        tcp: 0,
        part,
        id: u32::from(u16::from_ne_bytes([id_high, id_low])),
        ttl,
    };
    transport(packet, headers, total - header)
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P) -> Seen {
    let Some([start, kind, s1, s2, s3, s4, d1, d2, d3, d4]) = packet.words::<10>(ETHERNET) else {
        return more(packet, ETHERNET + 40);
    };
    let [version, ..] = start.to_ne_bytes();
    let [high, low, next, ttl] = kind.to_ne_bytes();
    let payload = usize::from(u16::from_be_bytes([high, low]));
    if version >> 4 != 6 || ETHERNET + 40 + payload > packet.length() {
        return Seen::Other;
    }
    let mut headers = Headers {
        key: FlowKey {
            src: Addr([s1, s2, s3, s4]),
            dst: Addr([d1, d2, d3, d4]),
            sport: 0,
            dport: 0,
            proto: next,
            pad: [0; 3],
        },
        is_v4: false,
        l4: ETHERNET + 40,
        tcp: 0,
        part: Part::Whole,
        id: 0,
        ttl,
    };
    if next != IPV6_FRAGMENT {
        return transport(packet, headers, payload);
    }
    let Some([kind, id]) = packet.words::<2>(ETHERNET + 40) else {
        return more(packet, ETHERNET + 48);
    };
    if payload < 8 {
        return Seen::Other;
    }
    let [next, _, high, low] = kind.to_ne_bytes();
    let place = u16::from_be_bytes([high, low]);
    headers.key.proto = next;
    headers.l4 = ETHERNET + 48;
    headers.id = id;
    headers.part = match (place >> 3, place & 1) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    transport(packet, headers, payload - 8)
}

/// Reads the ports. `payload` is what the IP header says that there is of the transport.
#[inline(always)]
fn transport<P: Packet>(packet: &P, mut headers: Headers, payload: usize) -> Seen {
    let proto = headers.key.proto;
    if proto != PROTO_TCP && proto != PROTO_UDP {
        return Seen::Other;
    }
    if headers.part == Part::Later {
        return Seen::Packet(headers);
    }
    let ports = if proto == PROTO_TCP {
        if payload < 20 {
            return Seen::Other;
        }
        let Some([ports, _, _, flags, _]) = packet.words::<5>(headers.l4) else {
            return more(packet, headers.l4 + 20);
        };
        let [offset, flags, ..] = flags.to_ne_bytes();
        let header = usize::from(offset >> 4) * 4;
        if header < 20 || (header > payload && headers.part == Part::Whole) {
            return Seen::Other;
        }
        headers.tcp = flags;
        ports
    } else {
        if payload < 8 {
            return Seen::Other;
        }
        let Some([ports, lengths]) = packet.words::<2>(headers.l4) else {
            return more(packet, headers.l4 + 8);
        };
        let [high, low, ..] = lengths.to_ne_bytes();
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 8 || (length > payload && headers.part == Part::Whole) {
            return Seen::Other;
        }
        ports
    };
    let [s1, s2, d1, d2] = ports.to_ne_bytes();
    headers.key.sport = u16::from_ne_bytes([s1, s2]);
    headers.key.dport = u16::from_ne_bytes([d1, d2]);
    Seen::Packet(headers)
}
