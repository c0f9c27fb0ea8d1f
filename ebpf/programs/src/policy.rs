//! NetworkPolicy: reads what a packet is and asks `ebpf/lb`.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{
        Array, HashMap, LruHashMap, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::TcContext,
};
use skiff_ebpf_common::{
    Addr, DIRECTION_EGRESS, DIRECTION_INGRESS, Metric, PROTO_SCTP, PROTO_TCP, PROTO_UDP,
    PolicyConn, PolicyConnKey, PolicyFragKey, PolicyIds, PolicyRule, RULE_BITS_PORT, TraceEvent,
    TraceHook, TraceVerdict, limits,
};
use skiff_lb::policy::{
    Judgement, PROTO_ICMP, PROTO_ICMPV6, Part, PolicyPacket, PolicyTables, identity, judge,
};

use crate::{pod_frame::ETHERNET, tables::count, trace};

#[map]
static POLICY_IDS: HashMap<Addr, PolicyIds> =
    HashMap::with_max_entries(limits::POLICY_IDS, BPF_F_NO_PREALLOC);
#[map]
static POLICY_CIDRS: LpmTrie<Addr, PolicyIds> =
    LpmTrie::with_max_entries(limits::POLICY_CIDRS, BPF_F_NO_PREALLOC);
#[map]
static POLICY_RULES: LpmTrie<PolicyRule, u32> =
    LpmTrie::with_max_entries(limits::POLICY_RULES, BPF_F_NO_PREALLOC);
#[map]
static POLICY_CONNS: LruHashMap<PolicyConnKey, PolicyConn> =
    LruHashMap::with_max_entries(limits::POLICY_CONNS, 0);
#[map]
static POLICY_FRAGS: LruHashMap<PolicyFragKey, u64> =
    LruHashMap::with_max_entries(limits::POLICY_FRAGS, 0);
#[map]
static POLICY_STATE: Array<u32> = Array::with_max_entries(1, 0);
/// What is known of the packet at hand: a program's stack is too small for it. Programs at links do not interrupt each other
/// on a CPU.
#[map]
static POLICY_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

struct Scratch {
    packet: PolicyPacket,
    fragment: PolicyFragKey,
    event: TraceEvent,
}

/// The kernel's maps.
struct KernelPolicies;

impl PolicyTables for KernelPolicies {
    #[inline(always)]
    fn state(&self) -> u32 {
        POLICY_STATE.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn ids(&self, addr: &Addr) -> Option<PolicyIds> {
        // SAFETY: a copy is taken; each of the two words is whole.
        unsafe { POLICY_IDS.get(addr) }.copied()
    }

    #[inline(always)]
    fn cidr_ids(&self, addr: &Addr) -> Option<PolicyIds> {
        POLICY_CIDRS.get(Key::new(128, *addr)).copied()
    }

    #[inline(always)]
    fn allows(&self, rule: &PolicyRule) -> bool {
        POLICY_RULES.get(Key::new(RULE_BITS_PORT, *rule)).is_some()
    }

    #[inline(always)]
    fn conn(&self, key: &PolicyConnKey) -> Option<PolicyConn> {
        // SAFETY: a copy is taken at once.
        unsafe { POLICY_CONNS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &PolicyConnKey, conn: &PolicyConn) {
        if POLICY_CONNS.insert(key, conn, u64::from(BPF_ANY)).is_err() {
            count(Metric::TableFull);
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: has no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

/// Whose policies are asked about an IP packet.
pub(crate) struct Ask {
    /// The pod's own address of that family.
    pub(crate) subject: Addr,
    /// Where the packet comes from.
    pub(crate) source: Addr,
    /// Where it goes.
    pub(crate) destination: Addr,
    /// The number of the node's end of the pod's veth pair.
    pub(crate) ifindex: u32,
    /// `DIRECTION_*`: to or from the pod.
    pub(crate) direction: u8,
    /// Which program asks.
    pub(crate) hook: TraceHook,
}

impl Ask {
    /// The address at the other end.
    #[inline(always)]
    fn peer(&self) -> &Addr {
        if self.direction == DIRECTION_EGRESS {
            &self.destination
        } else {
            &self.source
        }
    }

    /// The pod's address in the packet.
    #[inline(always)]
    fn pod(&self) -> &Addr {
        if self.direction == DIRECTION_EGRESS {
            &self.source
        } else {
            &self.destination
        }
    }
}

/// Whether a pod's policies let a packet pass; counts it if not, and tells a tracer.
#[inline(always)]
pub(crate) fn admits(ctx: &TcContext, ask: &Ask) -> bool {
    if passes(ctx, ask) {
        return true;
    }
    // Here and not where it is found: functions within functions share one small stack.
    if let Some(filter) = trace::listening()
        && let Some(scratch) = POLICY_SCRATCH.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own element, used by this program alone while it runs.
        let Scratch { packet, event, .. } = unsafe { &mut *scratch };
        describe(ask, packet, event);
        trace::tell_wanted(filter, event);
    }
    false
}

#[inline(never)]
fn passes(ctx: &TcContext, ask: &Ask) -> bool {
    let Some(scratch) = POLICY_SCRATCH.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's own element, used by this program alone while it runs; zeroes are a value of its type.
    let Scratch {
        packet,
        fragment,
        event,
    } = unsafe { &mut *scratch };
    packet.proto = 0;
    packet.port = 0;
    packet.conn.pod_port = 0;
    packet.conn.peer_port = 0;
    let Some(head) = head(ctx, ETHERNET) else {
        // Claims to be longer than it is.
        return deny(ask, event);
    };
    packet.proto = head.proto;
    fragment.source = ask.source;
    fragment.destination = ask.destination;
    fragment.id = head.fragment;
    fragment.ifindex = ask.ifindex;
    if head.piece == Piece::Later {
        // SAFETY: only whether it is there is asked.
        return unsafe { POLICY_FRAGS.get(&*fragment) }.is_some() || deny(ask, event);
    }
    packet.subject = ask.subject;
    packet.peer = *ask.peer();
    set_conn(&mut packet.conn, ask.pod(), ask.peer(), head.proto);
    packet.direction = ask.direction;
    packet.part = Part::Carries;
    // SAFETY: the context is valid while the program runs. What came from a link, also from another pod, has that here.
    packet.from_node = unsafe { (*ctx.skb.skb).ingress_ifindex } == 0;
    packet.ifindex = ask.ifindex;
    if !read_ports(ctx, &head, ask.direction, packet) {
        return true;
    }
    match judge(&KernelPolicies, packet) {
        Judgement::Pass => {}
        Judgement::Deny => return deny(ask, event),
        Judgement::Unknown => {
            count(Metric::PolicyUnknown);
            event.verdict = TraceVerdict::PolicyUnknown as u8;
            return false;
        }
    }
    if head.piece == Piece::First {
        let now = KernelPolicies.now();
        if POLICY_FRAGS
            .insert(&*fragment, now, u64::from(BPF_ANY))
            .is_err()
        {
            count(Metric::TableFull);
        }
    }
    true
}

#[inline(always)]
fn deny(ask: &Ask, event: &mut TraceEvent) -> bool {
    let (metric, verdict) = if ask.direction == DIRECTION_EGRESS {
        (Metric::PolicyEgress, TraceVerdict::DeniedEgress)
    } else {
        (Metric::PolicyIngress, TraceVerdict::DeniedIngress)
    };
    count(metric);
    event.verdict = verdict as u8;
    false
}

/// Completes what a tracer is told: the verdict is there already. A function of its own, so that packets do not pay for it while
/// nobody traces.
#[inline(never)]
fn describe(ask: &Ask, packet: &PolicyPacket, event: &mut TraceEvent) {
    let state = KernelPolicies.state();
    let verdict = event.verdict;
    let ends = (ask.source, ask.destination);
    *event = TraceEvent::packet(ask.hook, TraceVerdict::DeniedEgress, ends);
    event.verdict = verdict;
    (event.client_port, event.asked_port) = if ask.direction == DIRECTION_EGRESS {
        (packet.conn.pod_port, packet.conn.peer_port)
    } else {
        (packet.conn.peer_port, packet.conn.pod_port)
    };
    event.proto = packet.proto;
    event.ifindex = ask.ifindex;
    event.subject = identity(&KernelPolicies, &ask.subject, state);
    event.peer = identity(&KernelPolicies, ask.peer(), state);
}

/// A connection without ports.
#[inline(always)]
fn set_conn(conn: &mut PolicyConnKey, pod: &Addr, peer: &Addr, proto: u8) {
    conn.pod = *pod;
    conn.peer = *peer;
    conn.pod_port = 0;
    conn.peer_port = 0;
    conn.proto = proto;
    conn.pad = [0; 3];
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Whole,
    First,
    Later,
}

/// An IP header, as far as it matters.
struct Head {
    proto: u8,
    /// Where its payload begins.
    payload: usize,
    piece: Piece,
    fragment: u32,
}

/// Reads the IP header at `offset`, and those that IPv6 may put between it and the payload.
#[inline(always)]
fn head(ctx: &TcContext, offset: usize) -> Option<Head> {
    let first: u8 = ctx.load(offset).ok()?;
    if first >> 4 == 6 {
        head_v6(ctx, offset)
    } else {
        head_v4(ctx, offset, first)
    }
}

#[inline(always)]
fn head_v4(ctx: &TcContext, offset: usize, first: u8) -> Option<Head> {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let [id, flags]: [u16; 2] = ctx.load(offset + 4).ok()?;
    let flags = u16::from_be(flags);
    let piece = if flags & OFFSET != 0 {
        Piece::Later
    } else if flags & MORE != 0 {
        Piece::First
    } else {
        Piece::Whole
    };
    Some(Head {
        proto: ctx.load(offset + 9).ok()?,
        payload: offset + usize::from(first & 0xf) * 4,
        piece,
        fragment: u32::from(id),
    })
}

#[inline(always)]
fn head_v6(ctx: &TcContext, offset: usize) -> Option<Head> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    /// More headers than that in a row are nobody's honest packet: such a one has no ports for us.
    const HEADERS: u32 = 6;
    let mut head = Head {
        proto: ctx.load(offset + 6).ok()?,
        payload: offset + 40,
        piece: Piece::Whole,
        fragment: 0,
    };
    for _ in 0..HEADERS {
        match head.proto {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [next, length]: [u8; 2] = ctx.load(head.payload).ok()?;
                head.proto = next;
                head.payload += (usize::from(length) + 1) * 8;
            }
            AUTHENTICATION => {
                let [next, length]: [u8; 2] = ctx.load(head.payload).ok()?;
                head.proto = next;
                head.payload += (usize::from(length) + 2) * 4;
            }
            FRAGMENT => {
                let [next, _, high, low]: [u8; 4] = ctx.load(head.payload).ok()?;
                let place = u16::from_be_bytes([high, low]);
                head.proto = next;
                head.fragment = ctx.load(head.payload + 4).ok()?;
                head.payload += 8;
                if place >> 3 != 0 {
                    head.piece = Piece::Later;
                    return Some(head);
                }
                // Whole ones come so too (RFC 6946).
                if place & 1 != 0 {
                    head.piece = Piece::First;
                }
            }
            _ => return Some(head),
        }
    }
    Some(head)
}

/// Fills in the ports and what the packet is to its connection. False if it always passes: neighbour discovery, and who
/// listens to which group.
#[inline(always)]
fn read_ports(ctx: &TcContext, head: &Head, direction: u8, packet: &mut PolicyPacket) -> bool {
    match head.proto {
        PROTO_TCP => {
            const SYN: u8 = 0x02;
            const ACK: u8 = 0x10;
            packet.port = set_ports(ctx, head.payload, direction, packet);
            let flags: u8 = ctx.load(head.payload + 13).unwrap_or(SYN);
            if flags & (SYN | ACK) == SYN {
                packet.part = Part::Opens;
            }
        }
        PROTO_UDP | PROTO_SCTP => {
            packet.port = set_ports(ctx, head.payload, direction, packet);
        }
        PROTO_ICMP => match ctx.load::<u8>(head.payload).unwrap_or_default() {
            8 => set_echo(ctx, head.payload, direction, true, packet),
            0 => set_echo(ctx, head.payload, direction, false, packet),
            3..=5 | 11 | 12 => set_reported(ctx, head.payload + 8, direction, packet),
            _ => {}
        },
        PROTO_ICMPV6 => match ctx.load::<u8>(head.payload).unwrap_or_default() {
            128 => set_echo(ctx, head.payload, direction, true, packet),
            129 => set_echo(ctx, head.payload, direction, false, packet),
            1..=4 => set_reported(ctx, head.payload + 8, direction, packet),
            130..=137 | 143 => return false,
            _ => {}
        },
        _ => {}
    }
    true
}

/// Returns the port that it goes to.
#[inline(always)]
fn set_ports(ctx: &TcContext, offset: usize, direction: u8, packet: &mut PolicyPacket) -> u16 {
    let [source, destination]: [u16; 2] = ctx.load(offset).unwrap_or_default();
    (packet.conn.pod_port, packet.conn.peer_port) = if direction == DIRECTION_EGRESS {
        (source, destination)
    } else {
        (destination, source)
    };
    destination
}

/// Who asks has the identifier as its port.
#[inline(always)]
fn set_echo(
    ctx: &TcContext,
    offset: usize,
    direction: u8,
    is_request: bool,
    packet: &mut PolicyPacket,
) {
    let id: u16 = ctx.load(offset + 4).unwrap_or_default();
    if (direction == DIRECTION_EGRESS) == is_request {
        packet.conn.pod_port = id;
    } else {
        packet.conn.peer_port = id;
    }
    if !is_request {
        packet.part = Part::Reports;
    }
}

/// The connection that an error is about: it quotes the head of a packet that went the other way.
#[inline(always)]
fn set_reported(ctx: &TcContext, offset: usize, direction: u8, packet: &mut PolicyPacket) {
    packet.part = Part::Reports;
    let first: u8 = ctx.load(offset).unwrap_or_default();
    let (ends, payload) = if first >> 4 == 6 {
        let ends = ctx.load::<[Addr; 2]>(offset + 8).ok();
        (ends, offset + 40)
    } else {
        let ends = ctx.load::<[u32; 2]>(offset + 12).ok();
        let ends = ends.map(|ends| ends.map(Addr::v4));
        (ends, offset + usize::from(first & 0xf) * 4)
    };
    let proto = offset + if first >> 4 == 6 { 6 } else { 9 };
    let (Some([source, destination]), Ok(proto)) = (ends, ctx.load::<u8>(proto)) else {
        return;
    };
    if direction == DIRECTION_EGRESS {
        // Routers on the way tell a pod about its packets; a pod tells nobody but who sent them.
        if source != packet.peer {
            return;
        }
        set_conn(&mut packet.conn, &destination, &source, proto);
    } else {
        set_conn(&mut packet.conn, &source, &destination, proto);
    }
    let back = if direction == DIRECTION_EGRESS {
        DIRECTION_INGRESS
    } else {
        DIRECTION_EGRESS
    };
    match proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            set_ports(ctx, payload, back, packet);
        }
        PROTO_ICMP | PROTO_ICMPV6 => set_echo(ctx, payload, back, true, packet),
        _ => {}
    }
}
