//! ICMP errors about packets of translated connections: what such an error says, and how it is translated. Pure.
//!
//! An error carries the packet that it is about, as the sender of the error saw it. That packet, turned around, belongs to the
//! other direction of its connection: the flow of that direction says who is to get the error, and what the packet looked like
//! to them. So a client (or a backend) hears of a port that nobody has, and finds out how large its packets may be.
//!
//! Read are errors as hosts and routers send them: an IPv4 header without options, or an IPv6 header and nothing between; inside
//! of them a whole packet's beginning, or a first fragment's. The error must go to whoever sent that packet.

use skiff_ebpf_common::{Addr, FLOW_REMOTE, FLOW_REPLY, Flow, FlowKey, PROTO_TCP, PROTO_UDP};

use crate::{
    packet::{ETHERNET, IPV4, IPV6, Packet},
    sum,
};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Where an error's own header begins, of IPv4.
pub const ERROR_V4: usize = ETHERNET + 20;
/// The same of IPv6.
pub const ERROR_V6: usize = ETHERNET + 40;
const ERROR_HEADER: usize = 8;
/// Ports, and of UDP the checksum.
const QUOTED: usize = 8;
/// So much is enough for all that is read and written: IPv6 twice, and TCP as far as its checksum.
pub const AT_HAND: usize = ERROR_V6 + ERROR_HEADER + 40 + 18;

/// An error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// The direction of the connection that the error is a packet of: against that of the packet inside.
    pub key: FlowKey,
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Where the ports inside are.
    pub ports: usize,
}

/// Whether the packet is ICMP at all, which few are.
#[inline(always)]
pub fn is_icmp<P: Packet>(packet: &P) -> bool {
    let proto = |place: usize, byte: usize| {
        let half = packet.half(place).unwrap_or_default();
        let [first, second] = half.to_ne_bytes();
        if byte == 0 { first } else { second }
    };
    match packet.half(ETHERNET - 2) {
        Some(IPV4) => proto(ETHERNET + 8, 1) == ICMP,
        Some(IPV6) => proto(ETHERNET + 6, 0) == ICMPV6,
        _ => false,
    }
}

/// Reads an error; none if it is something else.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<IcmpError> {
    match packet.half(ETHERNET - 2)? {
        IPV4 => parse_v4(packet),
        IPV6 => parse_v6(packet),
        _ => None,
    }
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P) -> Option<IcmpError> {
    let [start, place, kind, _, to] = packet.words::<5>(ETHERNET)?;
    let [version_length, _, high, low] = start.to_ne_bytes();
    let total = usize::from(u16::from_be_bytes([high, low]));
    let [_, _, place_high, place_low] = place.to_ne_bytes();
    let [_, proto, ..] = kind.to_ne_bytes();
    let is_whole = place_high & 0x3f == 0 && place_low == 0;
    if version_length != 0x45 || proto != ICMP || !is_whole || ETHERNET + total > packet.length() {
        return None;
    }
    let [error] = packet.words::<1>(ERROR_V4)?;
    let [kind, ..] = error.to_ne_bytes();
    // Unreachable, time exceeded, parameter problem.
    if !matches!(kind, 3 | 11 | 12) {
        return None;
    }
    let inner = ERROR_V4 + ERROR_HEADER;
    let [start, place, kind, src, dst] = packet.words::<5>(inner)?;
    let [version_length, ..] = start.to_ne_bytes();
    let [_, _, place_high, place_low] = place.to_ne_bytes();
    let [_, proto, ..] = kind.to_ne_bytes();
    let header = usize::from(version_length & 0xf) * 4;
    let is_first = place_high & 0x1f == 0 && place_low == 0;
    if version_length >> 4 != 4
        || header < 20
        || !is_first
        || src != to
        || total < 20 + ERROR_HEADER + header + QUOTED
    {
        return None;
    }
    let (src, dst) = (Addr::v4(src), Addr::v4(dst));
    about(packet, (src, dst, proto), true, inner + header)
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P) -> Option<IcmpError> {
    let [_, kind, .., t1, t2, t3, t4] = packet.words::<10>(ETHERNET)?;
    let [high, low, next, _] = kind.to_ne_bytes();
    let payload = usize::from(u16::from_be_bytes([high, low]));
    let inner = ERROR_V6 + ERROR_HEADER;
    if next != ICMPV6
        || payload < ERROR_HEADER + 40 + QUOTED
        || ETHERNET + 40 + payload > packet.length()
    {
        return None;
    }
    let [error] = packet.words::<1>(ERROR_V6)?;
    let [kind, ..] = error.to_ne_bytes();
    // Unreachable, too big, time exceeded, parameter problem.
    if !matches!(kind, 1..=4) {
        return None;
    }
    let [start, kind, s1, s2, s3, s4, d1, d2, d3, d4] = packet.words::<10>(inner)?;
    let [version, ..] = start.to_ne_bytes();
    let [_, _, proto, _] = kind.to_ne_bytes();
    if version >> 4 != 6 || [s1, s2, s3, s4] != [t1, t2, t3, t4] {
        return None;
    }
    let (src, dst) = (Addr([s1, s2, s3, s4]), Addr([d1, d2, d3, d4]));
    about(packet, (src, dst, proto), false, inner + 40)
}

#[inline(always)]
fn about<P: Packet>(
    packet: &P,
    (src, dst, proto): (Addr, Addr, u8),
    is_v4: bool,
    ports: usize,
) -> Option<IcmpError> {
    if proto != PROTO_TCP && proto != PROTO_UDP {
        return None;
    }
    let [both, _] = packet.words::<2>(ports)?;
    let [s1, s2, d1, d2] = both.to_ne_bytes();
    Some(IcmpError {
        key: FlowKey {
            src: dst,
            dst: src,
            sport: u16::from_ne_bytes([d1, d2]),
            dport: u16::from_ne_bytes([s1, s2]),
            proto,
            pad: [0; 3],
        },
        is_v4,
        ports,
    })
}

/// Who an error comes from that is a packet of `flow` and came from `sender`.
///
/// A backend is not to be seen by its client, and no router knows a client's way to the routers behind this node: what comes
/// from there comes from the Service. A client's routers stay what they are, unless the backend must answer by this node.
#[inline(always)]
#[must_use]
pub fn sender(flow: &Flow, sender: Addr) -> Addr {
    if flow.flags & (FLOW_REPLY | FLOW_REMOTE) == 0 {
        sender
    } else {
        flow.src
    }
}

/// A checksum of UDP or TCP that was quoted, after the packet inside was translated back. UDP without one stays without.
///
/// Each address and port inside is the counterpart of one of the flow's, so they change a sum as those of its packets do.
#[inline(always)]
#[must_use]
pub fn quoted_checksum(checksum: u16, flow: &Flow, proto: u8) -> u16 {
    if proto == PROTO_UDP && checksum == 0 {
        return 0;
    }
    let delta = u64::from(flow.addr_delta) + u64::from(flow.port_delta);
    let changed = sum::update(checksum, sum::fold(delta));
    // Of UDP zero means none.
    if proto == PROTO_UDP && changed == 0 {
        0xffff
    } else {
        changed
    }
}
