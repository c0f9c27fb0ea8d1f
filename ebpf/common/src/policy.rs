//! NetworkPolicy: identities, and what they may say to each other.
//!
//! ```text
//! POLICY_IDS    address -> PolicyIds      pods that a policy can tell from others
//! POLICY_CIDRS  prefix  -> PolicyIds      everything else: the longest prefix that a policy names; none: 0
//! POLICY_RULES  {subject, peer, direction, protocol, port} prefix -> allowed
//! POLICY_CONNS  connection of a pod -> seen last
//! POLICY_FRAGS  datagram in pieces -> its first piece was let through
//! POLICY_STATE  [0] -> which of the two identities in PolicyIds holds
//! ```
//!
//! An identity stands for all addresses that no policy can tell apart. Each address has two: the one that holds and the one
//! that will. A change that gives several addresses new identities fills the second ones and then stores one word
//! (`POLICY_STATE`): every packet is judged by the old identities or by the new ones, never by some of both.
//! The rules of both are in `POLICY_RULES` meanwhile: identities never change their meaning while they are in use.

use crate::Addr;

/// Bit of an identity: what comes in is denied unless a rule allows it.
pub const IDENTITY_ISOLATED_INGRESS: u32 = 1 << 31;
/// Bit of an identity: what goes out is denied unless a rule allows it.
pub const IDENTITY_ISOLATED_EGRESS: u32 = 1 << 30;
/// The identity of what no policy names.
pub const IDENTITY_NONE: u32 = 0;
/// As a rule's peer: whoever it is.
pub const IDENTITY_ANY: u32 = u32::MAX;

/// To the pod.
pub const DIRECTION_INGRESS: u8 = 0;
/// From the pod.
pub const DIRECTION_EGRESS: u8 = 1;

/// The identity of an address in the two states of the tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyIds {
    /// By `POLICY_STATE`.
    pub ids: [u32; 2],
}

/// A prefix of addresses, as the kernel's LPM tries have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyCidrKey {
    /// In bits; of IPv4 prefixes 96 more.
    pub prefix_len: u32,
    /// The first address.
    pub addr: Addr,
}

/// What a rule is about: all of it, or less from behind ([`PolicyRuleKey::prefix_len`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRule {
    /// The identity that the policy selects.
    pub subject: u32,
    /// The identity at the other end, or [`IDENTITY_ANY`].
    pub peer: u32,
    /// `DIRECTION_*`.
    pub direction: u8,
    /// IP protocol.
    pub proto: u8,
    /// Destination port, network byte order.
    pub port: u16,
}

/// Bits of a [`PolicyRule`] that count if all protocols are allowed.
pub const RULE_BITS_ANY: u32 = 72;
/// Bits that count if all ports of a protocol are allowed.
pub const RULE_BITS_PROTO: u32 = 80;
/// All bits. Between the last two: ranges of ports.
pub const RULE_BITS_PORT: u32 = 96;

/// A rule, as the kernel's LPM tries have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRuleKey {
    /// How many bits of `rule` count.
    pub prefix_len: u32,
    /// The rule; zero where it does not count.
    pub rule: PolicyRule,
}

/// A connection as the pod sees it, or what is like one (a UDP flow, a sequence of echoes).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyConnKey {
    /// The pod's address.
    pub pod: Addr,
    /// The address at the other end.
    pub peer: Addr,
    /// The pod's port, network byte order. Echoes: the identifier if the pod asks, else 0.
    pub pod_port: u16,
    /// The other port, network byte order. Echoes: the identifier if the other end asks, else 0.
    pub peer_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// A connection that was allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyConn {
    /// When a packet of it was seen last: the kernel's monotonic clock, nanoseconds.
    pub last_seen: u64,
    /// The number of the node's end of the pod's veth pair: a later pod with the same address has another.
    pub ifindex: u32,
    /// Zero.
    pub pad: u32,
}

/// A datagram that comes in pieces: only the first one has ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyFragKey {
    /// Who sends it.
    pub source: Addr,
    /// Who gets it.
    pub destination: Addr,
    /// Its identification.
    pub id: u32,
    /// The number of the node's end of the veth pair of the pod whose policies were asked.
    pub ifindex: u32,
}

/// How long a UDP flow or anything else without a known end is remembered: conntrack's `nf_conntrack_udp_timeout_stream`.
pub const CONN_SECONDS: u64 = 120;
/// How long a sequence of echoes is remembered: conntrack's `nf_conntrack_icmp_timeout`.
pub const CONN_ECHO_SECONDS: u64 = 30;
