//! TCP, and UDP that connects: the socket is sent to a backend for good.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V4, forward};

/// The hook.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    forward::<V4>(&ctx, false)
}
