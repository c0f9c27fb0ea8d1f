//! Running commands in containers. Their streams are pipes (or a terminal) between the daemon and the command:
//! the shim hands them over and copies nothing.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::FutureExt;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

use super::{ShimRuntime, pod::Pod};
use crate::{
    ContainerRef, ContainerState, ExecConfig, ExecSession, RuntimeError, client,
    protocol::{ExecRequest, Operation, Reply},
};

impl ShimRuntime {
    pub(super) async fn run_command(
        &self,
        id: &ContainerRef,
        config: ExecConfig,
    ) -> Result<ExecSession, RuntimeError> {
        let pod = self.of_running(id)?;
        let client = pod.client()?;
        self.expect_entry(&pod.uid, &pod.dir);
        let request = ExecRequest {
            container_id: id.container_id.clone(),
            command: config.command,
            tty: config.tty,
            cgroups: self
                .shared
                .cgroups
                .container_dirs(&id.pod_uid, &id.container_id),
        };
        let (ours, theirs) = if config.tty {
            (None, Vec::new())
        } else {
            let (ours, theirs) = streams(config.stdin).map_err(io_failed)?;
            (Some(ours), theirs)
        };
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let (reply, mut received) = client
            .call("running a command", Operation::Exec(request), &fds)
            .await?;
        let Reply::ExecStarted { pid } = reply else {
            return Err(failed("an answer to another question".to_owned()));
        };
        drop(theirs);
        let exit = exit_code(client.exec_exit(pid), &pod.uid);
        match (ours, received.pop()) {
            (Some(ours), _) => ours.session(exit).map_err(io_failed),
            (None, Some(master)) => self.terminal(master, config.stdin, exit).map_err(io_failed),
            (None, None) => Err(failed("no terminal came with the answer".to_owned())),
        }
    }

    /// The pod and the shim of a container that runs.
    pub(super) fn of_running(&self, id: &ContainerRef) -> Result<Arc<Pod>, RuntimeError> {
        let pod = self.shared.pod(&id.pod_uid)?;
        let status = pod
            .status(&id.container_id)?
            .ok_or_else(|| RuntimeError::NotFound {
                what: "container",
                id: id.container_id.clone(),
            })?;
        if matches!(status.state, ContainerState::Running { .. }) {
            Ok(pod)
        } else {
            Err(failed("the container is not running".to_owned()))
        }
    }

    fn terminal(&self, master: OwnedFd, stdin: bool, exit: Exit) -> io::Result<ExecSession> {
        let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let master = Arc::new(client::register(master)?);
        let (resize, mut sizes) = mpsc::channel(4);
        let resized = Arc::downgrade(&master);
        self.spawn(async move {
            while let Some((columns, rows)) = sizes.recv().await {
                let Some(master) = resized.upgrade() else {
                    break;
                };
                if let Err(error) = set_size(&master, columns, rows) {
                    tracing::debug!(%error, "resizing a terminal");
                }
            }
        });
        let stdin: Option<Box<dyn AsyncWrite + Send + Unpin>> = if stdin {
            Some(Box::new(Terminal(Arc::clone(&master))))
        } else {
            None
        };
        let stdout = Box::new(Terminal(master));
        Ok(ExecSession {
            stdin,
            stdout,
            stderr: None,
            resize: Some(resize),
            exit,
        })
    }
}

type Exit = futures::future::BoxFuture<'static, Result<i32, RuntimeError>>;

/// Our ends of the pipes of a command without a terminal.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Streams {
    fn session(self, exit: Exit) -> io::Result<ExecSession> {
        let stdin: Option<Box<dyn AsyncWrite + Send + Unpin>> = match self.stdin {
            Some(stdin) => Some(Box::new(pipe::Sender::from_owned_fd(stdin)?)),
            None => None,
        };
        Ok(ExecSession {
            stdin,
            stdout: Box::new(pipe::Receiver::from_owned_fd(self.stdout)?),
            stderr: Some(Box::new(pipe::Receiver::from_owned_fd(self.stderr)?)),
            resize: None,
            exit,
        })
    }
}

/// Our ends, and the command's: stdin, stdout, stderr.
fn streams(stdin: bool) -> io::Result<(Streams, Vec<OwnedFd>)> {
    let (their_stdin, stdin) = if stdin {
        let (reader, writer) = client::pipe()?;
        (reader, Some(writer))
    } else {
        (File::open(Path::new("/dev/null"))?.into(), None)
    };
    let (stdout, their_stdout) = client::pipe()?;
    let (stderr, their_stderr) = client::pipe()?;
    Ok((
        Streams {
            stdin,
            stdout,
            stderr,
        },
        vec![their_stdin, their_stdout, their_stderr],
    ))
}

fn exit_code(receiver: oneshot::Receiver<i32>, pod_uid: &str) -> Exit {
    let pod_uid = pod_uid.to_owned();
    async move {
        receiver
            .await
            .map_err(|_gone: oneshot::error::RecvError| RuntimeError::ShimLost { pod_uid })
    }
    .boxed()
}

pub(super) fn failed(message: String) -> RuntimeError {
    RuntimeError::Shim {
        operation: "running a command",
        message,
    }
}

pub(super) fn io_failed(source: io::Error) -> RuntimeError {
    RuntimeError::io("making the streams of", Path::new("a command"), source)
}

#[expect(unsafe_code, reason = "there is no safe form of this ioctl")]
fn set_size(terminal: &AsyncFd<OwnedFd>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open and the structure is what this request reads.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The master of a pseudo-terminal.
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// For writing to it only; `master` is nonblocking.
    pub(super) fn of(master: OwnedFd) -> io::Result<Self> {
        Ok(Self(Arc::new(client::register(master)?)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let result = guard.try_io(|master| Ok(nix::unistd::read(master.get_ref(), unfilled)?));
            match result {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The last process has closed the terminal: that is its end.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            let result = guard.try_io(|master| Ok(nix::unistd::write(master.get_ref(), bytes)?));
            if let Ok(result) = result {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
