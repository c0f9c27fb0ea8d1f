//! The source of datagrams that a Service's backend sent to an IPv6 socket, also over IPv4.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use skiff_ebpf_common::Metric;

use crate::tables::{V6, reverse};

/// The hook.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    reverse::<V6>(&ctx, Metric::Replies)
}
