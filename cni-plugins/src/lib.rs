//! What CNI plugins and their runners share: the specification's types, the plugin skeleton, the conflist runner,
//! netlink, masquerading and address management.
//!
//! ```text
//! plugin:  skel (environment, stdin) -> Plugin::add -> netlink, ipam, firewall -> types::CniResult on stdout
//! runner:  libcni::Conflist -> libcni::CniRunner -> plugin executables, inside the node's network namespace
//! ```
//! The library starts no task that outlives its caller, but for the process in which the kernel ends a deletion of links
//! ([`netlink::Deletion`]); and nothing here depends on the node agent: the plugins work under any CNI runtime, and the
//! runner runs any CNI plugin.

pub mod firewall;
pub mod ipam;
pub mod libcni;
pub mod netlink;
pub mod overlay;
pub mod skel;
pub mod types;

mod byte_lock;
mod ident;

pub use byte_lock::{ByteLock, Holders};
pub use ident::{AliasSweep, fingerprint, host_veth_mac, host_veth_name, link_alias};
