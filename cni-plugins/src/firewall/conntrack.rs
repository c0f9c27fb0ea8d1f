//! Connection tracking entries, by netlink of their own: rtnetlink does not know them.

use std::{
    io,
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
const ZONE: u16 = 18;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
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

/// Removes the entries of UDP flows that were sent to one of `ports`, in the calling thread's network namespace, so that
/// their next packets meet the rules anew.
///
/// # Errors
/// [`FirewallError::Conntrack`].
pub fn delete_udp_entries(family: Family, ports: &[u16]) -> Result<(), FirewallError> {
    let failed = |action| move |source: io::Error| FirewallError::Conntrack { action, source };
    let connection = Connection::open().map_err(failed("connecting to connection tracking"))?;
    let entries = connection
        .list(family)
        .map_err(failed("listing connection tracking entries"))?;
    for entry in entries.iter().filter(|entry| entry.is_udp_to(ports)) {
        connection
            .delete(family, entry)
            .map_err(failed("deleting a connection tracking entry"))?;
    }
    Ok(())
}

/// What names an entry: its original tuple as the kernel wrote it, and its zone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Entry {
    fn read(attributes: &[u8]) -> Self {
        let value = |wanted| {
            Attributes(attributes)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value.to_vec())
        };
        Self {
            tuple: value(TUPLE_ORIG).unwrap_or_default(),
            zone: value(ZONE),
        }
    }

    fn is_udp_to(&self, ports: &[u16]) -> bool {
        let protocol = Attributes(&self.tuple).find(|(kind, _)| *kind == TUPLE_PROTO);
        let Some((_, protocol)) = protocol else {
            return false;
        };
        let value = |wanted| {
            Attributes(protocol)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value)
        };
        let port = value(PROTO_DST_PORT)
            .and_then(|value| value.first_chunk())
            .map(|bytes| u16::from_be_bytes(*bytes));
        value(PROTO_NUM).and_then(<[u8]>::first) == Some(&UDP)
            && port.is_some_and(|port| ports.contains(&port))
    }
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

    fn tuple(protocol: u8, port: u16) -> Vec<u8> {
        let mut inner = Vec::new();
        push_attribute(&mut inner, PROTO_NUM, &[protocol]);
        push_attribute(&mut inner, PROTO_DST_PORT, &port.to_be_bytes());
        let mut tuple = Vec::new();
        push_attribute(&mut tuple, 1 | NESTED, &[0; 16]);
        push_attribute(&mut tuple, TUPLE_PROTO | NESTED, &inner);
        tuple
    }

    #[test]
    fn an_entry_is_known_by_protocol_and_port() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, TUPLE_ORIG | NESTED, &tuple(UDP, 53));
        push_attribute(&mut attributes, ZONE, &[0, 7]);
        let entry = Entry::read(&attributes);
        assert_eq!(entry.zone, Some(vec![0, 7]));
        assert!(entry.is_udp_to(&[80, 53]));
        assert!(!entry.is_udp_to(&[80]));
        let tcp = Entry {
            tuple: tuple(6, 53),
            zone: None,
        };
        assert!(!tcp.is_udp_to(&[53]));
        assert!(!Entry::default().is_udp_to(&[53]));
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
