//! Connections from outside: which backend they get, and what becomes of their packets. Pure.

use skiff_ebpf_common::{
    Addr, BACKEND_LOCAL, Backend, FLOW_FIN, FLOW_OPEN, FLOW_REFUSED, FLOW_REMOTE, FLOW_REPLY,
    FLOW_RESET, Flow, FlowKey, NextHop, PROTO_TCP, PROTO_UDP, SCOPE_NODE_PORT, SERVICE_LOCAL_ONLY,
    SNAT_FIRST, SNAT_PORTS, Service, SetWord, Slot,
};

use crate::{
    Pick, Request, Sticky, Tables, find_service, member,
    packet::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    pick, remembered, sources, sum,
};

/// A flow's times are written once in so many nanoseconds.
const REFRESH_NS: u64 = 1_000_000_000;

/// What a flow's entry must be told of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Its new state.
    pub state: u8,
    /// Whether that or the time has to be written.
    pub write: bool,
}

/// What a packet changes in the entry of its flow.
#[inline(always)]
pub fn touch(flow: &Flow, tcp: u8, now: u64) -> Touch {
    let mut state = flow.state;
    if tcp & TCP_SYN == 0 {
        state |= FLOW_OPEN;
    }
    if tcp & TCP_FIN != 0 {
        state |= FLOW_FIN;
    }
    if tcp & TCP_RST != 0 {
        state |= FLOW_RESET;
    }
    Touch {
        state,
        write: state != flow.state || now.wrapping_sub(flow.last_seen) >= REFRESH_NS,
    }
}

/// Whether a packet of a client still goes where its flow went. An open TCP connection does until it ends; a datagram, and a
/// packet that opens a connection, only while the backend is a member of its set.
#[inline(always)]
pub fn is_current<T: Tables>(tables: &T, flow: &Flow, proto: u8, tcp: u8) -> bool {
    let opens = proto == PROTO_TCP && tcp & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if opens && flow.state & (FLOW_FIN | FLOW_RESET) != 0 {
        // The client uses its port again.
        return false;
    }
    if flow.flags & FLOW_REFUSED != 0 {
        return false;
    }
    if !opens && proto != PROTO_UDP {
        return true;
    }
    member(tables, flow.set, flow.backend, flow.generation).is_some()
}

/// What becomes of a packet whose flow is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is for no Service, or for one that is closed to the outside: left to the node.
    Pass,
    /// This node has no backend, and those of others must not be used: dropped, so that a balancer in front tries another
    /// node.
    NoLocal,
    /// The client is none of those that the Service is for: dropped.
    Stranger,
    /// No backend: refused by a port of the node where nothing listens.
    Refuse(u32),
    /// What was read never fitted together: dropped.
    Inconsistent,
    /// To this backend.
    Backend(Slot, Backend),
}

impl Choice {
    /// Whether it is a backend on another node.
    #[inline(always)]
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Backend(_, backend) if backend.flags & BACKEND_LOCAL == 0)
    }
}

/// Chooses a backend for a packet from outside. `key` has the client first.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, key: &FlowKey, tcp: u8) -> Choice {
    let request = Request {
        addr: key.dst,
        port: key.dport,
        proto: key.proto,
        netns: 0,
        socket: 0,
    };
    let Some(service) = find_service(tables, &request) else {
        return Choice::Pass;
    };
    let set = service.outside;
    if set == 0 || tcp & TCP_RST != 0 {
        return Choice::Pass;
    }
    let hash = hash(key);
    let picked = if !sources::serves(tables, &service, &key.src) {
        if has_members(tables, set) {
            return Choice::Stranger;
        }
        Pick::Empty
    } else if service.affinity_seconds == 0 {
        pick(tables, set, || hash)
    } else {
        let client = client_of(&key.src);
        remembered(
            tables,
            (Sticky::Client, client),
            set,
            service.affinity_seconds,
            || hash,
        )
        .1
    };
    match picked {
        Pick::Backend(slot, backend) => Choice::Backend(slot, backend),
        Pick::Empty => without_backend(tables, &service),
        Pick::Inconsistent => Choice::Inconsistent,
    }
}

#[inline(always)]
fn without_backend<T: Tables>(tables: &T, service: &Service) -> Choice {
    let is_local = service.flags & SERVICE_LOCAL_ONLY != 0;
    match refusal(tables, is_local, service.key.scope, service.inside) {
        Refusal::NoLocal => Choice::NoLocal,
        Refusal::ByTheNode => Choice::Pass,
        Refusal::ByUs => Choice::Refuse(service.outside),
    }
}

/// What a client is told that has no backend.
#[repr(u32)]
enum Refusal {
    NoLocal,
    ByTheNode,
    ByUs,
}

/// A function of its own in the programs: else the compiler has them look at a frontend before they have one, and then not use
/// it, which the verifier does not let pass.
#[inline(never)]
fn refusal<T: Tables>(tables: &T, is_local: bool, scope: u8, inside: u32) -> Refusal {
    if is_local && has_members(tables, inside) {
        Refusal::NoLocal
    } else if scope == SCOPE_NODE_PORT {
        // Nothing of the node listens there (see `bind4`): the kernel refuses it.
        Refusal::ByTheNode
    } else {
        Refusal::ByUs
    }
}

/// Whether a set has a backend, wherever that is.
#[inline(always)]
fn has_members<T: Tables>(tables: &T, set: u32) -> bool {
    set != 0
        && tables
            .set_word(set)
            .is_some_and(|word| SetWord::unpack(word).count != 0)
}

/// The same on every node, so that each sends a flow to the same backend.
#[inline(always)]
fn hash(key: &FlowKey) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let Addr([a, b, c, d]) = key.src;
    let ports = u64::from(u16::from_be(key.sport)) << 16 | u64::from(u16::from_be(key.dport));
    let wide =
        |high: u32, low: u32| u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low));
    let mut hash = wide(a, b);
    for next in [wide(c, d), ports << 8 | u64::from(key.proto)] {
        hash = (hash ^ next).wrapping_mul(FACTOR);
        hash ^= hash >> 32;
    }
    (hash.wrapping_mul(FACTOR) >> 32) as u32
}

/// Names a client in `LB_AFFINITY`, where clients on the node are named by their network's cookie. Two that share a name
/// share a backend, no more.
#[inline(always)]
fn client_of(addr: &Addr) -> u64 {
    let Addr([a, b, c, d]) = *addr;
    let high = u64::from(a) << 32 | u64::from(b);
    let low = u64::from(c) << 32 | u64::from(d);
    high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low | 1 << 63
}

/// Where a new flow goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The backend's address.
    pub addr: Addr,
    /// Its port.
    pub port: u16,
    /// `FLOW_*`.
    pub flags: u16,
    /// Index in `LB_SETS`.
    pub set: u32,
    /// The slot it was found in.
    pub slot: Slot,
}

impl Target {
    /// A backend.
    #[inline(always)]
    #[must_use]
    pub fn backend(slot: Slot, backend: &Backend) -> Self {
        let is_local = backend.flags & BACKEND_LOCAL != 0;
        Self {
            addr: backend.addr,
            port: backend.port,
            flags: if is_local { 0 } else { FLOW_REMOTE },
            set: backend.set,
            slot,
        }
    }

    /// Where a flow already goes.
    #[inline(always)]
    #[must_use]
    pub fn of(flow: &Flow) -> Self {
        Self {
            addr: flow.dst,
            port: flow.dport,
            flags: flow.flags,
            set: flow.set,
            slot: Slot {
                backend: flow.backend,
                generation: flow.generation,
            },
        }
    }

    /// Port 0 of an address of the node: no socket has it.
    #[inline(always)]
    #[must_use]
    pub fn nowhere(node: Addr, set: u32) -> Self {
        let slot = Slot {
            backend: 0,
            generation: 0,
        };
        Self {
            addr: node,
            port: 0,
            flags: FLOW_REFUSED,
            set,
            slot,
        }
    }
}

/// Writes the entry for the packets of a client. `source` is what the backend sees as its client.
///
/// These write in place rather than return what is large: on the kernel side there is little stack.
#[inline(always)]
pub fn write_forward(
    flow: &mut Flow,
    key: &FlowKey,
    target: &Target,
    (addr, port): (Addr, u16),
    (link, now): (u32, u64),
) {
    flow.src = addr;
    flow.dst = target.addr;
    flow.sport = port;
    flow.dport = target.port;
    flow.of_ports = ports(key.sport, key.dport);
    flow.backend = target.slot.backend;
    flow.generation = target.slot.generation;
    flow.set = target.set;
    flow.link = link;
    flow.out = 0;
    flow.addr_delta =
        sum::fold(sum::addr_change(&key.src, &addr) + sum::addr_change(&key.dst, &target.addr));
    flow.port_delta = sum::fold(sum::change(flow.of_ports, ports(port, target.port)));
    flow.last_seen = now;
    flow.flags = target.flags;
    flow.state = 0;
    flow.pad = 0;
    flow.hop = NextHop::UNKNOWN;
}

/// Writes key and entry for the packets that answer those of `key`, which `flow` translates.
#[inline(always)]
pub fn write_reply(reply_key: &mut FlowKey, reply: &mut Flow, key: &FlowKey, flow: &Flow) {
    reply_key.src = flow.dst;
    reply_key.dst = flow.src;
    reply_key.sport = flow.dport;
    reply_key.dport = flow.sport;
    reply_key.proto = key.proto;
    reply_key.pad = [0; 3];
    reply.src = key.dst;
    reply.dst = key.src;
    reply.sport = key.dport;
    reply.dport = key.sport;
    reply.of_ports = ports(flow.dport, flow.sport);
    reply.backend = flow.backend;
    reply.generation = flow.generation;
    reply.set = flow.set;
    reply.link = flow.link;
    reply.out = flow.link;
    // What one direction adds, the other takes away.
    reply.addr_delta = !flow.addr_delta;
    reply.port_delta = !flow.port_delta;
    reply.last_seen = flow.last_seen;
    reply.flags = flow.flags | FLOW_REPLY;
    reply.state = 0;
    reply.pad = 0;
    reply.hop = NextHop::UNKNOWN;
}

/// The ports of a packet as they lie in it.
#[inline(always)]
#[must_use]
pub const fn ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_ne_bytes(), destination.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The port that connections to a backend on another node come from: the `attempt`th to try.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
pub fn source_port(key: &FlowKey, attempt: u32) -> u16 {
    let start = hash(key).wrapping_add(attempt.wrapping_mul(0x9e5));
    (SNAT_FIRST + (start as u16 & (SNAT_PORTS - 1))).to_be()
}
