//! What a new container has as stdin, stdout and stderr, and what the shim keeps of it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use skiff_runtime::Stdin;

/// The container's ends.
pub(crate) struct ContainerStdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Ours.
pub(crate) struct OurStdio {
    /// Kept open for `attach`.
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Makes the pipes of a container without a terminal.
pub(crate) fn pipes(stdin: Stdin) -> io::Result<(OurStdio, ContainerStdio)> {
    let (stdin, our_stdin) = if stdin != Stdin::Empty {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        (reader, Some(writer))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (our_stdout, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (our_stderr, stderr) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&our_stdout)?;
    set_nonblocking(&our_stderr)?;
    let ours = OurStdio {
        stdin: our_stdin,
        stdout: our_stdout,
        stderr: our_stderr,
    };
    Ok((
        ours,
        ContainerStdio {
            stdin,
            stdout,
            stderr,
        },
    ))
}

/// A read that would wait is to say so instead.
pub(crate) fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
