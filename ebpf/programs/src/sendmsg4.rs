//! Datagrams of unconnected UDP sockets.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V4, forward};

/// The hook.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    forward::<V4>(&ctx, true)
}
