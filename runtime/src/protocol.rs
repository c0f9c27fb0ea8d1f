//! What daemon and shim say to each other.
//!
//! One JSON document is one packet of a `SOCK_SEQPACKET` socket, so nothing needs framing and file
//! descriptors stay with their message. Every connection begins with [`Operation::Hello`]; any number of
//! daemons may be connected. Replies carry the request's id; the end of a
//! container goes to every connection, the end of a command to the one that asked for it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::PathBuf,
};

use jiff::Timestamp;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::types::{ExitStatus, Stdin};

/// Version of this protocol. A shim that is older than its daemon goes on with the version it has.
pub const VERSION: u32 = 1;

/// Largest packet. A socket's default send buffer holds it.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Most descriptors in one packet.
const MAX_FDS: usize = 3;

/// What the daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon; comes back with the reply.
    pub id: u64,
    /// What is asked.
    pub operation: Operation,
}

/// Everything that a shim does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Operation {
    /// First on every connection.
    Hello {
        /// The daemon's [`VERSION`].
        version: u32,
    },
    /// Create and start a container.
    Start(StartRequest),
    /// Signal a container's init.
    Signal {
        /// Which container.
        container_id: String,
        /// Signal number.
        signal: i32,
    },
    /// Run a command in a container. Without a terminal three descriptors come along: stdin, stdout, stderr.
    Exec(ExecRequest),
    /// Connect a client to a running container. A pipe for each stream that it asks for comes along.
    Attach(AttachRequest),
    /// Change the size of a container's terminal.
    Resize {
        /// Which container.
        container_id: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Forget an ended container.
    Delete {
        /// Which container.
        container_id: String,
    },
    /// Which containers there are.
    State,
    /// Kill all containers, then end.
    Shutdown,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartRequest {
    /// Its id.
    pub container_id: String,
    /// Its directory, which is the OCI bundle too.
    pub dir: PathBuf,
    /// CRI log file.
    pub log_path: PathBuf,
    /// Give it a terminal (the spec says so too).
    pub tty: bool,
    /// What its stdin is.
    pub stdin: Stdin,
    /// File with an `oom_kill` counter: `memory.oom_control` (v1) or `memory.events` (v2).
    pub oom_file: Option<PathBuf>,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// Which container.
    pub container_id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Give it a terminal; its master comes with the reply.
    pub tty: bool,
    /// The container's cgroup directories, to be joined.
    pub cgroups: Vec<PathBuf>,
}

/// A client to connect to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachRequest {
    /// Which container.
    pub container_id: String,
    /// A way to its stdin (or its terminal) is to come with the reply, if there is one.
    pub stdin: bool,
    /// The first descriptor gets its output (or what its terminal shows) from now on.
    pub stdout: bool,
    /// The next one gets its errors.
    pub stderr: bool,
}

/// What the shim sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "reply",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Reply {
    /// It is done.
    Done,
    /// To [`Operation::Hello`].
    Hello {
        /// The shim's [`VERSION`].
        version: u32,
        /// The shim's process id.
        pid: i32,
    },
    /// The container runs: its command has been executed.
    Started {
        /// Process id of its init.
        pid: i32,
        /// Since when.
        started_at: Timestamp,
    },
    /// The command runs. With a terminal its master comes along.
    ExecStarted {
        /// Process id.
        pid: i32,
    },
    /// To [`Operation::Attach`]. The container's stdin comes along.
    Attached,
    /// To [`Operation::State`].
    State {
        /// Ids of the containers that run or have not been deleted.
        containers: Vec<String>,
    },
    /// It was not done.
    Failed {
        /// Why, in the engine's words.
        message: String,
    },
}

/// Things that happen by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// A container has ended; `exit.json` says the same.
    ContainerExited {
        /// Which one.
        container_id: String,
        /// How.
        status: ExitStatus,
    },
    /// A command has ended.
    ExecExited {
        /// Its process id, as in [`Reply::ExecStarted`].
        pid: i32,
        /// Exit code; 128 + signal for a signal.
        exit_code: i32,
    },
}

/// Sends one packet.
///
/// # Errors
/// The socket's error; `InvalidInput` if the message is too large.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message too large",
        ));
    }
    send_bytes(socket, &bytes, fds)
}

/// Sends one encoded packet.
///
/// # Errors
/// The socket's error.
pub fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one packet; `None` at the end.
///
/// # Errors
/// The socket's error, or `InvalidData` for a packet that is not a `T`.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (length, fds) = receive_bytes(socket, buffer)?;
    if length == 0 {
        return Ok(None);
    }
    let bytes = buffer.get(..length).unwrap_or_default();
    let message = serde_json::from_slice(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

/// Receives one packet as it is: its length, and its descriptors.
///
/// # Errors
/// The socket's error, or `InvalidData` for a packet that does not fit.
#[expect(unsafe_code, reason = "descriptors arrive as plain numbers")]
pub fn receive_bytes(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    if message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message too large",
        ));
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        os::fd::AsFd,
    };

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap()
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (left, right) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"there").unwrap();
        file.rewind().unwrap();
        let request = Request {
            id: 3,
            operation: Operation::Exec(ExecRequest {
                container_id: "c".into(),
                command: vec!["x".repeat(100_000)],
                tty: false,
                cgroups: Vec::new(),
            }),
        };
        send(left.as_fd(), &request, &[file.as_fd()]).unwrap();
        let mut buffer = vec![0; MAX_MESSAGE];
        let (received, mut fds) = receive::<Request>(right.as_fd(), &mut buffer)
            .unwrap()
            .unwrap();
        assert_eq!(received, request);
        let mut text = String::new();
        File::from(fds.pop().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "there");
        drop(left);
        assert!(
            receive::<Request>(right.as_fd(), &mut buffer)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn what_does_not_fit_or_is_not_json_is_refused() {
        let (left, right) = pair();
        assert!(send(left.as_fd(), &"x".repeat(MAX_MESSAGE), &[]).is_err());
        send_bytes(left.as_fd(), b"{\"id\":1}", &[]).unwrap();
        let mut buffer = vec![0; 64];
        let error = receive::<Request>(right.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
