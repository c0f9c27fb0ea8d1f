//! Makes packets for a bench: puts one into the frame that it is run on, another one each time, and hands that to the program that
//! is to be measured. So that one sees a packet as it comes from a client every time, not what it made of the one before.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{xdp_action::XDP_ABORTED, xdp_action::XDP_TX},
    macros::{map, xdp},
    maps::{Array, LruHashMap, ProgramArray},
    programs::XdpContext,
};
use skiff_ebpf_common::{Flow, FlowKey, limits};

/// Bytes of every frame, in words: headers of IPv6 and TCP and some payload.
const WORDS: usize = 12;

/// What is made.
#[repr(C)]
pub struct Plan {
    /// The frame. IP says how much of it counts.
    frame: [u64; WORDS],
    /// How many were made.
    count: u32,
    /// Which bits of that tell one client from another.
    mask: u32,
    /// Where the source port lies.
    port_at: u32,
    /// Where the last two bytes of the source address lie.
    addr_at: u32,
}

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
/// As large as [`skiff_ebpf_common::FlowKey`] and its value.
type Key = [u64; size_of::<FlowKey>() / 8];
type Value = [u64; size_of::<Flow>() / 8];

#[map]
static CONNECTIONS: LruHashMap<Key, Value> = LruHashMap::with_max_entries(limits::NAT_FLOWS, 0);
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Makes one.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    if fill(&ctx).is_some() {
        // SAFETY: the context is this program's. Goes on only if there is no program.
        let _none = unsafe { NEXT.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn fill(ctx: &XdpContext) -> Option<()> {
    // SAFETY: one program runs at a time.
    let plan = unsafe { &mut *PLAN.get_ptr_mut(0)? };
    let client = plan.count & plan.mask;
    plan.count = plan.count.wrapping_add(1);
    let start = ctx.data();
    if start + WORDS * 8 > ctx.data_end() {
        return None;
    }
    for (word, value) in plan.frame.iter().enumerate() {
        // SAFETY: checked to lie within the frame, which begins at a multiple of 8.
        unsafe { ((start + word * 8) as *mut u64).write(*value) };
    }
    let port = 1024 + (client & 0x7fff) as u16;
    put(ctx, plan.port_at, port)?;
    put(ctx, plan.addr_at, (client >> 15) as u16)
}

#[inline(always)]
fn put(ctx: &XdpContext, at: u32, value: u16) -> Option<()> {
    let start = ctx.data() + (at as usize & 0x7f);
    if start + 2 > ctx.data_end() {
        return None;
    }
    // SAFETY: checked to lie within the frame.
    unsafe { (start as *mut u16).write_unaligned(value.to_be()) };
    Some(())
}

/// What the others are compared with.
#[xdp]
pub fn bounce(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// A connection's two entries in a table like the one that is measured: what nobody can do without who remembers connections.
#[xdp]
pub fn remember(ctx: XdpContext) -> u32 {
    match note(&ctx) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn note(ctx: &XdpContext) -> Option<()> {
    let start = ctx.data();
    if start + WORDS * 8 > ctx.data_end() {
        return None;
    }
    // Sender, receiver and ports are in these words.
    // SAFETY: checked to lie within the frame, which begins at a multiple of 8.
    let mut key: Key =
        core::array::from_fn(|word| unsafe { *((start + (3 + word) * 8) as *const u64) });
    let value = [1; size_of::<Value>() / 8];
    CONNECTIONS.insert(&key, &value, 0).ok()?;
    key[0] = !key[0];
    CONNECTIONS.insert(&key, &value, 0).ok()
}

/// Programs cannot panic: what could is refused by the verifier.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
