//! The sockets of the calling thread's network namespace, listed and ended over `NETLINK_SOCK_DIAG`.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use skiff_ebpf_common::Addr;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `TCP_ESTABLISHED`, which UDP uses for connected sockets.
const CONNECTED: u8 = 1;
const ALL_STATES: u32 = !0;
const HEADER: usize = 16;
/// Ports, addresses, interface and cookie of a socket (`struct inet_diag_sockid`), as the kernel says them.
const ID: usize = 48;

/// A socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiagSocket {
    family: u8,
    state: u8,
    id: [u8; ID],
}

impl DiagSocket {
    fn parse(message: &[u8]) -> Option<Self> {
        let (&family, &state) = (message.first()?, message.get(1)?);
        let id = message.get(4..4 + ID)?.try_into().ok()?;
        Some(Self { family, state, id })
    }

    fn word(&self, offset: usize) -> u32 {
        let bytes = self.id.get(offset..offset + 4).unwrap_or_default();
        u32::from_ne_bytes(bytes.try_into().unwrap_or_default())
    }

    /// The socket's cookie.
    pub(crate) fn cookie(&self) -> u64 {
        u64::from(self.word(40)) | u64::from(self.word(44)) << 32
    }

    /// Address and port of the peer it is connected to, both in network byte order.
    pub(crate) fn peer(&self) -> Option<(Addr, u16)> {
        (self.state == CONNECTED).then(|| self.far_end())
    }

    /// The same in whatever state; zeroes if it has no peer.
    pub(crate) fn far_end(&self) -> (Addr, u16) {
        let [_, _, high, low, ..] = self.id;
        let addr = if i32::from(self.family) == libc::AF_INET {
            Addr::v4(self.word(20))
        } else {
            Addr([self.word(20), self.word(24), self.word(28), self.word(32)])
        };
        (addr, u16::from_ne_bytes([high, low]))
    }
}

/// A connection to the kernel, for the namespace it was opened in.
#[derive(Debug)]
pub(crate) struct SockDiag {
    socket: File,
}

impl SockDiag {
    pub(crate) fn open() -> io::Result<Self> {
        let fd: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self { socket: fd.into() })
    }

    /// All sockets of a protocol, of both families.
    pub(crate) fn sockets(&mut self, protocol: u8) -> io::Result<Vec<DiagSocket>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let wanted = DiagSocket {
                family: u8::try_from(family).unwrap_or_default(),
                state: 0,
                id: [0; ID],
            };
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, protocol, &wanted)?;
            self.receive(|message| all.extend(DiagSocket::parse(message)))?;
        }
        Ok(all)
    }

    /// Ends a socket: its owner gets `ECONNABORTED` if it waits, and `EDESTADDRREQ` when it sends over UDP. False if it has gone already.
    pub(crate) fn destroy(&mut self, protocol: u8, socket: &DiagSocket) -> io::Result<bool> {
        self.send(SOCK_DESTROY, NLM_F_ACK, protocol, socket)?;
        match self.receive(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a `struct inet_diag_req_v2`.
    fn send(&mut self, kind: u16, flags: u16, protocol: u8, of: &DiagSocket) -> io::Result<()> {
        const LENGTH: u32 = 16 + 8 + 48;
        let mut message = Vec::with_capacity(LENGTH as usize);
        message.extend(LENGTH.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence and port: one request at a time, on a socket of our own.
        message.extend([0; 8]);
        message.extend([of.family, protocol, 0, 0]);
        message.extend(ALL_STATES.to_ne_bytes());
        message.extend(of.id);
        self.socket.write_all(&message)
    }

    /// Reads an answer to its end: the acknowledgement, or the last part of a list.
    fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        // The kernel fills at most 32 KiB at once.
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = self.socket.read(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, payload, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return error_of(payload),
                    _ => each(payload),
                }
                rest = next;
            }
        }
    }
}

/// The first message: its type, what it carries, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok();
    let length = u32::from_ne_bytes(word(0)?) as usize;
    let [low, high, ..]: [u8; 4] = word(4)?;
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([low, high]), payload, next))
}

fn error_of(payload: &[u8]) -> io::Result<()> {
    let code = payload.get(..4).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        os::fd::{AsFd as _, AsRawFd as _},
    };

    use super::*;

    fn cookie(socket: &UdpSocket) -> u64 {
        const SO_COOKIE: libc::c_int = 57;
        let (mut cookie, mut len) = (0_u64, 8);
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: both pointers are to live variables of the sizes that the option has.
        let result = unsafe {
            let value = (&raw mut cookie).cast();
            libc::getsockopt(fd, libc::SOL_SOCKET, SO_COOKIE, value, &raw mut len)
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn sockets_are_found_with_their_cookie_and_peer() {
        let mut diag = SockDiag::open().unwrap();
        for (local, expected) in [
            ("127.0.0.1:0", Addr::v4(u32::from_ne_bytes([127, 0, 0, 1]))),
            ("[::1]:0", Addr([0, 0, 0, 1_u32.to_be()])),
        ] {
            let server = UdpSocket::bind(local).unwrap();
            let client = UdpSocket::bind(local).unwrap();
            let port = server.local_addr().unwrap().port();
            client.connect(server.local_addr().unwrap()).unwrap();
            let all = diag.sockets(skiff_ebpf_common::PROTO_UDP).unwrap();
            let peer_of = |socket: &UdpSocket| {
                let wanted = cookie(socket);
                let found = all.iter().find(|found| found.cookie() == wanted);
                found.unwrap().peer()
            };
            assert_eq!(peer_of(&client), Some((expected, port.to_be())));
            assert_eq!(peer_of(&server), None);
        }
    }

    #[test]
    fn messages_are_split_at_their_lengths() {
        let mut bytes = Vec::new();
        for (length, kind) in [(18_u32, 20_u16), (20, NLMSG_ERROR)] {
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(bytes.len() + length as usize - 6, 0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let (kind, payload, rest) = split(&bytes).unwrap();
        assert_eq!((kind, payload.len()), (20, 2));
        let (kind, payload, rest) = split(rest).unwrap();
        assert_eq!((kind, payload.len(), rest.len()), (NLMSG_ERROR, 4, 0));
        assert!(error_of(payload).is_ok());
        for end in 0..16 {
            assert_eq!(split(&bytes[..end]), None);
        }
        let refused = error_of(&(-libc::EPERM).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }
}
