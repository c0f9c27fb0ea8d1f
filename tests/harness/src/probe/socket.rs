//! One socket of a client, and what is said on it.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::protocol::{Answer, How};

/// An open socket.
#[derive(Debug)]
pub(super) enum Client {
    Tcp(TcpStream),
    Udp {
        socket: UdpSocket,
        /// Named with each datagram; none if the socket is connected.
        peer: Option<SocketAddr>,
        /// Of the last datagram: an answer to an earlier one is not taken for an answer to this.
        number: u32,
    },
}

impl Client {
    /// Opens one; `answer` gets its addresses as the kernel tells them.
    pub(super) fn open(
        how: How,
        addr: SocketAddr,
        from: Option<IpAddr>,
        patience: Duration,
        answer: &mut Answer,
    ) -> io::Result<Self> {
        if how == How::Tcp {
            let stream = connect_tcp(addr, from, patience)?;
            count(&mut answer.peers, stream.peer_addr()?);
            count(&mut answer.locals, stream.local_addr()?.ip());
            return Ok(Self::Tcp(stream));
        }
        let from = from.unwrap_or(match addr {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        let socket = UdpSocket::bind((from, 0))?;
        let connected = how == How::Udp;
        if connected {
            socket.connect(addr)?;
            count(&mut answer.locals, socket.local_addr()?.ip());
            count(&mut answer.peers, socket.peer_addr()?);
        }
        Ok(Self::Udp {
            socket,
            peer: (!connected).then_some(addr),
            number: 0,
        })
    }

    /// Asks once and counts what comes.
    pub(super) fn say(&mut self, patience: Duration, answer: &mut Answer) {
        let result = match self {
            Self::Tcp(stream) => say_tcp(stream, patience),
            Self::Udp {
                socket,
                peer,
                number,
            } => {
                *number += 1;
                say_udp(socket, *peer, *number, patience, answer)
            }
        };
        note(result, answer);
    }
}

/// Sends bytes to one who sends them back; whether they come back as they were. `patience` is for each step.
pub(super) fn transfer(addr: SocketAddr, bytes: usize, patience: Duration) -> io::Result<String> {
    let mut stream = connect_tcp(addr, None, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut writer = stream.try_clone()?;
    writer.set_write_timeout(Some(patience))?;
    // Not the same in every segment.
    let sent: Vec<u8> = (0..bytes).map(|n| (n / 7).to_le_bytes()[n % 2]).collect();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut received = Vec::with_capacity(bytes);
    stream.read_to_end(&mut received)?;
    let written = writing.join();
    written.map_err(|_panic| io::Error::other("the writer has panicked"))??;
    Ok(if received == sent {
        "same"
    } else {
        "different"
    }
    .to_owned())
}

/// Counts an answer (`NAME|SOURCE`) or a failure.
pub(super) fn note(result: io::Result<String>, answer: &mut Answer) {
    match result {
        Ok(text) => {
            let (name, source) = text.split_once('|').unwrap_or((&text, "?"));
            count(&mut answer.names, name);
            count(&mut answer.sources, source);
        }
        Err(error) => {
            let timeout = matches!(
                error.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
            ) || error.raw_os_error() == Some(Errno::EINPROGRESS as i32);
            let errno = if timeout {
                Errno::ETIMEDOUT as i32
            } else {
                error.raw_os_error().unwrap_or(0)
            };
            *answer.errors.entry(errno).or_default() += 1;
        }
    }
}

fn count(counts: &mut std::collections::BTreeMap<String, u32>, what: impl ToString) {
    *counts.entry(what.to_string()).or_default() += 1;
}

fn connect_tcp(
    addr: SocketAddr,
    from: Option<IpAddr>,
    patience: Duration,
) -> io::Result<TcpStream> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let made: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(from) = from {
        let from = SockaddrStorage::from(SocketAddr::new(from, 0));
        bind(made.as_raw_fd(), &from)?;
    }
    // Bounds `connect` too, which then says EINPROGRESS.
    let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&made.as_fd(), sockopt::SendTimeout, &limit)?;
    connect(made.as_raw_fd(), &SockaddrStorage::from(addr))?;
    // Closing resets: thousands of sockets in TIME_WAIT would use up the ports.
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&made.as_fd(), sockopt::Linger, &linger)?;
    Ok(TcpStream::from(made))
}

/// A new connection is greeted; on one that was, a line is answered. Both look the same: one line.
fn say_tcp(stream: &mut TcpStream, patience: Duration) -> io::Result<String> {
    stream.write_all(b"?\n")?;
    let deadline = Instant::now() + patience;
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut byte)? {
            0 => return Err(io::Error::from_raw_os_error(Errno::ECONNRESET as i32)),
            _ if byte == *b"\n" => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ => line.extend(byte),
        }
    }
}

/// The status of an HTTP server's answer to `GET /`.
pub(super) fn http_status(addr: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = connect_tcp(addr, None, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split(' ').nth(1).unwrap_or("no status").to_owned())
}

fn say_udp(
    socket: &UdpSocket,
    peer: Option<SocketAddr>,
    number: u32,
    patience: Duration,
    answer: &mut Answer,
) -> io::Result<String> {
    let question = number.to_string();
    match peer {
        Some(peer) => socket.send_to(question.as_bytes(), peer)?,
        None => socket.send(question.as_bytes())?,
    };
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 256];
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        match text.rsplit_once('|') {
            Some((said, echoed)) if echoed == question => {
                count(&mut answer.peers, from);
                return Ok(said.to_owned());
            }
            _ => {}
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}
