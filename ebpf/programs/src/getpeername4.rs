//! The name of the peer is the one the program connected to. `getsockname` stays as it is.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use skiff_ebpf_common::Metric;

use crate::tables::{V4, reverse};

/// The hook.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    reverse::<V4>(&ctx, Metric::PeerNames)
}
