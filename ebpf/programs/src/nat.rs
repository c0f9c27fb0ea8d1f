//! The table of connections from outside, and what `ebpf/lb` decides on it.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_fib_lookup as FibLookup},
    cty::c_void,
    helpers::generated::{bpf_fib_lookup, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use skiff_ebpf_common::{
    Addr, FLOW_REMOTE, FLOW_REPLY, Flow, FlowKey, FragmentKey, Mac, Metric, NextHop, TraceEvent,
    TraceHook, TraceVerdict, limits,
};
use skiff_lb::{
    Tables as _,
    nat::{self, Choice, Target},
    packet::{Headers, Part},
};

use crate::{
    tables::{KernelTables, add, count, count_connection},
    trace,
};

#[map]
static NAT_FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(limits::NAT_FLOWS, 0);
#[map]
static NAT_FRAGMENTS: LruHashMap<FragmentKey, u32> =
    LruHashMap::with_max_entries(limits::NAT_FRAGMENTS, 0);

/// How many source ports are tried for a backend on another node.
const PORT_ATTEMPTS: u32 = 8;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The look-up found a route, but no neighbour yet.
const NO_NEIGHBOUR: i64 = 7;

/// What a program works on: too large for the stack, and in a table's memory the verifier does not tell one packet from
/// another. Programs at links do not interrupt each other on a CPU.
#[repr(C)]
pub(crate) struct Scratch {
    /// What the packet is.
    pub(crate) headers: Headers,
    /// How it is translated.
    pub(crate) flow: Flow,
    target: Target,
    reply_key: FlowKey,
    reply: Flow,
    event: TraceEvent,
}

#[map]
static NAT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nobody else uses it while this program runs.
    NAT_SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// What becomes of a packet. Numbers, not an enum: functions of their own return it.
pub(crate) type Way = u32;
/// Not ours.
pub(crate) const PASS: Way = 0;
/// Dropped.
pub(crate) const DROP: Way = 1;
/// Translated as the flow says.
pub(crate) const GO: Way = 2;
/// To a backend on another node; inside this file only.
const GO_REMOTE: Way = 3;

/// Any new flow is opened.
const ANY: u32 = 0;
/// The flow goes on, but now comes in by another link.
const MOVED: u32 = 1;
/// Only what goes to another node.
const ELSEWHERE: u32 = 2;

/// Gives a fragment the ports of its datagram, which only the first one has. False: they are not known.
#[inline(never)]
pub(crate) fn complete(headers: &mut Headers) -> bool {
    match headers.part {
        Part::Whole => true,
        Part::First => {
            let ports = nat::ports(headers.key.sport, headers.key.dport);
            NAT_FRAGMENTS
                .insert(headers.fragment_key(), ports, u64::from(BPF_ANY))
                .is_ok()
        }
        Part::Later => {
            // SAFETY: a copy is taken at once.
            let Some(ports) = (unsafe { NAT_FRAGMENTS.get(headers.fragment_key()) }).copied()
            else {
                return false;
            };
            let [a, b, c, d] = ports.to_ne_bytes();
            headers.key.sport = u16::from_ne_bytes([a, b]);
            headers.key.dport = u16::from_ne_bytes([c, d]);
            true
        }
    }
}

/// The entry of a flow, and a copy of it in `flow`.
#[inline(always)]
pub(crate) fn find(key: &FlowKey, flow: &mut Flow) -> Option<*mut Flow> {
    let entry = NAT_FLOWS.get_ptr_mut(key)?;
    // SAFETY: the element is the table's and stays mapped while the program runs. Word by word, so that the copy is made
    // once and does not go over the stack.
    unsafe {
        let (from, to) = (entry.cast::<u64>(), ptr::from_mut(flow).cast::<u64>());
        for word in 0..size_of::<Flow>() / 8 {
            to.add(word).write(from.add(word).read_volatile());
        }
    }
    // Else it was given to another flow meanwhile.
    (flow.of_ports == nat::ports(key.sport, key.dport)).then_some(entry)
}

/// Notes in the entry that a packet passed.
#[inline(always)]
fn note(entry: *mut Flow, flow: &Flow, tcp: u8, now: u64) {
    let touch = nat::touch(flow, tcp, now);
    if touch.write {
        // SAFETY: as above. Two CPUs that write at once leave one state or the other, which the next packet completes.
        unsafe {
            ptr::write_volatile(&raw mut (*entry).last_seen, now);
            ptr::write_volatile(&raw mut (*entry).state, touch.state);
        }
    }
}

/// A packet that came in by a link from outside. `flow` says how it is translated if it [`GO`]es.
#[inline(always)]
pub(crate) fn incoming(ctx: *mut c_void, scratch: &mut Scratch, link: u32, bytes: u32) -> Way {
    let Scratch { headers, flow, .. } = scratch;
    // SAFETY: has no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let key = &headers.key;
    let mut how = ANY;
    if let Some(entry) = find(key, flow) {
        if flow.flags & FLOW_REPLY != 0 {
            if flow.flags & FLOW_REMOTE == 0 {
                // A backend of this node does not answer from outside.
                return PASS;
            }
            note(entry, flow, headers.tcp, now);
            count_packet(Metric::NatReplyPackets, Metric::NatReplyBytes, bytes);
            return GO;
        }
        if nat::is_current(&KernelTables, flow, key.proto, headers.tcp) {
            if flow.link == link {
                note(entry, flow, headers.tcp, now);
                count_packet(Metric::NatPackets, Metric::NatBytes, bytes);
                return GO;
            }
            how = MOVED;
        }
    }
    let mut way = open(scratch, link, how);
    if way == GO_REMOTE {
        way = open_remote(ctx, scratch, link);
    }
    if way == GO {
        count_packet(Metric::NatPackets, Metric::NatBytes, bytes);
    }
    way
}

/// A packet that came in by `link` and may leave by it again, to a backend on another node or to the client of one. If it
/// [`GO`]es, `flow` says how, and where on the link. All else is left to [`incoming`].
#[inline(always)]
pub(crate) fn passing(ctx: *mut c_void, scratch: &mut Scratch, link: u32, bytes: u32) -> Way {
    let Scratch { headers, flow, .. } = scratch;
    let key = &headers.key;
    if let Some(entry) = find(key, flow) {
        if flow.flags & FLOW_REMOTE == 0 || flow.out != link {
            return PASS;
        }
        let is_reply = flow.flags & FLOW_REPLY != 0;
        if !is_reply
            && (flow.link != link || !nat::is_current(&KernelTables, flow, key.proto, headers.tcp))
        {
            return PASS;
        }
        if !meet(ctx, entry, flow, headers.tcp) {
            return PASS;
        }
        if is_reply {
            count_packet(Metric::NatReplyPackets, Metric::NatReplyBytes, bytes);
        } else {
            count_packet(Metric::NatPackets, Metric::NatBytes, bytes);
        }
        return GO;
    }
    let mut way = open(scratch, link, ELSEWHERE);
    if way == GO_REMOTE {
        way = open_remote(ctx, scratch, link);
    }
    let flow = &scratch.flow;
    if way == GO && (flow.out != link || flow.hop == NextHop::UNKNOWN) {
        // The others know it now.
        return PASS;
    }
    if way == GO {
        count_packet(Metric::NatPackets, Metric::NatBytes, bytes);
    }
    way
}

/// Notes that a packet passed, and asks for the next host if that is not known, or once a second. False: it is not to be had.
#[inline(always)]
fn meet(ctx: *mut c_void, entry: *mut Flow, flow: &mut Flow, tcp: u8) -> bool {
    // SAFETY: has no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let touch = nat::touch(flow, tcp, now);
    if !touch.write && flow.hop != NextHop::UNKNOWN {
        return true;
    }
    let out = route(ctx, flow.out, &flow.src, &flow.dst, &mut flow.hop);
    if out != flow.out || flow.hop == NextHop::UNKNOWN {
        return false;
    }
    // SAFETY: the element is the table's and stays mapped while the program runs. Others write the same, or what is as new.
    unsafe { ptr::write_volatile(&raw mut (*entry).hop, flow.hop) };
    note(entry, flow, tcp, now);
    true
}

/// A packet that a backend of this node sends: whether it is an answer that is to be translated as `flow` says.
#[inline(always)]
pub(crate) fn outgoing(scratch: &mut Scratch, bytes: u32) -> bool {
    let Scratch { headers, flow, .. } = scratch;
    let Some(entry) = find(&headers.key, flow) else {
        return false;
    };
    if flow.flags & (FLOW_REPLY | FLOW_REMOTE) != FLOW_REPLY {
        return false;
    }
    // SAFETY: has no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    note(entry, flow, headers.tcp, now);
    count_packet(Metric::NatReplyPackets, Metric::NatReplyBytes, bytes);
    true
}

#[inline(always)]
fn count_packet(packets: Metric, bytes: Metric, length: u32) {
    count(packets);
    add(bytes, u64::from(length));
}

/// Opens a flow, or takes `flow` up again, as `how` says ([`ANY`] and its like).
#[inline(never)]
fn open(scratch: &mut Scratch, link: u32, how: u32) -> Way {
    let Scratch { headers, flow, .. } = scratch;
    let key = &headers.key;
    scratch.target = if how == MOVED {
        Target::of(flow)
    } else {
        let choice = nat::choose(&KernelTables, key, headers.tcp);
        if how == ELSEWHERE && !choice.is_elsewhere() {
            return PASS;
        }
        match choice {
            Choice::Pass => return PASS,
            Choice::NoLocal => {
                return dropped(scratch, link, Metric::NatNoLocal, TraceVerdict::NoLocal);
            }
            Choice::Stranger => {
                return dropped(scratch, link, Metric::NatSource, TraceVerdict::Stranger);
            }
            Choice::Inconsistent => {
                return dropped(
                    scratch,
                    link,
                    Metric::Inconsistent,
                    TraceVerdict::Inconsistent,
                );
            }
            Choice::Refuse(set) => {
                count(Metric::NatRefused);
                match node_address(headers.is_v4) {
                    Some(node) => Target::nowhere(node, set),
                    None => return PASS,
                }
            }
            Choice::Backend(slot, backend) => {
                count(Metric::NatFlows);
                count_connection(backend.set);
                Target::backend(slot, &backend)
            }
        }
    };
    if let Some(filter) = trace::listening() {
        tell(headers, link, &scratch.target, &mut scratch.event);
        trace::tell_wanted(filter, &scratch.event);
    }
    if scratch.target.flags & FLOW_REMOTE != 0 {
        return GO_REMOTE;
    }
    // SAFETY: has no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let client = (key.src, key.sport);
    nat::write_forward(flow, key, &scratch.target, client, (link, now));
    nat::write_reply(&mut scratch.reply_key, &mut scratch.reply, key, flow);
    if insert(&scratch.reply_key, &scratch.reply, BPF_ANY) && insert(key, flow, BPF_ANY) {
        GO
    } else {
        dropped(scratch, link, Metric::TableFull, TraceVerdict::TableFull)
    }
}

/// Opens the flow to the target that [`open`] has found on another node: from an address and a port of this one.
#[inline(never)]
fn open_remote(ctx: *mut c_void, scratch: &mut Scratch, link: u32) -> Way {
    let Scratch { headers, flow, .. } = scratch;
    let key = &headers.key;
    let Some(node) = node_address(headers.is_v4) else {
        return dropped(scratch, link, Metric::NatNoWay, TraceVerdict::NoWay);
    };
    let mut hop = NextHop::UNKNOWN;
    let out = route(ctx, link, &node, &scratch.target.addr, &mut hop);
    if out == 0 {
        return dropped(scratch, link, Metric::NatNoWay, TraceVerdict::NoWay);
    }
    // SAFETY: has no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    for attempt in 0..PORT_ATTEMPTS {
        let source = (node, nat::source_port(key, attempt));
        nat::write_forward(flow, key, &scratch.target, source, (link, now));
        nat::write_reply(&mut scratch.reply_key, &mut scratch.reply, key, flow);
        if insert(&scratch.reply_key, &scratch.reply, BPF_NOEXIST) {
            flow.out = out;
            flow.hop = hop;
            if insert(key, flow, BPF_ANY) {
                return GO;
            }
            return dropped(scratch, link, Metric::TableFull, TraceVerdict::TableFull);
        }
    }
    dropped(scratch, link, Metric::NatNoWay, TraceVerdict::NoWay)
}

#[inline(always)]
fn insert(key: &FlowKey, flow: &Flow, how: u32) -> bool {
    NAT_FLOWS.insert(key, flow, u64::from(how)).is_ok()
}

/// The number of the link by which the node, as a router, sends on what came in by `link`, and in `hop` the next host there if
/// its hardware address is known. 0: there is none.
#[inline(never)]
fn route(ctx: *mut c_void, link: u32, src: &Addr, dst: &Addr, hop: &mut NextHop) -> u32 {
    let is_v4 = dst.is_v4();
    // SAFETY: all zero is a valid question.
    let mut ask = unsafe { core::mem::zeroed::<FibLookup>() };
    ask.ifindex = link;
    if is_v4 {
        ask.family = AF_INET;
        ask.__bindgen_anon_3.ipv4_src = src.as_v4();
        ask.__bindgen_anon_4.ipv4_dst = dst.as_v4();
    } else {
        ask.family = AF_INET6;
        ask.__bindgen_anon_3.ipv6_src = src.0;
        ask.__bindgen_anon_4.ipv6_dst = dst.0;
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is valid while the program runs, the question is live and of the size given.
    let result = unsafe { bpf_fib_lookup(ctx, &raw mut ask, size, 0) };
    *hop = NextHop::UNKNOWN;
    if result == 0 {
        hop.to = Mac::from_octets(ask.dmac);
        hop.own = Mac::from_octets(ask.smac);
    }
    if result == 0 || result == NO_NEIGHBOUR {
        ask.ifindex
    } else {
        0
    }
}

#[inline(always)]
fn node_address(is_v4: bool) -> Option<Addr> {
    let config = KernelTables.config()?;
    if is_v4 {
        (config.node_v4 != 0).then_some(Addr::v4(config.node_v4))
    } else {
        (config.node_v6 != Addr::ANY_V6).then_some(config.node_v6)
    }
}

#[inline(always)]
fn dropped(scratch: &mut Scratch, link: u32, metric: Metric, verdict: TraceVerdict) -> Way {
    count(metric);
    tell_dropped(scratch, link, verdict);
    DROP
}

/// Tells a tracer of a packet that is dropped.
#[inline(always)]
pub(crate) fn tell_dropped(scratch: &mut Scratch, link: u32, verdict: TraceVerdict) {
    if let Some(filter) = trace::listening() {
        describe_dropped(scratch, link, verdict as u8);
        trace::tell_wanted(filter, &scratch.event);
    }
}

/// A function of its own, so that those who call it need no room on their stacks.
#[inline(never)]
fn describe_dropped(scratch: &mut Scratch, link: u32, verdict: u8) {
    let Scratch { headers, event, .. } = scratch;
    let key = &headers.key;
    let ends = (key.src, key.dst);
    *event = TraceEvent::packet(TraceHook::Uplink, TraceVerdict::NoWay, ends);
    event.verdict = verdict;
    event.client_port = key.sport;
    event.asked_port = key.dport;
    event.proto = key.proto;
    event.ifindex = link;
}

/// What a tracer is told of a new flow.
#[inline(always)]
fn tell(headers: &Headers, link: u32, target: &Target, event: &mut TraceEvent) {
    let verdict = if target.port == 0 {
        TraceVerdict::Refused
    } else {
        TraceVerdict::Backend
    };
    *event = TraceEvent {
        backend: target.addr,
        client_port: headers.key.sport,
        asked_port: headers.key.dport,
        backend_port: target.port,
        proto: headers.key.proto,
        ifindex: link,
        ..TraceEvent::packet(
            TraceHook::Uplink,
            verdict,
            (headers.key.src, headers.key.dst),
        )
    };
}
