//! The source of datagrams that a Service's backend sent.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use skiff_ebpf_common::Metric;

use crate::tables::{V4, reverse};

/// The hook.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    reverse::<V4>(&ctx, Metric::Replies)
}
