//! IPv6 sockets that connect to an IPv4 address of a Service: what Java and most servers' clients open by default.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V4Mapped, forward};

/// The hook.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    forward::<V4Mapped>(&ctx, false)
}
