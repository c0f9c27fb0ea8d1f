//! What a pod sends, where it enters the node: at the node's end of its veth pair (TCX).
//!
//! A pod may send with its own hardware and IP addresses only, and what its policies let out. A frame to another pod of this
//! node goes right into that pod's namespace, if that pod's policies let it in: the bridge, its netfilter hooks and a pass
//! through the backlog of another device are what it saves. Pods with something between them and the others (a queue that
//! limits them) are left to the bridge, both ways. What answers a client outside, who came through a Service, is translated and
//! leaves at once. All else (broadcast, neighbour discovery, the node, the world) takes the bridge as without this program.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_redirect_peer,
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use skiff_ebpf_common::{
    Addr, DIRECTION_EGRESS, DIRECTION_INGRESS, Metric, POD_DIRECT, POD_POLICIES, PodPort,
    PodSource, TraceEvent, TraceHook, TraceVerdict, limits,
};

use crate::{
    pod_frame::{Payload, frame},
    policy::{Ask, admits},
    tables::count,
    trace, uplink,
};

#[map]
pub(crate) static POD_PORTS: HashMap<Addr, PodPort> = HashMap::with_max_entries(limits::PODS, 0);
#[map]
pub(crate) static POD_SOURCES: HashMap<u32, PodSource> = HashMap::with_max_entries(limits::PODS, 0);

/// The hook. Whoever else is attached behind us has a say too (`TCX_NEXT`).
#[classifier]
pub fn pod_egress(mut ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let port = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: a copy is taken at once.
    let Some(own) = (unsafe { POD_SOURCES.get(port) }).copied() else {
        return TC_ACT_UNSPEC;
    };
    let Some(frame) = frame(&mut ctx) else {
        // The bridge knows what to do with it.
        return TC_ACT_UNSPEC;
    };
    let is_own_address = match &frame.payload {
        Payload::Ip { source, .. } | Payload::Arp { sender: source } => may_send(&own, source),
        Payload::Other => true,
    };
    if frame.source != own.mac || !is_own_address {
        count(Metric::PodSpoofed);
        if trace::listening().is_some() {
            let (source, destination) = match frame.payload {
                Payload::Ip {
                    source,
                    destination,
                } => (source, destination),
                Payload::Arp { sender } => (sender, sender.any()),
                Payload::Other => (Addr::ANY_V6, Addr::ANY_V6),
            };
            tell_spoofed(&source, &destination, port);
        }
        return TC_ACT_SHOT;
    }
    let Payload::Ip {
        source,
        destination,
    } = frame.payload
    else {
        return TC_ACT_UNSPEC;
    };
    let mut ask = Ask {
        subject: own.address_like(&source),
        source,
        destination,
        ifindex: port,
        direction: DIRECTION_EGRESS,
        hook: TraceHook::PodEgress,
    };
    if own.flags & POD_POLICIES != 0 && !admits(&ctx, &ask) {
        return TC_ACT_SHOT;
    }
    // SAFETY: a copy is taken at once.
    let Some(pod) = (unsafe { POD_PORTS.get(destination) }).copied() else {
        return uplink::answer(&ctx).unwrap_or(TC_ACT_UNSPEC);
    };
    if pod.mac != frame.destination || own.flags & pod.flags & POD_DIRECT == 0 {
        return TC_ACT_UNSPEC;
    }
    if pod.flags & POD_POLICIES != 0 {
        ask.subject = destination;
        ask.ifindex = pod.ifindex;
        ask.direction = DIRECTION_INGRESS;
        if !admits(&ctx, &ask) {
            return TC_ACT_SHOT;
        }
    }
    count(Metric::PodDirect);
    // SAFETY: takes no pointers. Fails (and the frame is dropped) if the port is gone, as on a bridge.
    unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
}

/// Tells a tracer of a packet with a foreign source. A function of its own, so that the hook needs no room for it.
#[inline(never)]
fn tell_spoofed(source: &Addr, destination: &Addr, link: u32) {
    let ends = (*source, *destination);
    trace::tell(|| TraceEvent {
        ifindex: link,
        ..TraceEvent::packet(TraceHook::PodEgress, TraceVerdict::Spoofed, ends)
    });
}

/// Its own addresses, and those of a pod that is about to get one: none (ARP probes, DHCP, duplicate address detection),
/// link-local ones of IPv6.
#[inline(always)]
fn may_send(own: &PodSource, source: &Addr) -> bool {
    if source.is_v4() {
        return source.as_v4() == own.v4 || source.as_v4() == 0;
    }
    let Addr([first, ..]) = *source;
    const LINK_LOCAL: u32 = 0xfe80_0000_u32.to_be();
    const LINK_LOCAL_MASK: u32 = 0xffc0_0000_u32.to_be();
    *source == Addr::ANY_V6 || *source == own.v6 || first & LINK_LOCAL_MASK == LINK_LOCAL
}
