//! Datagrams of unconnected IPv6 sockets. One to an IPv4-mapped address is IPv4's before this hook: `sendmsg4` sees it.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V6, forward};

/// The hook.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    forward::<V6>(&ctx, true)
}
