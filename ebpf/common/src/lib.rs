//! The ABI between the kernel side (`ebpf/programs`) and the user side (`ebpf/loader`): keys, values, constants.
//!
//! Addresses and ports are kept exactly as they lie in a packet (network byte order), so that the kernel side
//! compares and copies them without swapping. Padding is explicit, sizes are asserted. Whoever changes anything
//! here raises [`ABI_VERSION`]: the loader then builds the new tables beside the old ones and swaps.
//!
//! How the tables of Services hang together:
//!
//! ```text
//! LB_SERVICES  {addr, port, proto, scope} -> Service {inside, outside, affinity, flags}
//! LB_SETS      [set]      -> BackendSet {base, count}      one 64-bit word: published by one store
//! LB_SLOTS     [base + i] -> Slot {backend, generation}
//! LB_BACKENDS  [backend]  -> Backend {addr, port, flags, set, generation}
//! ```
//!
//! Packets from outside find their connection, both directions of it, in one more table:
//!
//! ```text
//! NAT_FLOWS    {src, dst, ports, proto} -> Flow {src, dst, ports, backend, link, state}
//! ```
//!
//! A backend set changes by filling a free run of slots and then storing one word in `LB_SETS`; a reader sees the old or
//! the new set. Slots and backends are used again only after every program that could still see them has ended
//! (the loader waits for an RCU grace period); generations catch what slips through.
//!
//! IPv4 and IPv6 share all tables: see [`Addr`].

#![no_std]
#![expect(unsafe_code, reason = "states which types are plain bytes")]

mod addr;
pub mod limits;
mod mac;
pub mod maps;
mod metric;
mod nat;
mod pod;
mod policy;
mod service;
mod trace;

pub use crate::{addr::*, mac::*, metric::*, nat::*, pod::*, policy::*, service::*, trace::*};

/// The version of everything in this crate.
pub const ABI_VERSION: u32 = 6;

/// Types that are nothing but their bytes: no padding, every bit pattern valid.
///
/// # Safety
/// Only for `repr(C)` (or primitive) types without implicit padding, pointers or niches.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers are plain.
unsafe impl Plain for u32 {}
// SAFETY: integers are plain.
unsafe impl Plain for u64 {}

macro_rules! plain {
    ($($t:ident: $size:literal),* $(,)?) => {$(
        const _: () = assert!(size_of::<$t>() == $size);
        // SAFETY: repr(C), integers only, and the size is the sum of the fields' sizes.
        unsafe impl Plain for $t {}
    )*};
}

plain! {
    Addr: 16, Mac: 6, ServiceKey: 20, Service: 36, SourceKey: 24, Source: 20, Client: 32, BackendSet: 16, Slot: 8, Backend: 32, RevNatKey: 32, RevNat: 20,
    AffinityKey: 16, Affinity: 16, Config: 48, FlowKey: 40, Flow: 88, NextHop: 12, FragmentKey: 40, PodSource: 28, PodPort: 12, TraceFilter: 32, TraceEvent: 96,
    PolicyIds: 8, PolicyCidrKey: 20, PolicyRule: 12, PolicyRuleKey: 16, PolicyConnKey: 40, PolicyConn: 16, PolicyFragKey: 40,
}
