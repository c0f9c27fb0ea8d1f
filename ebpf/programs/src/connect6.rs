//! IPv6 sockets that connect: to IPv6, and to an IPv4 address, which is what Java's do by default.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V6, forward};

/// The hook.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    forward::<V6>(&ctx, false)
}
