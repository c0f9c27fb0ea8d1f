//! ICMP errors of translated connections: see `skiff_lb::icmp`. They are few; nothing here is in the way of other packets.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_redirect_neigh, bpf_redirect_peer},
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use skiff_ebpf_common::{
    Addr, FLOW_REMOTE, FLOW_REPLY, Flow, Metric, POD_DIRECT, POD_POLICIES, PROTO_UDP,
};
use skiff_lb::{
    icmp::{AT_HAND, ERROR_V4, ERROR_V6, IcmpError, is_icmp, parse, quoted_checksum, sender},
    packet::{ETHERNET, Packet as _},
    sum,
};

use crate::{
    frame::{Frame, hop},
    nat,
    pod_egress::POD_PORTS,
    tables::count,
};

/// What a program works on: see `nat::Scratch`.
#[repr(C)]
struct Scratch {
    error: IcmpError,
    flow: Flow,
}

#[map]
static ICMP_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Behind the longest IPv4 header inside nothing is written.
const OFFSET_MASK: usize = 0x7f;

/// From outside: about what the node has sent to a client, or to a backend on another node.
#[inline(always)]
pub(crate) fn incoming(skb: *mut __sk_buff) -> i32 {
    let Some(Scratch { error, flow }) = read(skb) else {
        return TC_ACT_UNSPEC;
    };
    if flow.flags & (FLOW_REPLY | FLOW_REMOTE) == FLOW_REPLY {
        // Nobody outside has seen what went to a backend of this node.
        return TC_ACT_UNSPEC;
    }
    if flow.out != 0 {
        return leave(skb, error, flow);
    }
    // SAFETY: a copy is taken at once.
    let pod = unsafe { POD_PORTS.get(flow.dst) }.copied();
    let pod = pod.filter(|pod| pod.flags & (POD_DIRECT | POD_POLICIES) == POD_DIRECT);
    if !rewrite(skb, error, flow) || (pod.is_some() && !hop(skb, error.is_v4)) {
        return expired();
    }
    let Some(pod) = pod else {
        return TC_ACT_UNSPEC;
    };
    if Frame::of(&TcContext::new(skb)).write(0, pod.mac).is_none() {
        return TC_ACT_SHOT;
    }
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
}

/// Of the node itself, or routed by it: about what came from a client.
#[inline(always)]
pub(crate) fn outgoing(skb: *mut __sk_buff) -> i32 {
    match read(skb).filter(|scratch| is_answer(&scratch.flow)) {
        Some(Scratch { error, flow }) if !rewrite(skb, error, flow) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// Of a pod. None: it is about nothing that came from outside.
#[inline(always)]
pub(crate) fn answer(skb: *mut __sk_buff) -> Option<i32> {
    let Scratch { error, flow } = read(skb).filter(|scratch| is_answer(&scratch.flow))?;
    Some(leave(skb, error, flow))
}

#[inline(always)]
fn is_answer(flow: &Flow) -> bool {
    flow.flags & (FLOW_REPLY | FLOW_REMOTE) == FLOW_REPLY
}

/// Out of the link where the other end is.
#[inline(always)]
fn leave(skb: *mut __sk_buff, error: &IcmpError, flow: &Flow) -> i32 {
    if !rewrite(skb, error, flow) || !hop(skb, error.is_v4) {
        return expired();
    }
    // SAFETY: null: the kernel looks the neighbour up by the packet's destination.
    unsafe { bpf_redirect_neigh(flow.out, core::ptr::null_mut(), 0, 0) as i32 }
}

#[inline(always)]
fn expired() -> i32 {
    count(Metric::NatExpired);
    TC_ACT_SHOT
}

/// An error and the flow that it is a packet of.
#[inline(always)]
fn read(skb: *mut __sk_buff) -> Option<&'static mut Scratch> {
    // SAFETY: nobody else uses it while this program runs.
    let scratch = ICMP_SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })?;
    read_into(skb, scratch).then_some(scratch)
}

#[inline(never)]
fn read_into(skb: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    let ctx = TcContext::new(skb);
    if !is_icmp(&Frame::of(&ctx)) {
        return false;
    }
    if !pull(&ctx) {
        return false;
    }
    let Some(error) = parse(&Frame::of(&ctx)) else {
        return false;
    };
    scratch.error = error;
    nat::find(&scratch.error.key, &mut scratch.flow).is_some()
}

/// Puts all that is read and written in one piece. Each function does it for itself, or the compiler hands one the other's
/// pointers, which the verifier does not let pass.
#[inline(always)]
fn pull(ctx: &TcContext) -> bool {
    let needed = (ctx.len() as usize).min(AT_HAND);
    ctx.pull_data(needed as u32).is_ok()
}

/// Translates it, outside and inside.
#[inline(never)]
fn rewrite(skb: *mut __sk_buff, error: &IcmpError, flow: &Flow) -> bool {
    let ctx = TcContext::new(skb);
    if !pull(&ctx) {
        return false;
    }
    let frame = Frame::of(&ctx);
    let written = if error.is_v4 {
        rewrite_v4(&frame, error, flow)
    } else {
        rewrite_v6(&frame, error, flow)
    };
    written.is_some()
}

#[inline(always)]
fn rewrite_v4(frame: &Frame, error: &IcmpError, flow: &Flow) -> Option<()> {
    let inner = ERROR_V4 + 8;
    // The addresses inside are made good by the checksum of the header that they are in.
    let checksum = frame.read::<u16>(inner + 10)?;
    frame.write(inner + 10, sum::update(checksum, flow.addr_delta))?;
    frame.write(inner + 12, [flow.dst.as_v4(), flow.src.as_v4()])?;
    let delta = rewrite_transport(frame, error, flow)?;
    let [src, dst] = frame.read::<[u32; 2]>(ETHERNET + 12)?;
    let [new_src, new_dst] = [sender(flow, Addr::v4(src)).as_v4(), flow.dst.as_v4()];
    let moved = sum::change(src, new_src) + sum::change(dst, new_dst);
    let checksum = frame.read::<u16>(ETHERNET + 10)?;
    frame.write(ETHERNET + 10, sum::update(checksum, sum::fold(moved)))?;
    frame.write(ETHERNET + 12, [new_src, new_dst])?;
    let checksum = frame.read::<u16>(ERROR_V4 + 2)?;
    frame.write(ERROR_V4 + 2, sum::update(checksum, sum::fold(delta)))
}

#[inline(always)]
fn rewrite_v6(frame: &Frame, error: &IcmpError, flow: &Flow) -> Option<()> {
    let inner = ERROR_V6 + 8;
    frame.write::<Addr>(inner + 8, flow.dst)?;
    frame.write::<Addr>(inner + 24, flow.src)?;
    let delta = rewrite_transport(frame, error, flow)? + u64::from(flow.addr_delta);
    let src = frame.read::<Addr>(ETHERNET + 8)?;
    let dst = frame.read::<Addr>(ETHERNET + 24)?;
    let new_src = sender(flow, src);
    frame.write::<Addr>(ETHERNET + 8, new_src)?;
    frame.write::<Addr>(ETHERNET + 24, flow.dst)?;
    // ICMPv6 sums the addresses, too.
    let moved = sum::addr_change(&src, &new_src) + sum::addr_change(&dst, &flow.dst);
    let checksum = frame.read::<u16>(ERROR_V6 + 2)?;
    frame.write(
        ERROR_V6 + 2,
        sum::update(checksum, sum::fold(delta + moved)),
    )
}

/// Ports, and the checksum that covers them, if it was quoted. What that adds to a sum over all of it.
#[inline(always)]
fn rewrite_transport(frame: &Frame, error: &IcmpError, flow: &Flow) -> Option<u64> {
    // Masked: no port lies behind it, which the verifier does not know.
    let ports = error.ports & OFFSET_MASK;
    frame.write(ports, [flow.dport, flow.sport])?;
    let mut delta = u64::from(flow.port_delta);
    let at = ports + if error.key.proto == PROTO_UDP { 6 } else { 16 };
    if let Some(old) = frame.half(at) {
        let new = quoted_checksum(old, flow, error.key.proto);
        frame.write(at, new)?;
        delta += sum::change(u32::from(old), u32::from(new));
    }
    Some(delta)
}
