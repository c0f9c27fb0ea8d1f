//! Pseudo-terminals of a container's own devpts.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::sys::statfs::{FsType, fstatfs};

use crate::process;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: FsType = FsType(0x1cd1);

/// Makes a pseudo-terminal; to be called inside the container. Gives (master, other end).
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/dev/pts/ptmx")?;
    // The path is the container's to forge: what is behind it must be a terminal (CVE-2025-52565).
    if fstatfs(file.as_fd())?.filesystem_type() != DEVPTS {
        return Err(io::Error::other("/dev/pts/ptmx is not a terminal's"));
    }
    let master = OwnedFd::from(file);
    process::unlock_peer(&master)?;
    let peer = process::open_peer(&master)?;
    Ok((master, peer))
}

/// Makes `terminal` the controlling one and connects stdin, stdout and stderr to it.
pub(crate) fn connect(terminal: &OwnedFd) -> io::Result<()> {
    process::set_controlling_terminal(terminal)?;
    nix::unistd::dup2_stdin(terminal)?;
    nix::unistd::dup2_stdout(terminal)?;
    nix::unistd::dup2_stderr(terminal)?;
    Ok(())
}

/// Connects stdin, stdout and stderr to three descriptors.
pub(crate) fn connect_files(files: &[OwnedFd; 3]) -> io::Result<()> {
    let [stdin, stdout, stderr] = files;
    nix::unistd::dup2_stdin(stdin)?;
    nix::unistd::dup2_stdout(stdout)?;
    nix::unistd::dup2_stderr(stderr)?;
    Ok(())
}
