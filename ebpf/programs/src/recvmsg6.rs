//! The source of datagrams that a Service's backend sent to an IPv6 socket over IPv4.
//!
//! There is no `sendmsg6` beside it: the kernel hands a datagram to an IPv4-mapped address to IPv4 before that hook,
//! where `sendmsg4` sees it.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use skiff_ebpf_common::Metric;

use crate::tables::{V4Mapped, reverse};

/// The hook.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    reverse::<V4Mapped>(&ctx, Metric::Replies)
}
