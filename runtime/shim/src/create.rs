//! Creating and starting a container, in a fork of the shim. The engine makes the container's init a sibling
//! of that fork, so the shim is its parent.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use nix::{
    fcntl::OFlag,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
    },
    unistd::{chdir, pipe2, setgroups},
};
use serde::{Deserialize, Serialize};
use skiff_runtime::{
    layout::ENGINE_DIR,
    protocol::{self, StartRequest},
};

use crate::{
    error::{ShimError, chain, system},
    executable::InitExecutor,
    process,
    stdio::ContainerStdio,
};

/// Where the engine hands over a container's terminal; in the container's directory.
const CONSOLE_SOCKET: &str = "console.sock";

/// What a fork reports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    /// The command has been executed. With a terminal its master comes along.
    Started {
        /// Process id.
        pid: i32,
    },
    /// It has not.
    Failed {
        /// Why.
        message: String,
    },
}

/// Longest reason that is passed on.
const MAX_REASON: usize = 4096;

/// Sends what a fork has come to. Returns its exit code.
pub(crate) fn report(socket: &OwnedFd, result: Result<(i32, Option<OwnedFd>), ShimError>) -> i32 {
    let (outcome, fd) = match result {
        Ok((pid, fd)) => (Outcome::Started { pid }, fd),
        Err(error) => {
            let message = chain(&error).to_string().chars().take(MAX_REASON).collect();
            (Outcome::Failed { message }, None)
        }
    };
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    i32::from(protocol::send(socket.as_fd(), &outcome, &fds).is_err())
}

/// Does it. `stdio` is `None` for a container with a terminal, whose master is returned.
pub(crate) fn create(
    request: &StartRequest,
    stdio: Option<ContainerStdio>,
) -> Result<(i32, Option<OwnedFd>), ShimError> {
    clean_fork()?;
    let (mut reasons, report) = reason_pipe()?;
    let mut builder = ContainerBuilder::new(request.container_id.clone(), SyscallType::default())
        .validate_id()?
        .with_root_path(request.dir.join(ENGINE_DIR))?
        .with_executor(InitExecutor {
            report: Rc::new(report),
        });
    let console = if let Some(stdio) = stdio {
        builder = builder
            .with_stdin(stdio.stdin)
            .with_stdout(stdio.stdout)
            .with_stderr(stdio.stderr);
        None
    } else {
        builder = builder.with_console_socket(Some(request.dir.join(CONSOLE_SOCKET)));
        Some(Console::listen(&request.dir)?)
    };
    let mut container = builder
        .as_init(&request.dir)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()?;
    let pid = container.pid().map(|pid| pid.as_raw());
    let pid = pid.ok_or_else(|| ShimError::Refused("the engine made no process".to_owned()))?;
    let master = console.map(|console| console.receive()).transpose()?;
    container.start()?;
    // Ends when the command has been executed, or with the reason why it cannot be.
    let mut reason = String::new();
    reasons
        .read_to_string(&mut reason)
        .map_err(system("waiting for the command"))?;
    if reason.is_empty() {
        Ok((pid, master))
    } else {
        Err(ShimError::Command(reason))
    }
}

/// Undoes in a fork what is the shim's own: signals, supplementary groups, its safety from the OOM killer.
pub(crate) fn clean_fork() -> Result<(), ShimError> {
    process::reset_signals().map_err(system("resetting signals"))?;
    // The engine leaves them alone if the spec names none.
    setgroups(&[]).map_err(system("dropping supplementary groups"))?;
    // Refused if ours was raised by who started the daemon: then it stays raised.
    fs::write("/proc/self/oom_score_adj", "0").ok();
    Ok(())
}

/// A pipe that a successful execve closes: (reader, writer).
pub(crate) fn reason_pipe() -> Result<(File, File), ShimError> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(system("making a pipe"))?;
    Ok((reader.into(), writer.into()))
}

/// The socket on which the engine hands over a terminal.
struct Console(OwnedFd);

impl Console {
    /// Binds by a relative path: the directory may be deeper than an address is long.
    fn listen(dir: &Path) -> Result<Self, ShimError> {
        let make = || -> nix::Result<OwnedFd> {
            let kind = SockType::Stream;
            let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            chdir(dir)?;
            bind(fd.as_raw_fd(), &UnixAddr::new(CONSOLE_SOCKET)?)?;
            listen(&fd, Backlog::new(1)?)?;
            Ok(fd)
        };
        make().map(Self).map_err(system("listening for a terminal"))
    }

    fn receive(self) -> Result<OwnedFd, ShimError> {
        let connection = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)
            .map_err(system("accepting a terminal"))?;
        // Taken over at once, so that it is closed.
        let connection = process::own(connection);
        let mut name = [0; 64];
        let (_, mut fds) = protocol::receive_bytes(connection.as_fd(), &mut name)
            .map_err(system("receiving a terminal"))?;
        fds.pop()
            .ok_or_else(|| ShimError::Refused("the engine sent no terminal".to_owned()))
    }
}
