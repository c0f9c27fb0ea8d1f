//! Requests and their answers on one socket.
//!
//! The kernel works a routing request off within the call that sends it: when that returns, the answer lies in the
//! socket, and there is nothing to wait for. So nothing here sleeps, and no task and no reactor stands behind it. A
//! dump comes in parts, each of which the kernel makes when the one before is read.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use nix::{
    errno::Errno,
    libc::{MSG_DONTWAIT, MSG_TRUNC},
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkBuffer,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::{NetlinkError, detached, probe};

/// The kernel sends no more of a dump at once. Pages that no answer reaches are never touched.
const RECEIVE_CAPACITY: usize = 32 << 10;
/// Every message begins at a multiple of this.
const ALIGNMENT: usize = 4;

/// A socket, and what it takes to tell answers from each other.
#[derive(Debug)]
pub(super) struct Exchange {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

/// What is asked for.
pub(super) struct Request {
    pub(super) action: &'static str,
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

/// What the kernel answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) messages: Vec<RouteNetlinkMessage>,
    /// Something changed while the kernel went through what it dumped.
    pub(super) is_inconsistent: bool,
}

impl Exchange {
    /// Makes a socket that belongs for good to the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        // So that dumps hold only what was asked for. Linux before 4.20 sends everything: whoever asks looks through it.
        socket.set_netlink_get_strict_chk(true).ok();
        Ok(Self {
            socket,
            sequence: 0,
            received: Vec::with_capacity(RECEIVE_CAPACITY),
        })
    }

    /// Sends one request and reads all of its answer.
    pub(super) fn ask(
        &mut self,
        action: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answer, NetlinkError> {
        let request = self.prepare(message, flags);
        self.send(&request)
            .map_err(|source| NetlinkError::Kernel { action, source })?;
        self.answer(action, flags)
    }

    /// Sends two requests at once and reads both answers. The kernel works off all that comes in one call before the
    /// caller can be killed: there is no state between the two that a process could leave behind. The second is tried
    /// also when the first fails.
    pub(super) fn ask_both(
        &mut self,
        requests: [Request; 2],
    ) -> Result<[Result<Answer, NetlinkError>; 2], NetlinkError> {
        let [first, second] = requests;
        let mut bytes = self.prepare(first.message, first.flags);
        let sequence = self.sequence;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(self.prepare(second.message, second.flags));
        let action = first.action;
        self.send(&bytes)
            .map_err(|source| NetlinkError::Kernel { action, source })?;
        let last = std::mem::replace(&mut self.sequence, sequence);
        let answer = self.answer(action, first.flags);
        self.sequence = last;
        Ok([answer, self.answer(second.action, second.flags)])
    }

    /// Reads the answer to the request that was numbered last.
    fn answer(&mut self, action: &'static str, flags: u16) -> Result<Answer, NetlinkError> {
        let failed = |source| NetlinkError::Kernel { action, source };
        let mut answer = Answer::default();
        loop {
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NetlinkError::Unanswered { action });
                }
                Err(error) => return Err(failed(error)),
            }
            if self.read(&mut answer, flags).map_err(failed)? {
                return Ok(answer);
            }
        }
    }

    /// Sends a request that deletes links, and does not wait for more than that none of `indexes` is left. Says whether
    /// it came to that.
    pub(super) fn delete_detached(
        &mut self,
        request: RouteNetlinkMessage,
        indexes: &[u32],
    ) -> bool {
        let request = self.prepare(request, NLM_F_REQUEST);
        let socket = self.socket();
        detached::send(socket, &request, || {
            !indexes.iter().any(|index| probe::exists(socket, *index))
        })
    }

    /// To be asked by ioctl.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next request as it is sent.
    fn prepare(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        self.received.clear();
        let flags = MSG_DONTWAIT | MSG_TRUNC;
        let length = self.socket.recv(&mut self.received, flags)?;
        if length > self.received.len() {
            return Err(Errno::EMSGSIZE.into());
        }
        Ok(())
    }

    /// Reads what was received; whether the answer ends with it.
    fn read(&self, answer: &mut Answer, flags: u16) -> io::Result<bool> {
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut rest = self.received.as_slice();
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let length = usize::try_from(message.length()).unwrap_or(rest.len());
            let is_ours = message.sequence_number() == self.sequence;
            let (bytes, behind) = rest.split_at(length.min(rest.len()));
            rest = behind
                .get(length.next_multiple_of(ALIGNMENT) - length..)
                .unwrap_or_default();
            // An answer that nobody read to its end.
            if !is_ours {
                continue;
            }
            let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                Ok(message) => message,
                // One odd object does not hide the others.
                Err(_unknown) if is_dump => continue,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            };
            answer.is_inconsistent |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    answer.messages.push(inner);
                    let has_more = NLM_F_MULTIPART & message.header.flags | NLM_F_ACK & flags;
                    if has_more == 0 {
                        return Ok(true);
                    }
                }
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(true),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }
}
