//! What a pod sends, where it enters the node: at the node's end of its veth pair (TCX).
//!
//! A pod may send with its own hardware and IP addresses only. A frame to another pod of this node goes right into that
//! pod's namespace: the bridge, its netfilter hooks and a pass through the backlog of another device are what it saves. Pods
//! with something between them and the others (a queue that limits them) are left to the bridge, both ways. What answers a
//! client outside, who came through a Service, is translated and leaves at once. All else (broadcast, neighbour discovery, the node, the world) takes the bridge as without this program.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_redirect_peer,
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use skiff_ebpf_common::{Addr, Metric, POD_DIRECT, PodPort, PodSource, limits};

use crate::{tables::count, uplink};

#[map]
pub(crate) static POD_PORTS: HashMap<Addr, PodPort> = HashMap::with_max_entries(limits::PODS, 0);
#[map]
static POD_SOURCES: HashMap<u32, PodSource> = HashMap::with_max_entries(limits::PODS, 0);

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
/// Ethernet, and an IPv4 header without options.
const IPV4_HEADERS: usize = ETHERNET + 20;
/// Ethernet, and an IPv6 header.
const IPV6_HEADERS: usize = ETHERNET + 40;

/// The hook. Whoever else is attached behind us has a say too (`TCX_NEXT`).
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let port = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: a copy is taken at once.
    let Some(own) = (unsafe { POD_SOURCES.get(port) }).copied() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: as above.
    let needed = if unsafe { (*ctx.skb.skb).protocol } == u32::from(IPV6) {
        IPV6_HEADERS
    } else {
        IPV4_HEADERS
    };
    if ctx.data() + needed > ctx.data_end() && ctx.pull_data(needed as u32).is_err() {
        // Shorter than any packet of ours: the bridge knows what to do with it.
        return TC_ACT_UNSPEC;
    }
    let Some(frame) = read::<[u8; ETHERNET]>(&ctx, 0) else {
        return TC_ACT_UNSPEC;
    };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = frame;
    let ends = match u16::from_ne_bytes([t0, t1]) {
        IPV4 => ends_v4(&ctx, ETHERNET + 12, ETHERNET + 16),
        ARP => ends_v4(&ctx, ETHERNET + 14, ETHERNET + 24),
        IPV6 => ends_v6(&ctx),
        _ => None,
    };
    let is_own_address = ends.is_none_or(|(source, _)| may_send(&own, &source));
    if [s0, s1, s2, s3, s4, s5] != own.mac || !is_own_address {
        count(Metric::PodSpoofed);
        return TC_ACT_SHOT;
    }
    let Some((_, destination)) = ends else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: a copy is taken at once.
    match unsafe { POD_PORTS.get(destination) }.copied() {
        None => uplink::answer(&ctx).unwrap_or(TC_ACT_UNSPEC),
        Some(pod)
            if pod.mac == [d0, d1, d2, d3, d4, d5] && own.flags & pod.flags & POD_DIRECT != 0 =>
        {
            count(Metric::PodDirect);
            // SAFETY: takes no pointers. Fails (and the frame is dropped) if the port is gone, as on a bridge.
            unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
        }
        Some(_) => TC_ACT_UNSPEC,
    }
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

/// Source and destination: of an IPv4 packet, or sender and target of an ARP packet for IPv4.
#[inline(always)]
fn ends_v4(ctx: &TcContext, source: usize, destination: usize) -> Option<(Addr, Addr)> {
    Some((
        Addr::v4(read(ctx, source)?),
        Addr::v4(read(ctx, destination).unwrap_or(0)),
    ))
}

/// Source and destination of an IPv6 packet.
#[inline(always)]
fn ends_v6(ctx: &TcContext) -> Option<(Addr, Addr)> {
    Some((
        Addr(read(ctx, ETHERNET + 8)?),
        Addr(read(ctx, ETHERNET + 24)?),
    ))
}

/// What lies at `offset` of the frame, if the kernel holds so much of it in one piece.
#[inline(always)]
fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: checked to lie within the packet; packets have no alignment.
    Some(unsafe { (start as *const T).read_unaligned() })
}
