//! What comes in from outside and leaves again by the same link: packets to backends on other nodes, and their answers. Here
//! the kernel has not made a packet of the frame yet (XDP), which is what costs most.
//!
//! What goes to pods of this node, leaves by another link or needs the kernel's help (fragments, a neighbour that must be asked
//! for) passes on to `uplink_in`, which knows the same flows.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{xdp_action::XDP_DROP, xdp_action::XDP_PASS, xdp_action::XDP_TX, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use skiff_ebpf_common::{Addr, Flow, Metric, PROTO_UDP, TraceVerdict};
use skiff_lb::{
    packet::{ETHERNET, Headers, Part, Seen, parse},
    sum,
};

use crate::{
    frame::{Frame, L4_MASK},
    nat::{self, Scratch},
    tables::count,
};

/// The hook.
#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    let Some(scratch) = nat::scratch() else {
        return XDP_PASS;
    };
    if !headers(ctx.ctx, &mut scratch.headers) {
        return XDP_PASS;
    }
    // SAFETY: the context is valid while the program runs.
    let link = unsafe { (*ctx.ctx).ingress_ifindex };
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    match nat::passing(ctx.as_ptr(), scratch, link, bytes) {
        nat::GO => leave(ctx.ctx, scratch, link),
        nat::DROP => XDP_DROP,
        _ => XDP_PASS,
    }
}

/// Reads the headers into `found`. False: nothing for us.
///
/// Not a function of its own in the program: the compiler would have its caller read the two ends of the frame, as the numbers of 32
/// bits that the context shows, and the verifier would not know them for pointers again.
#[inline(always)]
fn headers(md: *mut xdp_md, found: &mut Headers) -> bool {
    match parse(&Frame::whole(&XdpContext::new(md))) {
        Seen::Packet(headers) if headers.part == Part::Whole => {
            *found = headers;
            true
        }
        _ => false,
    }
}

/// Translates the frame, and sends it back out.
#[inline(always)]
fn leave(md: *mut xdp_md, scratch: &mut Scratch, link: u32) -> u32 {
    let Scratch { headers, flow, .. } = scratch;
    let frame = Frame::whole(&XdpContext::new(md));
    if frame.read(0) != Some(flow.hop.own) {
        // Not for this host.
        return XDP_PASS;
    }
    if headers.ttl <= 1 {
        count(Metric::NatExpired);
        nat::tell_dropped(scratch, link, TraceVerdict::Expired);
        return XDP_DROP;
    }
    match rewrite(&frame, headers, flow) {
        Some(()) => XDP_TX,
        // Not reached: all of it was read before.
        None => XDP_DROP,
    }
}

#[inline(always)]
fn rewrite(frame: &Frame, headers: &Headers, flow: &Flow) -> Option<()> {
    frame.write(0, [flow.hop.to, flow.hop.own])?;
    if headers.is_v4 {
        frame.write(ETHERNET + 12, [flow.src.as_v4(), flow.dst.as_v4()])?;
        let [ttl, proto] = frame.read::<[u8; 2]>(ETHERNET + 8)?;
        let next = [ttl.wrapping_sub(1), proto];
        frame.write(ETHERNET + 8, next)?;
        let word = |bytes| u32::from(u16::from_ne_bytes(bytes));
        let hop = sum::change(word([ttl, proto]), word(next));
        let checksum = frame.read::<u16>(ETHERNET + 10)?;
        let delta = sum::fold(hop + u64::from(flow.addr_delta));
        frame.write(ETHERNET + 10, sum::update(checksum, delta))?;
    } else {
        frame.write::<Addr>(ETHERNET + 8, flow.src)?;
        frame.write::<Addr>(ETHERNET + 24, flow.dst)?;
        frame.write(ETHERNET + 7, headers.ttl.wrapping_sub(1))?;
    }
    // Masked: no header lies behind it, which the verifier does not know.
    let l4 = headers.l4 & L4_MASK;
    frame.write(l4, [flow.sport, flow.dport])?;
    let delta = sum::fold(u64::from(flow.addr_delta) + u64::from(flow.port_delta));
    if headers.key.proto != PROTO_UDP {
        let checksum = frame.read::<u16>(l4 + 16)?;
        return frame.write(l4 + 16, sum::update(checksum, delta));
    }
    let checksum = frame.read::<u16>(l4 + 6)?;
    if checksum == 0 {
        // None was computed.
        return Some(());
    }
    // Zero would say that there is none (RFC 768).
    let updated = match sum::update(checksum, delta) {
        0 => 0xffff,
        other => other,
    };
    frame.write(l4 + 6, updated)
}
