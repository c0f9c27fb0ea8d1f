//! The name of the peer of a connected IPv6 socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use skiff_ebpf_common::Metric;

use crate::tables::{V6, reverse};

/// The hook.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    reverse::<V6>(&ctx, Metric::PeerNames)
}
