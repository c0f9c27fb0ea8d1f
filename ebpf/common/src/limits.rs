//! The sizes that the programs are built with, in entries. The loader sets others.

/// Frontends.
pub const SERVICES: u32 = 131_072;
/// Backend sets.
pub const SETS: u32 = 131_072;
/// Slots.
pub const SLOTS: u32 = 1_048_576;
/// Backends.
pub const BACKENDS: u32 = 524_288;
/// Sockets with a translated peer.
pub const REV_NAT: u32 = 65_536;
/// Clients with affinity.
pub const AFFINITY: u32 = 65_536;
/// Unconnected UDP sockets that use Services.
pub const FLOWS: u32 = 16_384;
/// Prefixes of clients, of all lists.
pub const SOURCES: u32 = 65_536;
/// Network namespaces whose addresses are known.
pub const CLIENTS: u32 = 4_096;
/// Bytes for cookies that nobody has read yet: a power of two, whole pages.
pub const NEW_CLIENTS_BYTES: u32 = 65_536;
/// The node's addresses.
pub const NODE_ADDRS: u32 = 1_024;
/// Bytes for what a tracer has not read yet: a power of two, whole pages.
pub const TRACE_BYTES: u32 = 262_144;
/// Pods that a policy can tell from others, of the whole cluster: by address.
pub const POLICY_IDS: u32 = 131_072;
/// Prefixes that policies name.
pub const POLICY_CIDRS: u32 = 16_384;
/// What policies allow.
pub const POLICY_RULES: u32 = 262_144;
/// Connections of pods with policies.
pub const POLICY_CONNS: u32 = 65_536;
/// Datagrams in pieces, of pods with policies.
pub const POLICY_FRAGS: u32 = 1_024;
/// Pods on the node: upstream runs 110 by default.
pub const PODS: u32 = 4_096;
/// Directions of connections from outside: two for each.
pub const NAT_FLOWS: u32 = 131_072;
/// Fragmented datagrams of which the rest may still come.
pub const NAT_FRAGMENTS: u32 = 4_096;
