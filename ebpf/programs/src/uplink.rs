//! What comes in from outside for NodePorts, load balancers' and external IPs, and what goes back (TCX, at the node's links).
//!
//! A packet for a pod of this node goes right into the pod's namespace, one for a pod of another node out of the link that
//! leads there; neither the node's stack nor its bridge sees it. What pods answer is translated where it enters the node
//! (`pod_egress`); what processes of the node answer, where it leaves.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use skiff_ebpf_common::{Metric, POD_DIRECT, POD_POLICIES, TraceVerdict};

use crate::{
    frame::{self, Frame},
    icmp,
    nat::{self, Scratch},
    pod_egress::POD_PORTS,
    tables::count,
};

/// The frame is for this host.
const PACKET_HOST: u32 = 0;

/// The hook for what comes in.
#[classifier]
pub fn uplink_in(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (kind, link) = unsafe { ((*skb).pkt_type, (*skb).ifindex) };
    if kind != PACKET_HOST {
        return TC_ACT_UNSPEC;
    }
    let Some(scratch) = headers_of(skb) else {
        return icmp::incoming(skb);
    };
    match nat::incoming(ctx.as_ptr(), scratch, link, ctx.len()) {
        nat::GO if scratch.flow.out != 0 => leave(skb, scratch),
        nat::GO => deliver(skb, scratch),
        nat::DROP => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// The hook for what goes out: answers of processes of the node, and of pods that took the node's stack.
#[classifier]
pub fn uplink_out(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(scratch) = headers_of(skb) else {
        return icmp::outgoing(skb);
    };
    // It has been routed already.
    if nat::outgoing(scratch, ctx.len())
        && !frame::rewrite(skb, &scratch.headers, &scratch.flow, false)
    {
        return TC_ACT_SHOT;
    }
    TC_ACT_UNSPEC
}

/// Sends a pod's answer out of the link where the client is. None: it is no such answer.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext) -> Option<i32> {
    let Some(scratch) = headers_of(ctx.skb.skb) else {
        return icmp::answer(ctx.skb.skb);
    };
    nat::outgoing(scratch, ctx.len()).then(|| leave(ctx.skb.skb, scratch))
}

/// Reads the headers, with the ports of fragments too.
#[inline(always)]
fn headers_of(skb: *mut __sk_buff) -> Option<&'static mut Scratch> {
    let scratch = nat::scratch()?;
    (frame::headers(skb, &mut scratch.headers) && nat::complete(&mut scratch.headers))
        .then_some(scratch)
}

/// Out of another link, as a router does.
#[inline(always)]
fn leave(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    if !frame::rewrite(skb, &scratch.headers, &scratch.flow, true) {
        return expired(skb, scratch);
    }
    // SAFETY: null: the kernel looks the neighbour up by the packet's destination.
    unsafe { bpf_redirect_neigh(scratch.flow.out, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Dropped: on its way for too long.
#[inline(always)]
fn expired(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    count(Metric::NatExpired);
    // SAFETY: the context is valid while the program runs.
    let link = unsafe { (*skb).ifindex };
    nat::tell_dropped(scratch, link, TraceVerdict::Expired);
    TC_ACT_SHOT
}

/// Into the pod; if there is none with this address, or if something is between it and the others, up the node's stack.
#[inline(always)]
fn deliver(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    // SAFETY: a copy is taken at once.
    let pod = unsafe { POD_PORTS.get(scratch.flow.dst) }.copied();
    // Its policies are asked on the way through the bridge.
    let pod = pod.filter(|pod| pod.flags & (POD_DIRECT | POD_POLICIES) == POD_DIRECT);
    // The node's stack counts hops itself.
    if !frame::rewrite(skb, &scratch.headers, &scratch.flow, pod.is_some()) {
        return expired(skb, scratch);
    }
    let Some(pod) = pod else {
        return TC_ACT_UNSPEC;
    };
    if Frame::of(&TcContext::new(skb)).write(0, pod.mac).is_none() {
        return TC_ACT_SHOT;
    }
    // SAFETY: takes no pointers. Fails (and the packet is dropped) if the pod has just gone.
    unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
}
