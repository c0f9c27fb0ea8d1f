//! Connection tracking entries, by netlink of their own: rtnetlink does not know them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    sys::time::TimeVal,
};

use super::{Family, FirewallError};

/// Messages of the connection tracking subsystem (`linux/netfilter/nfnetlink_conntrack.h`).
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const NESTED: u16 = 0x8000;
/// Without the flags for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;

/// Of a message, and what precedes its attributes.
const HEADER: usize = 16;
const PROLOGUE: usize = HEADER + 4;
const UDP: u8 = 17;
const BUFFER: usize = 1 << 16;
/// The kernel answers at once; a lost answer must not hang a plugin.
const PATIENCE_SECONDS: i64 = 5;

/// A UDP flow as connection tracking knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpFlow {
    /// Where its first packet was sent.
    pub destination: SocketAddr,
    /// Who answers: the destination, or whom rules put in its place.
    pub responder: SocketAddr,
}

/// Removes the entries of the UDP flows that `is_stale` names, in the calling thread's network namespace, so that their
/// next packets meet the rules anew. Says how many.
///
/// # Errors
/// [`FirewallError::Conntrack`].
pub fn delete_udp_flows(
    family: Family,
    is_stale: impl Fn(&UdpFlow) -> bool,
) -> Result<usize, FirewallError> {
    let failed = |action| move |source: io::Error| FirewallError::Conntrack { action, source };
    let connection = Connection::open().map_err(failed("connecting to connection tracking"))?;
    let entries = connection
        .list(family)
        .map_err(failed("listing connection tracking entries"))?;
    let stale = entries
        .iter()
        .filter(|entry| entry.udp_flow().is_some_and(|flow| is_stale(&flow)));
    let mut deleted = 0;
    for entry in stale {
        connection
            .delete(family, entry)
            .map_err(failed("deleting a connection tracking entry"))?;
        deleted += 1;
    }
    Ok(deleted)
}

/// What names an entry: its original tuple as the kernel wrote it, and its zone; and who replies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    tuple: Vec<u8>,
    reply: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Entry {
    fn read(attributes: &[u8]) -> Self {
        Self {
            tuple: find(attributes, TUPLE_ORIG).unwrap_or_default().to_vec(),
            reply: find(attributes, TUPLE_REPLY).unwrap_or_default().to_vec(),
            zone: find(attributes, ZONE).map(<[u8]>::to_vec),
        }
    }

    fn udp_flow(&self) -> Option<UdpFlow> {
        let protocol = find(find(&self.tuple, TUPLE_PROTO)?, PROTO_NUM)?;
        (protocol.first() == Some(&UDP)).then_some(())?;
        Some(UdpFlow {
            destination: end_of(&self.tuple, IP_V4_DST, IP_V6_DST, PROTO_DST_PORT)?,
            responder: end_of(&self.reply, IP_V4_SRC, IP_V6_SRC, PROTO_SRC_PORT)?,
        })
    }
}

/// One of a tuple's two ends.
fn end_of(tuple: &[u8], v4: u16, v6: u16, port: u16) -> Option<SocketAddr> {
    let addresses = find(tuple, TUPLE_IP)?;
    let addr = match find(addresses, v4) {
        Some(bytes) => IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
        None => IpAddr::V6(Ipv6Addr::from(*find(addresses, v6)?.first_chunk::<16>()?)),
    };
    let port = find(find(tuple, TUPLE_PROTO)?, port)?.first_chunk()?;
    Some((addr, u16::from_be_bytes(*port)).into())
}

/// The value of the first attribute of a kind.
fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// Walks over attributes; ends at one that is cut off.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(native_u16(self.0, 0)?);
        let kind = native_u16(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn native_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_ne_bytes(*bytes))
}

fn native_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // A tuple has some 50 bytes.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn request(kind: u16, flags: u16, family: Family, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(PROLOGUE + attributes.len()).unwrap_or(u32::MAX);
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let mut message = Vec::with_capacity(PROLOGUE + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    // Sequence and sender: there is one question at a time, and the kernel knows whose.
    message.extend([0; 8]);
    message.extend([u8::try_from(family as i32).unwrap_or_default(), 0, 0, 0]);
    message.extend(attributes);
    message
}

/// What a message of an answer is.
enum Answer<'a> {
    Entry(&'a [u8]),
    End(io::Result<()>),
    Other,
}

/// Splits off the first message; `None` if nothing whole is left.
fn split_message(bytes: &[u8]) -> Option<(Answer<'_>, &[u8])> {
    let length = usize::try_from(native_u32(bytes, 0)?).ok()?;
    let message = bytes
        .get(..length)
        .filter(|message| message.len() >= HEADER)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let answer = match native_u16(message, 4)? {
        DONE => Answer::End(Ok(())),
        ERROR => Answer::End(match native_u32(message, HEADER)?.cast_signed() {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        }),
        // The kernel answers GET with NEW, which is 0.
        kind if kind == GET & 0xff00 => Answer::Entry(message.get(PROLOGUE..)?),
        _ => Answer::Other,
    };
    Some((answer, rest))
}

struct Connection(OwnedFd);

impl Connection {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Self(socket))
    }

    fn list(&self, family: Family) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.ask(&request(GET, DUMP, family, &[]), |attributes| {
            entries.push(Entry::read(attributes));
        })?;
        Ok(entries)
    }

    fn delete(&self, family: Family, entry: &Entry) -> io::Result<()> {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, TUPLE_ORIG | NESTED, &entry.tuple);
        if let Some(zone) = &entry.zone {
            push_attribute(&mut attributes, ZONE, zone);
        }
        match self.ask(&request(DELETE, ACK, family, &attributes), |_| {}) {
            // It timed out meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
            done => done,
        }
    }

    fn ask(&self, message: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        sendto(fd, message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(fd, &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((answer, next)) = split_message(rest) {
                match answer {
                    Answer::Entry(attributes) => each(attributes),
                    Answer::End(result) => return result,
                    Answer::Other => {}
                }
                rest = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 10.0.0.1 and port 9 to 10.0.0.2 and `port`.
    fn tuple(protocol: u8, port: u16) -> Vec<u8> {
        let (mut ip, mut inner, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        push_attribute(&mut ip, IP_V4_SRC, &[10, 0, 0, 1]);
        push_attribute(&mut ip, IP_V4_DST, &[10, 0, 0, 2]);
        push_attribute(&mut inner, PROTO_NUM, &[protocol]);
        push_attribute(&mut inner, PROTO_SRC_PORT, &9_u16.to_be_bytes());
        push_attribute(&mut inner, PROTO_DST_PORT, &port.to_be_bytes());
        push_attribute(&mut tuple, TUPLE_IP | NESTED, &ip);
        push_attribute(&mut tuple, TUPLE_PROTO | NESTED, &inner);
        tuple
    }

    #[test]
    fn an_entry_says_where_its_flow_goes_and_who_answers() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, TUPLE_ORIG | NESTED, &tuple(UDP, 53));
        push_attribute(&mut attributes, TUPLE_REPLY | NESTED, &tuple(UDP, 9));
        push_attribute(&mut attributes, ZONE, &[0, 7]);
        let entry = Entry::read(&attributes);
        assert_eq!(entry.zone, Some(vec![0, 7]));
        let flow = entry.udp_flow().unwrap();
        assert_eq!(flow.destination, "10.0.0.2:53".parse().unwrap());
        assert_eq!(flow.responder, "10.0.0.1:9".parse().unwrap());
        let tcp = Entry {
            tuple: tuple(6, 53),
            ..entry
        };
        assert_eq!(tcp.udp_flow(), None);
        assert_eq!(Entry::default().udp_flow(), None);
    }

    #[test]
    fn messages_are_split_and_a_cut_off_one_ends_them() {
        let entry = request(GET & 0xff00, 0, Family::V4, &[1, 2, 3, 4]);
        let mut error = request(ERROR, 0, Family::V4, &[]);
        error[HEADER..].copy_from_slice(&(-2_i32).to_ne_bytes());
        let bytes = [entry.clone(), error].concat();
        let (first, rest) = split_message(&bytes).unwrap();
        assert!(matches!(first, Answer::Entry([1, 2, 3, 4])));
        let (second, rest) = split_message(rest).unwrap();
        assert!(matches!(second, Answer::End(Err(error)) if error.raw_os_error() == Some(2)));
        assert!(split_message(rest).is_none());
        assert!(split_message(&entry[..entry.len() - 1]).is_none());
    }
}
