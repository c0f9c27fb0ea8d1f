//! What a pod sends, as it enters the node at the node's end of the pod's veth pair (TCX ingress).
//!
//! A frame whose source is not the pod's hardware address, or its IPv4 address (also as the sender of ARP), is dropped; IPv6
//! sources are not looked at. One to another pod of this node goes right into that pod's
//! namespace: the bridge, its netfilter hooks and a pass through the backlog of another device are what it saves. Pods
//! with something between them and the others (a queue that limits them) are left to the bridge, both ways. All
//! else (broadcast, the node, the world) takes the bridge as without this program.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_redirect_peer,
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use skiff_ebpf_common::{MacKey, Metric, POD_DIRECT, PodSource, limits};

use crate::tables::count;

#[map]
static POD_PORTS: HashMap<MacKey, u32> = HashMap::with_max_entries(limits::PODS, 0);
#[map]
static POD_SOURCES: HashMap<u32, PodSource> = HashMap::with_max_entries(limits::PODS, 0);

const ETHERNET: usize = 14;
/// Ethernet, and an IPv4 header without options.
const HEADERS: usize = 34;
/// Of the source address in an IPv4 packet, and of the sender's in an ARP packet for IPv4.
const IP_SOURCE: usize = ETHERNET + 12;
const ARP_SENDER: usize = ETHERNET + 14;
const IPV4: u16 = 0x0800_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();

/// The hook. Whoever else is attached behind us has a say too (`TCX_NEXT`).
#[classifier]
pub fn pod_egress(mut ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let port = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: a copy is taken at once.
    let Some(own) = (unsafe { POD_SOURCES.get(port) }).copied() else {
        return TC_ACT_UNSPEC;
    };
    if ctx.data() + HEADERS > ctx.data_end() && ctx.pull_data(HEADERS as u32).is_err() {
        // Shorter than any packet of ours: the bridge knows what to do with it.
        return TC_ACT_UNSPEC;
    }
    let Some(frame) = read::<[u8; ETHERNET]>(&ctx, 0) else {
        return TC_ACT_UNSPEC;
    };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = frame;
    let kind = u16::from_ne_bytes([t0, t1]);
    let sender = match kind {
        IPV4 => read::<u32>(&ctx, IP_SOURCE),
        ARP => read::<u32>(&ctx, ARP_SENDER),
        _ => None,
    };
    // Without an address yet: ARP probes, DHCP.
    let is_own_address = sender.is_none_or(|sender| sender == own.addr || sender == 0);
    if [s0, s1, s2, s3, s4, s5] != own.mac || !is_own_address {
        count(Metric::PodSpoofed);
        return TC_ACT_SHOT;
    }
    if own.flags & POD_DIRECT == 0 {
        return TC_ACT_UNSPEC;
    }
    let destination = MacKey {
        mac: [d0, d1, d2, d3, d4, d5],
        pad: 0,
    };
    // SAFETY: a copy is taken at once.
    match unsafe { POD_PORTS.get(destination) }.copied() {
        Some(port) => {
            count(Metric::PodDirect);
            // SAFETY: takes no pointers. Fails (and the frame is dropped) if the port is gone, as on a bridge.
            unsafe { bpf_redirect_peer(port, 0) as i32 }
        }
        None => TC_ACT_UNSPEC,
    }
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
