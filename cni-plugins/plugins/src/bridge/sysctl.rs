//! The kernel settings of links, in the network namespace of the calling thread.

use std::{fs, io::ErrorKind};

use skiff_cni::types::{CniError, code};

/// Packets are routed between the bridge and the world.
pub(super) fn enable_forwarding(v4: bool) -> Result<(), CniError> {
    let path = if v4 {
        "/proc/sys/net/ipv4/ip_forward"
    } else {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    };
    if fs::read(path).is_ok_and(|value| value.first() == Some(&b'1')) {
        return Ok(());
    }
    fs::write(path, "1")
        .map_err(|error| CniError::from_error(code::KERNEL, format!("cannot write {path}"), &error))
}

/// The bridge takes its routes from us, not from router advertisements of its containers. Kernels without IPv6 have no
/// such setting.
pub(super) fn ignore_router_advertisements(link: &str) -> Result<(), CniError> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
    match fs::write(&path, "0") {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(CniError::from_error(
            code::KERNEL,
            format!("cannot write {path}"),
            &error,
        )),
        _ => Ok(()),
    }
}
