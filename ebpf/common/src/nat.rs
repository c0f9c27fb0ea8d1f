//! Connections of clients outside the node, which are translated packet by packet.

use crate::{Addr, Mac};

/// A connection as the packets of one direction show it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The sender.
    pub src: Addr,
    /// The receiver.
    pub dst: Addr,
    /// The sender's port, network byte order.
    pub sport: u16,
    /// The receiver's port, network byte order.
    pub dport: u16,
    /// `PROTO_*`.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// From the backend to the client. Otherwise from the client.
pub const FLOW_REPLY: u16 = 1 << 0;
/// The backend is on another node, and sees an address of this node as its client.
pub const FLOW_REMOTE: u16 = 1 << 1;
/// There is no backend: the packet goes to a port of the node where nothing listens, so that the kernel refuses it.
pub const FLOW_REFUSED: u16 = 1 << 2;

/// A packet that does not open a connection was seen (TCP).
pub const FLOW_OPEN: u8 = 1 << 0;
/// FIN was seen.
pub const FLOW_FIN: u8 = 1 << 1;
/// RST was seen.
pub const FLOW_RESET: u8 = 1 << 2;

/// What is done with the packets of one direction of a connection. Each connection has two, one for each direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The sender as it is to be.
    pub src: Addr,
    /// The receiver as it is to be.
    pub dst: Addr,
    /// Network byte order.
    pub sport: u16,
    /// Network byte order.
    pub dport: u16,
    /// The ports of the key again, [`FlowKey::sport`] first in memory: an element of the table may be given to another
    /// connection while a program still reads it.
    pub of_ports: u32,
    /// Index in `LB_BACKENDS`.
    pub backend: u32,
    /// Must equal the backend's, for packets that may change to another.
    pub generation: u32,
    /// Index in `LB_SETS`.
    pub set: u32,
    /// The number of the link where the client is.
    pub link: u32,
    /// The number of the link that the packet leaves by. 0: it stays on the node, or goes where the node routes it.
    pub out: u32,
    /// What the changed addresses add to a ones' complement sum, as it lies in memory.
    pub addr_delta: u16,
    /// The same for the ports.
    pub port_delta: u16,
    /// When a packet was last seen: the kernel's coarse monotonic clock, nanoseconds; written once a second at most.
    pub last_seen: u64,
    /// `FLOW_REPLY` and its like.
    pub flags: u16,
    /// `FLOW_OPEN` and its like.
    pub state: u8,
    /// Zero.
    pub pad: u8,
    /// How a frame leaves by `out`, once the programs that make frames themselves (XDP) have asked; all zero before.
    pub hop: NextHop,
}

/// Where a frame goes on its link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// The hardware address of the next host; all zero if it is not known.
    pub to: Mac,
    /// The link's own.
    pub own: Mac,
}

impl NextHop {
    /// Not known.
    pub const UNKNOWN: Self = Self {
        to: Mac([0; 3]),
        own: Mac([0; 3]),
    };
}

/// The datagram that a fragment is part of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The sender.
    pub src: Addr,
    /// The receiver.
    pub dst: Addr,
    /// The datagram's identification.
    pub id: u32,
    /// `PROTO_*`.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// A source port of connections to backends on other nodes is one of this many from [`SNAT_FIRST`] on: below NodePorts and the
/// ports that the kernel gives to sockets.
pub const SNAT_PORTS: u16 = 16_384;
/// The first of them.
pub const SNAT_FIRST: u16 = 10_240;
