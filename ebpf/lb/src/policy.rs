//! Whether a packet of a pod with policies may pass.
//!
//! The first packet of a connection is judged by the rules; what follows, in either direction, passes because it belongs to a
//! connection that was allowed. A change of policies is for new connections. Traffic without ports (ICMP and others) needs a
//! rule without ports.

use skiff_ebpf_common::{
    Addr, CONN_ECHO_SECONDS, CONN_SECONDS, DIRECTION_INGRESS, IDENTITY_ANY,
    IDENTITY_ISOLATED_EGRESS, IDENTITY_ISOLATED_INGRESS, IDENTITY_NONE, PROTO_TCP, PolicyConn,
    PolicyConnKey, PolicyIds, PolicyRule,
};

use crate::REFRESH_NS;

/// IPPROTO_ICMP.
pub const PROTO_ICMP: u8 = 1;
/// IPPROTO_ICMPV6.
pub const PROTO_ICMPV6: u8 = 58;

/// Access to the maps of policies. Each read returns a copy.
pub trait PolicyTables {
    /// Which of the two identities holds.
    fn state(&self) -> u32;
    /// The identities of a pod's address, if a policy can tell it from others.
    fn ids(&self, addr: &Addr) -> Option<PolicyIds>;
    /// The identities of the longest named prefix that an address is in.
    fn cidr_ids(&self, addr: &Addr) -> Option<PolicyIds>;
    /// Whether a rule allows it; all of `rule` counts.
    fn allows(&self, rule: &PolicyRule) -> bool;
    /// A connection that was allowed.
    fn conn(&self, key: &PolicyConnKey) -> Option<PolicyConn>;
    /// Remembers one.
    fn remember(&self, key: &PolicyConnKey, conn: &PolicyConn);
    /// Monotonic nanoseconds.
    fn now(&self) -> u64;
}

/// What a packet is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It asks for a new one: never part of one that is known.
    Opens,
    /// It belongs to one that is known, or is the first of a new one.
    Carries,
    /// It is the answer to an echo, or an ICMP error about a connection: never the first of one.
    Reports,
}

/// A packet to or from a pod.
#[derive(Clone, Copy, Debug)]
pub struct PolicyPacket {
    /// The pod's own address of that family. The packet may have another (multicast, link-local).
    pub subject: Addr,
    /// The address at the other end.
    pub peer: Addr,
    /// IP protocol.
    pub proto: u8,
    /// The port it goes to, network byte order; 0 if it has none.
    pub port: u16,
    /// Its connection.
    pub conn: PolicyConnKey,
    /// `DIRECTION_*`.
    pub direction: u8,
    /// What it is to its connection.
    pub part: Part,
    /// A process of the pod's own node sends it.
    pub from_node: bool,
    /// The number of the node's end of the pod's veth pair.
    pub ifindex: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may pass.
    Pass,
    /// No rule allows it.
    Deny,
    /// The pod's policies are not known yet.
    Unknown,
}

/// Judges a packet of a pod with policies.
#[inline(always)]
pub fn judge<T: PolicyTables>(tables: &T, packet: &PolicyPacket) -> Judgement {
    let now = tables.now();
    if packet.part != Part::Opens
        && let Some(conn) = tables.conn(&packet.conn)
        && conn.ifindex == packet.ifindex
        && !has_ended(packet.conn.proto, now, conn.last_seen)
    {
        if now.saturating_sub(conn.last_seen) > REFRESH_NS {
            remember(tables, packet, now);
        }
        return Judgement::Pass;
    }
    let judgement = judge_new(tables, packet);
    if judgement == Judgement::Pass && packet.part != Part::Reports {
        remember(tables, packet, now);
    }
    judgement
}

#[inline(always)]
fn judge_new<T: PolicyTables>(tables: &T, packet: &PolicyPacket) -> Judgement {
    let ingress = packet.direction == DIRECTION_INGRESS;
    // A pod always reaches itself, and its node always reaches it.
    if packet.subject == packet.peer || (ingress && packet.from_node) {
        return Judgement::Pass;
    }
    let Some(ids) = tables.ids(&packet.subject) else {
        return Judgement::Unknown;
    };
    let state = tables.state();
    let subject = in_force(ids, state);
    let isolated = if ingress {
        IDENTITY_ISOLATED_INGRESS
    } else {
        IDENTITY_ISOLATED_EGRESS
    };
    if subject & isolated == 0 {
        return Judgement::Pass;
    }
    let peer = identity(tables, &packet.peer, state);
    let mut rule = PolicyRule {
        subject,
        peer,
        direction: packet.direction,
        proto: packet.proto,
        port: packet.port,
    };
    if tables.allows(&rule) {
        return Judgement::Pass;
    }
    rule.peer = IDENTITY_ANY;
    if tables.allows(&rule) {
        Judgement::Pass
    } else {
        Judgement::Deny
    }
}

/// The identity of an address in a state of the tables.
#[inline(always)]
pub fn identity<T: PolicyTables>(tables: &T, addr: &Addr, state: u32) -> u32 {
    match tables.ids(addr) {
        Some(ids) => in_force(ids, state),
        None => match tables.cidr_ids(addr) {
            Some(ids) => in_force(ids, state),
            None => IDENTITY_NONE,
        },
    }
}

#[inline(always)]
fn in_force(ids: PolicyIds, state: u32) -> u32 {
    let [even, odd] = ids.ids;
    if state & 1 == 0 { even } else { odd }
}

#[inline(always)]
fn remember<T: PolicyTables>(tables: &T, packet: &PolicyPacket, now: u64) {
    let conn = PolicyConn {
        last_seen: now,
        ifindex: packet.ifindex,
        pad: 0,
    };
    tables.remember(&packet.conn, &conn);
}

/// A TCP connection is forgotten when there is no room for it: it may be silent for days.
#[inline(always)]
fn has_ended(proto: u8, now: u64, last_seen: u64) -> bool {
    const SECOND: u64 = 1_000_000_000;
    let seconds = match proto {
        PROTO_TCP => return false,
        PROTO_ICMP | PROTO_ICMPV6 => CONN_ECHO_SECONDS,
        _ => CONN_SECONDS,
    };
    now.saturating_sub(last_seen) > seconds * SECOND
}
