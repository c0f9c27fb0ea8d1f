//! The daemon's end of one shim's socket.
//!
//! One task per shim reads replies and events until the socket ends; requests are sent from wherever they
//! arise. When the shim is gone every waiting request fails with [`RuntimeError::ShimLost`].

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    fcntl::OFlag,
    sys::socket::{
        AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, listen,
        shutdown, socket,
    },
};
use parking_lot::Mutex;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
};

use crate::{
    RuntimeError,
    layout::SOCKET_FILE,
    protocol::{self, Event, Message, Operation, Reply, Request},
};

/// Daemons that may wait to be accepted.
const BACKLOG: i32 = 8;

type Answer = (Reply, Vec<OwnedFd>);

/// A connection to a shim.
pub(crate) struct ShimClient {
    pod_uid: String,
    socket: AsyncFd<OwnedFd>,
    next_id: AtomicU64,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    closed: bool,
    replies: HashMap<u64, oneshot::Sender<Answer>>,
    /// Who waits for the end of a command; or the exit code, if the command was faster than its reply.
    execs: HashMap<i32, ExecWait>,
}

enum ExecWait {
    Waiting(oneshot::Sender<i32>),
    Ended(i32),
}

impl ShimClient {
    /// Connects to the shim whose socket is in `dir`. [`Self::read_loop`] must run for calls to end.
    pub(crate) fn connect(pod_uid: &str, dir: &Path) -> Result<Arc<Self>, RuntimeError> {
        let at =
            |source: io::Error| RuntimeError::io("connecting to", &dir.join(SOCKET_FILE), source);
        let socket = new_socket(SockFlag::SOCK_NONBLOCK).map_err(at)?;
        let directory = File::open(dir).map_err(at)?;
        let address = socket_address(directory.as_fd()).map_err(at)?;
        connect(socket.as_raw_fd(), &address).map_err(|errno| at(errno.into()))?;
        Ok(Arc::new(Self {
            pod_uid: pod_uid.to_owned(),
            socket: register(socket).map_err(at)?,
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
        }))
    }

    /// Asks and waits for the answer. A refusal is [`RuntimeError::Shim`] with `operation`.
    pub(crate) async fn call(
        &self,
        operation: &'static str,
        request: Operation,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, RuntimeError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.pending.lock();
            if pending.closed {
                return Err(self.lost());
            }
            pending.replies.insert(id, sender);
        }
        let failed = |message: String| RuntimeError::Shim { operation, message };
        let bytes = serde_json::to_vec(&Request {
            id,
            operation: request,
        })
        .map_err(|error| failed(error.to_string()))?;
        let sent = if bytes.len() > protocol::MAX_MESSAGE {
            Err(failed("the request is too large".to_owned()))
        } else {
            self.send(&bytes, fds).await
        };
        if let Err(error) = sent {
            self.pending.lock().replies.remove(&id);
            return Err(error);
        }
        let (reply, fds) = receiver
            .await
            .map_err(|_closed: oneshot::error::RecvError| self.lost())?;
        match reply {
            Reply::Failed { message } => Err(failed(message)),
            reply => Ok((reply, fds)),
        }
    }

    /// Resolves to the exit code of a command, by the process id of [`Reply::ExecStarted`].
    pub(crate) fn exec_exit(&self, pid: i32) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        let mut pending = self.pending.lock();
        match pending.execs.remove(&pid) {
            // The receiver is in our hand: this cannot fail.
            Some(ExecWait::Ended(code)) => drop(sender.send(code)),
            _ if pending.closed => {}
            _ => drop(pending.execs.insert(pid, ExecWait::Waiting(sender))),
        }
        receiver
    }

    /// Reads until the shim is gone. Container events go to `events`.
    pub(crate) async fn read_loop(&self, events: mpsc::UnboundedSender<Event>) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let message = self.receive(&mut buffer).await;
            match message {
                Ok(Some((Message::Reply { id, reply }, fds))) => {
                    let waiting = self.pending.lock().replies.remove(&id);
                    if let Some(waiting) = waiting {
                        // Who asked may have been cancelled.
                        waiting.send((reply, fds)).ok();
                    }
                }
                Ok(Some((Message::Event(Event::ExecExited { pid, exit_code }), _))) => {
                    self.exec_exited(pid, exit_code);
                }
                Ok(Some((Message::Event(event), _))) => {
                    if events.send(event).is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(pod_uid = self.pod_uid, %error, "reading from the shim");
                    break;
                }
            }
        }
        let mut pending = self.pending.lock();
        pending.closed = true;
        pending.replies.clear();
        pending.execs.clear();
    }

    /// Ends the connection: [`Self::read_loop`] returns.
    pub(crate) fn close(&self) {
        // It may be closed already.
        shutdown(self.socket.as_raw_fd(), Shutdown::Both).ok();
    }

    fn exec_exited(&self, pid: i32, code: i32) {
        let mut pending = self.pending.lock();
        if let Some(ExecWait::Waiting(waiting)) = pending.execs.remove(&pid) {
            // Nobody may care any more.
            waiting.send(code).ok();
        } else {
            pending.execs.insert(pid, ExecWait::Ended(code));
        }
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), RuntimeError> {
        loop {
            let mut guard = self
                .socket
                .writable()
                .await
                .map_err(|_gone: io::Error| self.lost())?;
            match guard.try_io(|socket| protocol::send_bytes(socket.as_fd(), bytes, fds)) {
                Ok(result) => return result.map_err(|_gone: io::Error| self.lost()),
                Err(_would_block) => {}
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| protocol::receive(socket.as_fd(), buffer)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    fn lost(&self) -> RuntimeError {
        RuntimeError::ShimLost {
            pod_uid: self.pod_uid.clone(),
        }
    }
}

/// Makes the socket that a new shim listens on, so that nobody has to wait for the shim to make it.
pub(crate) fn listen_in(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let listener = new_socket(SockFlag::empty())?;
    bind(listener.as_raw_fd(), &socket_address(dir)?)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// The pod's directory may be deeper than the 108 bytes of an address: go by its descriptor.
fn socket_address(dir: BorrowedFd<'_>) -> io::Result<UnixAddr> {
    let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
    Ok(UnixAddr::new(path.as_str())?)
}

/// A pipe: the end that stays with us, nonblocking through tokio, and the end that goes to the shim.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Has tokio's reactor watch a nonblocking descriptor.
#[expect(unsafe_code, reason = "tokio wants a promise that the type makes")]
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, the same, and nobody else's to close for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
