//! The kernel side of skiff's datapath: one file per hook, the decisions in `ebpf/lb`.
//!
//! Services are translated at the cgroup's socket hooks: an address is translated once per connection (or datagram of an unconnected UDP
//! socket), before the kernel looks for a route, so packets carry the backend's address from the start.
//! In the packets' way are programs where a pod's frames enter the node and leave it, and at the links to the outside.

#![no_std]
#![no_main]
// Packets are read with instructions of our own.
#![feature(asm_experimental_arch)]
// The target has no compare-and-swap, for which the library leaves out `fetch_add` too.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod bind4;
mod bind6;
mod connect4;
mod connect6;
mod frame;
mod getpeername4;
mod getpeername6;
mod icmp;
mod nat;
mod pod_egress;
mod pod_frame;
mod pod_ingress;
mod policy;
mod recvmsg4;
mod recvmsg6;
mod sendmsg4;
mod sendmsg6;
mod tables;
mod trace;
mod uplink;
mod uplink_xdp;
mod word;

/// Programs cannot panic: what could is refused by the verifier.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
