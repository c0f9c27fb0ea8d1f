//! The name of the peer of an IPv6 socket that is connected over IPv4.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use skiff_ebpf_common::Metric;

use crate::tables::{V4Mapped, reverse};

/// The hook.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    reverse::<V4Mapped>(&ctx, Metric::PeerNames)
}
