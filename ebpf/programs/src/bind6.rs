//! A process of the node that takes a port which is a Service's NodePort would never be reached: it is told so.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::tables::{V6, guard_node_port};

/// The hook.
#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    guard_node_port::<V6>(&ctx)
}
