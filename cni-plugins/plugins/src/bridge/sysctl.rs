//! The kernel settings of links, in the network namespace of the calling thread.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
};

use skiff_cni::types::{CniError, code};
use skiff_netns::NetNs;

/// Packets are routed between the bridge and the world.
pub(super) fn enable_forwarding(v4: bool) -> Result<(), CniError> {
    let path = if v4 {
        "/proc/sys/net/ipv4/ip_forward"
    } else {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    };
    let mut value = [0];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut value));
    if read.is_ok() && value == *b"1" {
        return Ok(());
    }
    fs::write(path, "1")
        .map_err(|error| CniError::from_error(code::KERNEL, format!("cannot write {path}"), &error))
}

/// The bridge takes its routes from us, not from router advertisements of its containers. Kernels without IPv6 have no
/// such setting.
pub(super) fn ignore_router_advertisements(link: &str) -> Result<(), CniError> {
    write_if_there(link, "accept_ra", "0")
}

/// How a container's link keeps its IPv6 addresses: also while it is down; and whether the kernel asks the neighbours
/// before it uses one, the one of link scope included. Kernels without IPv6 have no such settings.
pub(super) fn keep_addresses(netns: &NetNs, link: &str, detects: bool) -> Result<(), CniError> {
    let write = || {
        // Or all of them were lost with each `ip link set down`.
        write_if_there(link, "keep_addr_on_down", "1")?;
        if detects {
            // With a number in each question, so that an echo is not taken for an answer.
            write_if_there(link, "enhanced_dad", "1")?;
            write_if_there(link, "accept_dad", "1")
        } else {
            write_if_there(link, "accept_dad", "0")
        }
    };
    netns
        .run_here(write)
        .map_err(|error| CniError::from_error(code::KERNEL, "cannot enter CNI_NETNS", &error))?
}

fn write_if_there(link: &str, setting: &str, value: &str) -> Result<(), CniError> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/{setting}");
    match fs::write(&path, value) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(CniError::from_error(
            code::KERNEL,
            format!("cannot write {path}"),
            &error,
        )),
        _ => Ok(()),
    }
}
