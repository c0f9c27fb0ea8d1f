//! Services and their backends.

use crate::Addr;

/// IPPROTO_TCP.
pub const PROTO_TCP: u8 = 6;
/// IPPROTO_UDP.
pub const PROTO_UDP: u8 = 17;
/// IPPROTO_SCTP.
pub const PROTO_SCTP: u8 = 132;

/// The address of the key is the frontend's address.
pub const SCOPE_ADDRESS: u8 = 0;
/// The address of the key is [`Addr::ANY_V4`] or [`Addr::ANY_V6`]: the port on any address of the node.
pub const SCOPE_NODE_PORT: u8 = 1;

/// Looks a frontend up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// The frontend's address.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// `PROTO_*`.
    pub proto: u8,
    /// [`SCOPE_ADDRESS`] or [`SCOPE_NODE_PORT`].
    pub scope: u8,
}

/// `externalTrafficPolicy: Local`: packets from outside are dropped, not refused, while this node has no backend.
pub const SERVICE_LOCAL_ONLY: u16 = 1 << 1;

/// Only clients in [`Service::sources`] are served.
pub const SERVICE_SOURCES: u16 = 1 << 2;
/// TCP connections of the node's sockets end with the backend's time in the set. For the user side.
pub const SERVICE_ENDS_STREAMS: u16 = 1 << 3;

/// One frontend. An element of a hash map may be given to another key while a program still reads it, hence [`Service::key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The key again. First in memory, so written first; the reader reads it last, and looks again if it differs.
    pub key: ServiceKey,
    /// Index in `LB_SETS` of the backends for clients on this node. 0: none, connections are refused.
    pub inside: u32,
    /// Index in `LB_SETS` of the backends for packets from outside, in Maglev's order. 0: closed to them.
    pub outside: u32,
    /// `sessionAffinity: ClientIP` for so many seconds. 0: none.
    pub affinity_seconds: u32,
    /// `SERVICE_*`.
    pub flags: u16,
    /// The list of `LB_SOURCES` that its clients must be in, with [`SERVICE_SOURCES`]. 0: none.
    pub sources: u16,
}

/// A prefix of a list, as the kernel's LPM tries have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// How many bits of `source` count: [`SOURCE_LIST_BITS`] and those of the prefix; of IPv4 prefixes 96 more.
    pub prefix_len: u32,
    /// The list, and the prefix's first address.
    pub source: Source,
}

/// An address and the list that it may be in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// [`Service::sources`].
    pub list: u16,
    /// Zero.
    pub pad: u16,
    /// The address.
    pub addr: Addr,
}

/// The bits of a [`Source`] before its address.
pub const SOURCE_LIST_BITS: u32 = 32;
/// All bits of a [`Source`].
pub const SOURCE_BITS: u32 = SOURCE_LIST_BITS + 128;

/// What a socket of a network namespace sends from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// [`Addr::ANY_V4`]: none.
    pub v4: Addr,
    /// [`Addr::ANY_V6`]: none.
    pub v6: Addr,
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

/// One place in a set. A set in Maglev's order has many places for each backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index in `LB_BACKENDS`.
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
    /// The address.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// `BACKEND_*`.
    pub flags: u16,
    /// The set it belongs to. 0: it is free.
    pub set: u32,
    /// Counts the uses of this id.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
}

/// A socket and the backend it really talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RevNatKey {
    /// The socket's cookie. The kernel never uses one twice.
    pub cookie: u64,
    /// The backend's address.
    pub addr: Addr,
    /// The backend's port, network byte order.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// What the socket asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevNat {
    /// The address.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Who is to keep its backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// `LB_AFFINITY`: the cookie of the client's network namespace (a pod, so an address). `LB_FLOWS`: the socket's cookie.
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
    /// Index in `LB_BACKENDS`.
    pub backend: u32,
    /// Must equal the backend's.
    pub generation: u32,
    /// When it was last used: the kernel's monotonic clock, nanoseconds.
    pub last_used: u64,
}

/// An unconnected UDP socket keeps its backend until it has been silent for so long. Conntrack's
/// `nf_conntrack_udp_timeout_stream`, so as with a proxy that translates packets.
pub const FLOW_SECONDS: u32 = 120;

/// Settings of the programs, one per node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::ABI_VERSION`]. 0: not written yet.
    pub abi: u32,
    /// First NodePort, host byte order.
    pub node_port_first: u16,
    /// Last NodePort, host byte order.
    pub node_port_last: u16,
    /// The cookie of the node's network namespace: only there does 127.0.0.1 mean the node. 0: unknown.
    pub node_netns: u64,
    /// Zero; for later.
    pub flags: u32,
    /// The node's IPv4 address: the source of packets to other nodes. 0: none.
    pub node_v4: u32,
    /// The node's IPv6 address. [`Addr::ANY_V6`]: none.
    pub node_v6: Addr,
    /// Zero.
    pub pad: u64,
}
