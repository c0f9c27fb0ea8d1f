//! Frames, as far as the programs at pods' links read them.

use aya_ebpf::programs::TcContext;
use skiff_ebpf_common::{Addr, Mac};

use crate::word::Word;

pub(crate) const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
/// Ethernet, and an IPv4 header without options.
const IPV4_HEADERS: usize = ETHERNET + 20;
/// Ethernet, and an IPv6 header.
const IPV6_HEADERS: usize = ETHERNET + 40;

/// What a frame carries.
#[derive(Clone, Copy)]
pub(crate) enum Payload {
    /// An IP packet from one address to another.
    Ip {
        source: Addr,
        destination: Addr,
    },
    /// An ARP packet: sender and target.
    Arp {
        sender: Addr,
    },
    Other,
}

/// A frame's head.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) destination: Mac,
    pub(crate) source: Mac,
    pub(crate) payload: Payload,
}

/// Reads a frame's head; none if it is shorter than any packet of ours.
#[inline(always)]
pub(crate) fn frame(ctx: &mut TcContext) -> Option<Frame> {
    // SAFETY: the context is valid while the program runs.
    let needed = if unsafe { (*ctx.skb.skb).protocol } == u32::from(IPV6) {
        IPV6_HEADERS
    } else {
        IPV4_HEADERS
    };
    if ctx.data() + needed > ctx.data_end() && ctx.pull_data(needed as u32).is_err() {
        return None;
    }
    let [destination, source] = read::<[Mac; 2]>(ctx, 0)?;
    let payload = match read(ctx, ETHERNET - 2)? {
        IPV4 => Payload::Ip {
            source: Addr::v4(read(ctx, ETHERNET + 12)?),
            destination: Addr::v4(read(ctx, ETHERNET + 16)?),
        },
        ARP => Payload::Arp {
            sender: Addr::v4(read(ctx, ETHERNET + 14)?),
        },
        IPV6 => Payload::Ip {
            source: Addr(read(ctx, ETHERNET + 8)?),
            destination: Addr(read(ctx, ETHERNET + 24)?),
        },
        _ => Payload::Other,
    };
    Some(Frame {
        destination,
        source,
        payload,
    })
}

/// What lies at `offset` of the frame, if the kernel holds so much of it in one piece.
#[inline(always)]
fn read<T: Word>(ctx: &TcContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: checked to lie within the packet.
    Some(unsafe { T::load(start) })
}
