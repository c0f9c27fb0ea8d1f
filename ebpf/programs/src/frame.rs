//! Frames as the kernel shows them: read and written in place, checksums kept right.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace},
    programs::{TcContext, XdpContext},
};
use skiff_ebpf_common::{Addr, Flow, PROTO_UDP};
use skiff_lb::{
    packet::{ETHERNET, Headers, Packet, Part, Seen, parse},
    sum,
};

use crate::word::Word;

/// Ethernet, IPv6 without more headers, and TCP without options: enough for nearly all.
const COMMON_HEADERS: usize = ETHERNET + 40 + 20;
/// No transport's header begins behind it: IPv4's options end before.
pub(crate) const L4_MASK: usize = 0x7f;

/// What of a frame is at hand.
pub(crate) struct Frame {
    data: usize,
    end: usize,
    length: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self {
            data: ctx.data(),
            end: ctx.data_end(),
            length: ctx.len() as usize,
        }
    }

    /// One of which all is at hand.
    #[inline(always)]
    pub(crate) fn whole(ctx: &XdpContext) -> Self {
        let (data, end) = (ctx.data(), ctx.data_end());
        let length = end - data;
        // SAFETY: a live variable. Volatile, else the compiler sees what length and end have to do with each other and leaves out
        // checks that the verifier wants.
        let length = unsafe { ptr::read_volatile(&raw const length) };
        Self { data, end, length }
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<usize> {
        let start = self.data + offset;
        (start + size_of::<T>() <= self.end).then_some(start)
    }

    /// What lies at `offset`, if it is at hand.
    #[inline(always)]
    pub(crate) fn read<T: Word>(&self, offset: usize) -> Option<T> {
        let start = self.at::<T>(offset)?;
        // SAFETY: checked to lie within the frame.
        Some(unsafe { T::load(start) })
    }

    /// Writes it there, if that is at hand.
    #[inline(always)]
    pub(crate) fn write<T: Word>(&self, offset: usize, value: T) -> Option<()> {
        let start = self.at::<T>(offset)?;
        // SAFETY: checked to lie within the frame.
        unsafe { value.store(start) };
        Some(())
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.read(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        self.read(offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }
}

/// Reads the headers into `found`, and has the kernel put what they need in one piece. False: nothing for us.
///
/// A function of its own, and its result in a table's memory: the verifier then follows one way through what comes after, not
/// one for every kind of packet.
#[inline(never)]
pub(crate) fn headers(skb: *mut __sk_buff, found: &mut Headers) -> bool {
    let ctx = TcContext::new(skb);
    let mut seen = parse(&Frame::of(&ctx));
    if let Seen::More(needed) = seen {
        // An IP header tells how much its transport needs.
        let needed = needed.max((ctx.len() as usize).min(COMMON_HEADERS));
        if ctx.pull_data(needed as u32).is_err() {
            return false;
        }
        seen = parse(&Frame::of(&ctx));
    }
    match seen {
        Seen::Packet(headers) => {
            *found = headers;
            true
        }
        _ => false,
    }
}

/// Translates a frame. `hop`: it also comes a hop nearer to its end. False: that was its last, or the kernel would not let
/// it be written.
#[inline(never)]
pub(crate) fn rewrite(skb: *mut __sk_buff, headers: &Headers, flow: &Flow, hop: bool) -> bool {
    let ctx = TcContext::new(skb);
    // Of a fragment that is not the first, the transport's header is elsewhere.
    let has_ports = headers.part != Part::Later;
    // Masked: no header lies behind it, which the verifier does not know.
    let l4 = headers.l4 & L4_MASK;
    if has_ports && !rewrite_checksum(skb, headers, flow, l4) {
        return false;
    }
    let frame = Frame::of(&ctx);
    if has_ports && frame.write(l4, [flow.sport, flow.dport]).is_none() {
        return false;
    }
    let written = if headers.is_v4 {
        rewrite_v4(&frame, flow)
    } else {
        rewrite_v6(&frame, flow, skb, has_ports)
    };
    written.is_some() && (!hop || self::hop(skb, headers.is_v4))
}

#[inline(always)]
fn rewrite_checksum(skb: *mut __sk_buff, headers: &Headers, flow: &Flow, l4: usize) -> bool {
    let (at, flags) = if headers.key.proto == PROTO_UDP {
        (l4 + 6, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (l4 + 16, 0)
    };
    let with_addrs = flags | u64::from(BPF_F_PSEUDO_HDR);
    let (addrs, ports) = (u64::from(flow.addr_delta), u64::from(flow.port_delta));
    // SAFETY: the context is valid; the helper checks the offset, and knows whether the checksum is complete or the
    // hardware's to complete.
    let addrs = unsafe { bpf_l4_csum_replace(skb, at as u32, 0, addrs, with_addrs) };
    // SAFETY: as above.
    let ports = unsafe { bpf_l4_csum_replace(skb, at as u32, 0, ports, flags) };
    addrs == 0 && ports == 0
}

#[inline(always)]
fn rewrite_v4(frame: &Frame, flow: &Flow) -> Option<()> {
    frame.write(ETHERNET + 12, [flow.src.as_v4(), flow.dst.as_v4()])?;
    let checksum = frame.read::<u16>(ETHERNET + 10)?;
    frame.write(ETHERNET + 10, sum::update(checksum, flow.addr_delta))
}

#[inline(always)]
fn rewrite_v6(frame: &Frame, flow: &Flow, skb: *mut __sk_buff, summed: bool) -> Option<()> {
    frame.write::<Addr>(ETHERNET + 8, flow.src)?;
    frame.write::<Addr>(ETHERNET + 24, flow.dst)?;
    if summed {
        // The helper has taken the addresses' change for one of the packet's own sum, which an IPv4 header's checksum
        // makes good. Nothing happens if the hardware has not given such a sum.
        // SAFETY: the context is valid.
        unsafe { bpf_csum_update(skb, u32::from(flow.addr_delta)) };
    }
    Some(())
}

/// Takes one from the hops that are left. False: there was one left only.
#[inline(always)]
pub(crate) fn hop(skb: *mut __sk_buff, is_v4: bool) -> bool {
    let at = ETHERNET + if is_v4 { 8 } else { 6 };
    let frame = Frame::of(&TcContext::new(skb));
    hop_in(&frame, at, is_v4, skb).is_some()
}

#[inline(always)]
fn hop_in(frame: &Frame, at: usize, is_v4: bool, skb: *mut __sk_buff) -> Option<()> {
    let [first, second] = frame.read::<[u8; 2]>(at)?;
    let (ttl, next) = if is_v4 {
        (first, [first.wrapping_sub(1), second])
    } else {
        (second, [first, second.wrapping_sub(1)])
    };
    if ttl <= 1 {
        return None;
    }
    frame.write(at, next)?;
    let word = |bytes| u32::from(u16::from_ne_bytes(bytes));
    let delta = sum::fold(sum::change(word([first, second]), word(next)));
    if is_v4 {
        let checksum = frame.read::<u16>(ETHERNET + 10)?;
        frame.write(ETHERNET + 10, sum::update(checksum, delta))?;
    } else {
        // SAFETY: the context is valid. Does nothing without a sum of the hardware's.
        unsafe { bpf_csum_update(skb, u32::from(delta)) };
    }
    Some(())
}
