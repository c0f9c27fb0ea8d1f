//! The ABI between the kernel side (`ebpf/programs`) and the user side (`ebpf/loader`): keys, values, constants.
//!
//! Addresses and ports are kept exactly as they lie in a packet (network byte order), so that the kernel side
//! compares and copies them without swapping. Padding is explicit, sizes are asserted. Whoever changes anything
//! here raises [`ABI_VERSION`]: the loader then builds the new tables beside the old ones and swaps.
//!
//! How the tables hang together:
//!
//! ```text
//! LB4_SERVICES  {addr, port, proto, scope} -> Service {set, set_local, affinity, flags}
//! LB4_SETS      [set]      -> BackendSet {base, count}      one 64-bit word: published by one store
//! LB4_SLOTS     [base + i] -> Slot {backend, generation}
//! LB4_BACKENDS  [backend]  -> Backend {addr, port, flags, set, generation}
//! ```
//!
//! A backend set changes by filling a free run of slots and then storing one word in `LB4_SETS`; a reader sees the old or
//! the new set. Slots and backends are used again only after every program that could still see them has ended
//! (the loader waits for an RCU grace period); generations catch what slips through.
//!
//! IPv6 will be a second family of maps (`LB6_*`) with wider keys; sets and slots have no address and are shared.

#![no_std]
#![expect(unsafe_code, reason = "states which types are plain bytes")]

/// The version of everything in this crate.
pub const ABI_VERSION: u32 = 2;

/// Map names: at most 15 characters, the kernel cuts off the rest.
pub mod maps {
    /// Frontends: [`crate::ServiceKey`] to [`crate::Service`].
    pub const SERVICES: &str = "LB4_SERVICES";
    /// Backend sets by index: [`crate::BackendSet`].
    pub const SETS: &str = "LB4_SETS";
    /// The members of the sets: [`crate::Slot`].
    pub const SLOTS: &str = "LB4_SLOTS";
    /// Backends by id: [`crate::Backend`].
    pub const BACKENDS: &str = "LB4_BACKENDS";
    /// What a socket believes it talks to: [`crate::RevNatKey`] to [`crate::RevNat`].
    pub const REV_NAT: &str = "LB4_REV_NAT";
    /// Client to backend, for session affinity: [`crate::AffinityKey`] to [`crate::Affinity`].
    pub const AFFINITY: &str = "LB4_AFFINITY";
    /// Unconnected UDP socket to backend: same types as [`AFFINITY`].
    pub const FLOWS: &str = "LB4_FLOWS";
    /// The node's own addresses (a set).
    pub const NODE_ADDRS: &str = "LB4_NODE_ADDRS";
    /// Pods' hardware addresses: [`crate::MacKey`] to the number of the node's end of their veth pair.
    pub const POD_PORTS: &str = "POD_PORTS";
    /// What a pod may send as: the number of the node's end to [`crate::PodSource`].
    pub const POD_SOURCES: &str = "POD_SOURCES";
    /// One [`crate::Config`].
    pub const CONFIG: &str = "LB_CONFIG";
    /// Per-CPU counters, indexed by [`crate::Metric`].
    pub const METRICS: &str = "LB_METRICS";
    /// All of them.
    pub const ALL: [&str; 12] = [
        SERVICES,
        SETS,
        SLOTS,
        BACKENDS,
        REV_NAT,
        AFFINITY,
        FLOWS,
        NODE_ADDRS,
        POD_PORTS,
        POD_SOURCES,
        CONFIG,
        METRICS,
    ];
}

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
    ServiceKey: 8, Service: 24, BackendSet: 16, Slot: 8, Backend: 16, RevNatKey: 16, RevNat: 8,
    AffinityKey: 16, Affinity: 16, Config: 24, MacKey: 8, PodSource: 12,
}

/// IPPROTO_TCP.
pub const PROTO_TCP: u8 = 6;
/// IPPROTO_UDP.
pub const PROTO_UDP: u8 = 17;

/// The address of the key is the frontend's address.
pub const SCOPE_ADDRESS: u8 = 0;
/// The address of the key is zero: the port on any address of the node.
pub const SCOPE_NODE_PORT: u8 = 1;

/// Looks a frontend up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// Network byte order.
    pub addr: u32,
    /// Network byte order.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// [`SCOPE_ADDRESS`] or [`SCOPE_NODE_PORT`].
    pub scope: u8,
}

/// The hooks on this node use [`Service::set_local`].
///
/// Set for `internalTrafficPolicy: Local`. `externalTrafficPolicy: Local` does not set it: it concerns traffic from
/// outside, for which [`Service::set_local`] is kept ready.
pub const SERVICE_LOCAL_ONLY: u16 = 1 << 0;

/// One frontend. An element of a hash map may be given to another key while a program still reads it, hence [`Service::key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The key again. First in memory, so written first; the reader reads it last, and looks again if it differs.
    pub key: ServiceKey,
    /// Index in `LB4_SETS` of all backends. 0: none.
    pub set: u32,
    /// Index in `LB4_SETS` of the backends on this node, where a traffic policy asks for them. 0: none.
    pub set_local: u32,
    /// `sessionAffinity: ClientIP` for so many seconds. 0: none.
    pub affinity_seconds: u32,
    /// `SERVICE_*`.
    pub flags: u16,
    /// Zero.
    pub pad: u16,
}

/// A backend set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSet {
    /// The run of slots, packed by [`SetWord`]: always stored and loaded as one.
    pub word: u64,
    /// Whose set this is, for the user side: a stable hash of namespace, name, port and scope.
    pub owner: u64,
}

/// A run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetWord {
    /// The first slot.
    pub base: u32,
    /// How many. 0: no backend, connections are refused.
    pub count: u32,
}

impl SetWord {
    /// As it is stored.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.base as u64) << 32 | self.count as u64
    }

    /// From what is stored.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
    pub const fn unpack(word: u64) -> Self {
        Self {
            base: (word >> 32) as u32,
            count: word as u32,
        }
    }
}

/// One member of a set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index in `LB4_BACKENDS`.
    pub backend: u32,
    /// Must equal the backend's.
    pub generation: u32,
}

/// The backend is on this node.
pub const BACKEND_LOCAL: u16 = 1 << 0;
/// The backend is terminating, and used because nothing else is ready.
pub const BACKEND_TERMINATING: u16 = 1 << 1;

/// One backend of one set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Network byte order.
    pub addr: u32,
    /// Network byte order.
    pub port: u16,
    /// `BACKEND_*`.
    pub flags: u16,
    /// The set it belongs to. 0: it is free.
    pub set: u32,
    /// Counts the uses of this id.
    pub generation: u32,
}

/// A socket and the backend it really talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RevNatKey {
    /// The socket's cookie. The kernel never uses one twice.
    pub cookie: u64,
    /// The backend's address, network byte order.
    pub addr: u32,
    /// The backend's port, network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// What the socket asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevNat {
    /// Network byte order.
    pub addr: u32,
    /// Network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Who is to keep its backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// `LB4_AFFINITY`: the cookie of the client's network namespace (a pod, so an address). `LB4_FLOWS`: the socket's cookie.
    pub client: u64,
    /// The backend set.
    pub set: u32,
    /// Zero.
    pub pad: u32,
}

/// The backend it keeps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Index in `LB4_BACKENDS`.
    pub backend: u32,
    /// Must equal the backend's.
    pub generation: u32,
    /// When it was last used: the kernel's monotonic clock, nanoseconds.
    pub last_used: u64,
}

/// An unconnected UDP socket keeps its backend until it has been silent for so long. Conntrack's
/// `nf_conntrack_udp_timeout_stream`, so as with a proxy that translates packets.
pub const FLOW_SECONDS: u32 = 120;

/// A hardware address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacKey {
    /// As in the frame.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: u16,
}

/// The pod's packets to other pods may go around the bridge.
pub const POD_DIRECT: u16 = 1 << 0;

/// The only source that a pod may send with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSource {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// `POD_*`.
    pub flags: u16,
    /// Its IPv4 address, network byte order.
    pub addr: u32,
}

/// Settings of the programs, one per node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`ABI_VERSION`]. 0: not written yet.
    pub abi: u32,
    /// First NodePort, host byte order.
    pub node_port_first: u16,
    /// Last NodePort, host byte order.
    pub node_port_last: u16,
    /// The cookie of the node's network namespace: only there does 127.0.0.1 mean the node. 0: unknown.
    pub node_netns: u64,
    /// Zero; for later.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// What is counted, per CPU.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Connections (TCP, and UDP by `connect`) sent to a backend.
    Connects = 0,
    /// Datagrams of unconnected sockets sent to a backend.
    Datagrams = 1,
    /// Refused because the Service has no backend.
    Refused = 2,
    /// Of the above, how many kept their backend by session affinity.
    AffinityHits = 3,
    /// Replies whose source was turned back.
    Replies = 4,
    /// The name of the Service was given as the peer's.
    PeerNames = 5,
    /// A table could not be written because it is full.
    TableFull = 6,
    /// A set could not be read consistently in all attempts; refused.
    Inconsistent = 7,
    /// Packets from pod to pod that went around the bridge.
    PodDirect = 8,
    /// Packets of pods with a source that is not theirs; dropped.
    PodSpoofed = 9,
}

/// How many [`Metric`]s there are.
pub const METRICS: u32 = 10;

/// The sizes that the programs are built with. The loader sets others.
pub mod limits {
    /// Frontends.
    pub const SERVICES: u32 = 131_072;
    /// Backend sets.
    pub const SETS: u32 = 131_072;
    /// Slots.
    pub const SLOTS: u32 = 524_288;
    /// Backends.
    pub const BACKENDS: u32 = 524_288;
    /// Sockets with a translated peer.
    pub const REV_NAT: u32 = 65_536;
    /// Clients with affinity.
    pub const AFFINITY: u32 = 65_536;
    /// Unconnected UDP sockets that use Services.
    pub const FLOWS: u32 = 16_384;
    /// The node's addresses.
    pub const NODE_ADDRS: u32 = 1_024;
    /// Pods on the node: upstream runs 110 by default.
    pub const PODS: u32 = 4_096;
}
