//! What the kernel tells of a link by ioctl: without its lock on links, which a deletion holds, and for a small part of
//! what a request costs.
#![allow(unsafe_code, reason = "these ioctls have no safe form")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _},
        unix::fs::MetadataExt as _,
    },
};

use nix::{errno::Errno, libc};

/// `SIOCGSKNS`, of `linux/sockios.h`.
const SIOCGSKNS: libc::Ioctl = 0x894c;

nix::ioctl_readwrite_bad!(get_name, libc::SIOCGIFNAME, libc::ifreq);
nix::ioctl_readwrite_bad!(get_index, libc::SIOCGIFINDEX, libc::ifreq);
nix::ioctl_readwrite_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
nix::ioctl_readwrite_bad!(get_mac, libc::SIOCGIFHWADDR, libc::ifreq);

/// Whether the namespace of `socket` has a link with this number.
pub(super) fn exists(socket: BorrowedFd<'_>, index: u32) -> bool {
    let mut request = empty();
    request.ifr_ifru.ifru_ifindex = index.cast_signed();
    // SAFETY: the request lives through the call.
    unsafe { get_name(socket.as_raw_fd(), &raw mut request) }.is_ok()
}

/// The number of the link of this name in the namespace of `socket`.
pub(super) fn index(socket: BorrowedFd<'_>, name: &str) -> Option<u32> {
    let mut request = named(name)?;
    // SAFETY: the request lives through the call, and its name ends with a zero.
    unsafe { get_index(socket.as_raw_fd(), &raw mut request) }.ok()?;
    // SAFETY: the kernel has just filled this member of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).ok()
}

/// The MTU of the link of this name in the namespace of `socket`.
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> Option<u32> {
    let mut request = named(name)?;
    // SAFETY: the request lives through the call, and its name ends with a zero.
    unsafe { get_mtu(socket.as_raw_fd(), &raw mut request) }.ok()?;
    // SAFETY: the kernel has just filled this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).ok()
}

/// The hardware address of the Ethernet link of this name in the namespace of `socket`.
pub(super) fn mac(socket: BorrowedFd<'_>, name: &str) -> Option<[u8; 6]> {
    let mut request = named(name)?;
    // SAFETY: the request lives through the call, and its name ends with a zero.
    unsafe { get_mac(socket.as_raw_fd(), &raw mut request) }.ok()?;
    // SAFETY: the kernel has just filled this member of the union.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let bytes = address.sa_data.first_chunk::<6>()?;
    (address.sa_family == libc::ARPHRD_ETHER).then(|| bytes.map(|byte| byte.to_ne_bytes()[0]))
}

/// What tells the namespace of `socket` from others.
pub(super) fn netns_inode(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: the request takes no argument.
    let netns = Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let netns = unsafe { File::from_raw_fd(netns) };
    Ok(netns.metadata()?.ino())
}

fn named(name: &str) -> Option<libc::ifreq> {
    let mut request = empty();
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Some(request)
}

fn empty() -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd as _};

    use super::*;

    #[test]
    fn the_loopback_is_known_by_name_and_number() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = socket.as_fd();
        let number = index(socket, "lo").unwrap();
        assert!(exists(socket, number) && !exists(socket, i32::MAX.cast_unsigned()));
        assert!(mtu(socket, "lo").is_some_and(|mtu| mtu >= 1280));
        assert_eq!(mac(socket, "lo"), None, "no Ethernet");
        let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
        match netns_inode(socket) {
            Ok(inode) => assert_eq!(inode, own.ino()),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "not root"),
        }
        for unknown in ["", "no-such-link", "sixteen-letters-"] {
            assert_eq!(index(socket, unknown), None, "{unknown}");
            assert_eq!(mtu(socket, unknown), None, "{unknown}");
            assert_eq!(mac(socket, unknown), None, "{unknown}");
        }
    }
}
