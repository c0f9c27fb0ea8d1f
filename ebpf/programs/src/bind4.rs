//! A process of the node that takes a port which is a Service's NodePort would never be reached: it is told so.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V4, guard_node_port};

/// The hook.
#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    guard_node_port::<V4>(&ctx)
}
