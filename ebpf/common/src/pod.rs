//! Pods on this node, as the programs at their links see them.

use crate::{Addr, Mac};

/// The pod's packets to other pods may go around the bridge, and theirs to it.
pub const POD_DIRECT: u16 = 1 << 0;
/// The pod has policies (or they are not known yet): they are to be asked for each packet.
pub const POD_POLICIES: u16 = 1 << 1;

/// The only source that a pod may send with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSource {
    /// Its hardware address.
    pub mac: Mac,
    /// `POD_*`.
    pub flags: u16,
    /// Its IPv4 address, network byte order. 0: none.
    pub v4: u32,
    /// Its IPv6 address. [`Addr::ANY_V6`]: none.
    pub v6: Addr,
}

/// Where a pod's address is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// The number of the node's end of the veth pair.
    pub ifindex: u32,
    /// The hardware address of the pod's end.
    pub mac: Mac,
    /// `POD_*`.
    pub flags: u16,
}

impl PodSource {
    /// The pod's address of the same family as another; any address if it has none of that.
    #[inline(always)]
    #[must_use]
    pub const fn address_like(&self, other: &Addr) -> Addr {
        if other.is_v4() {
            Addr::v4(self.v4)
        } else {
            self.v6
        }
    }
}
