//! Making namespaces on a thread and pinning them as bind mounts.

#![allow(
    unsafe_code,
    reason = "bringing the loopback up and asking a namespace's type are ioctls"
)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::CloneFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::{NetnsError, on_thread};

/// `NS_GET_NSTYPE`, ioctl_nsfs(2).
const NS_GET_NSTYPE: nix::libc::Ioctl = 0xb703;

nix::ioctl_read_bad!(get_flags, nix::libc::SIOCGIFFLAGS, nix::libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, nix::libc::SIOCSIFFLAGS, nix::libc::ifreq);

/// Makes the namespaces of `flags` on a fresh thread, runs `setup` in them and pins each `(kind, path)`.
/// On failure nothing stays pinned.
pub(crate) fn create(
    flags: CloneFlags,
    pins: &[(&'static str, &Path)],
    setup: impl FnOnce() -> Result<(), NetnsError> + Send,
) -> Result<(), NetnsError> {
    on_thread(|| {
        unshare(flags)?;
        setup()?;
        for (done, (kind, path)) in pins.iter().enumerate() {
            if let Err(err) = pin(kind, path) {
                for (_, earlier) in &pins[..done] {
                    // The first error is the one to report; these pins were made a moment ago.
                    delete_pinned(earlier).ok();
                }
                return Err(err);
            }
        }
        Ok(())
    })
}

#[expect(clippy::disallowed_methods, reason = "this crate owns unshare")]
fn unshare(flags: CloneFlags) -> Result<(), NetnsError> {
    nix::sched::unshare(flags).map_err(|errno| NetnsError::Setup {
        operation: "unshare",
        source: errno.into(),
    })
}

/// Where `ip netns` keeps its pins.
const IP_NETNS_DIR: &str = "/run/netns";

/// Makes `ip netns`'s folder a mount of its own, shared with other mount namespaces, as `ip netns add` does: when it
/// did so later, it would hide the pins that are there already.
fn share_ip_netns_dir(dir: &Path) -> Result<(), NetnsError> {
    let none = None::<&str>;
    let share = || mount(none, dir, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    let shared = match share() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => mount(
            Some(dir),
            dir,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )
        .and_then(|()| share()),
        result => result,
    };
    shared.map_err(|errno| NetnsError::io("sharing mounts of", dir, errno.into()))
}

fn pin(kind: &str, path: &Path) -> Result<(), NetnsError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| NetnsError::io("creating", parent, e))?;
        if parent == Path::new(IP_NETNS_DIR) {
            share_ip_netns_dir(parent)?;
        }
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(|e| NetnsError::io("creating", path, e))?;
    let source = format!("/proc/thread-self/ns/{kind}");
    mount(
        Some(source.as_str()),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| {
        // The empty file is ours; should it stay, the next sweep takes it.
        fs::remove_file(path).ok();
        NetnsError::io("pinning a namespace at", path, errno.into())
    })
}

/// Unpins a namespace and removes the file. Success if there is none.
///
/// # Errors
/// [`NetnsError::Io`] if it cannot be unmounted or removed.
pub fn delete_pinned(path: impl AsRef<Path>) -> Result<(), NetnsError> {
    let path = path.as_ref();
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            // Again: it may have been mounted over itself.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(NetnsError::io("unmounting", path, errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(NetnsError::io("removing", path, err))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_is_netns(path: &Path, file: &File) -> Result<(), NetnsError> {
    // SAFETY: the descriptor is open; the request takes no argument, and on a file that is not a namespace
    // it fails with ENOTTY.
    let kind = unsafe { nix::libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind == CloneFlags::CLONE_NEWNET.bits() {
        Ok(())
    } else {
        Err(NetnsError::NotANamespace {
            path: path.to_owned(),
        })
    }
}

/// Brings `lo` of the calling thread's network namespace up.
pub(crate) fn loopback_up() -> Result<(), NetnsError> {
    let failed = |errno: Errno| NetnsError::Setup {
        operation: "bringing the loopback interface up",
        source: errno.into(),
    };
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = nix::libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the request is a valid ifreq with a terminated name.
    unsafe { get_flags(socket.as_raw_fd(), &raw mut request) }.map_err(failed)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | UP;
    // SAFETY: as above; the kernel only reads it.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }.map_err(failed)?;
    Ok(())
}

/// `IFF_UP` in the width that the ioctl has.
const UP: nix::libc::c_short = 0x1;
