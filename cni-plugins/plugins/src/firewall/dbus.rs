//! As much of D-Bus as it takes to ask a service something: calls with strings, one at a time.
//!
//! <https://dbus.freedesktop.org/doc/dbus-specification.html>

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

const DEFAULT_ADDRESS: &str = "unix:path=/var/run/dbus/system_bus_socket";
/// A bus answers at once, a service within the time that it takes to load rules.
const TIMEOUT: Duration = Duration::from_secs(25);
/// Answers to what is asked here have a few hundred bytes.
const MESSAGE_MAX: usize = 1 << 20;
/// So many messages that are none of ours may come before the answer.
const UNRELATED_MAX: usize = 1000;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;
const HEADER_LEN: usize = 16;

/// A failed call.
#[derive(Debug)]
pub(super) enum DbusError {
    /// The bus cannot be reached, or speaks nonsense.
    Io(io::Error),
    /// The service, or the bus in its place, refused.
    Refused {
        /// The error's name.
        name: String,
        /// What it says.
        message: String,
    },
}

impl From<io::Error> for DbusError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The method of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// A connection to the system's bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

impl Bus {
    /// Connects as the user that this process runs as.
    pub(super) fn system() -> Result<Self, DbusError> {
        let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let path = path_of(&address)
            .or_else(|| path_of(DEFAULT_ADDRESS))
            .unwrap_or_default();
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut bus = Self {
            stream: BufReader::new(stream),
            serial: 0,
        };
        bus.authenticate()?;
        let bus_itself = "org.freedesktop.DBus";
        let hello = Method {
            destination: bus_itself,
            path: "/org/freedesktop/DBus",
            interface: bus_itself,
            member: "Hello",
        };
        bus.call(hello, &[])?;
        Ok(bus)
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let uid = nix::unistd::geteuid().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        let stream = self.stream.get_mut();
        stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        let limit = 4096;
        self.stream
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if !line.starts_with(b"OK") {
            return Err(nonsense("the bus does not let us in"));
        }
        self.stream.get_mut().write_all(b"BEGIN\r\n")
    }

    /// Calls a method with strings; returns the body of the answer.
    pub(super) fn call(&mut self, method: Method<'_>, args: &[&str]) -> Result<Vec<u8>, DbusError> {
        self.serial += 1;
        let message = encode(self.serial, method, args)?;
        self.stream.get_mut().write_all(&message)?;
        for _unrelated in 0..UNRELATED_MAX {
            let answer = self.receive()?;
            if answer.reply_serial != Some(self.serial) {
                continue;
            }
            return match answer.kind {
                METHOD_RETURN => Ok(answer.body),
                _ => Err(DbusError::Refused {
                    name: answer.error_name,
                    message: first_string(&answer.body, answer.big_endian),
                }),
            };
        }
        Err(nonsense("no answer among too many messages").into())
    }

    fn receive(&mut self) -> io::Result<Answer> {
        let mut fixed = [0; HEADER_LEN];
        self.stream.read_exact(&mut fixed)?;
        let big_endian = match fixed[0] {
            b'l' => false,
            b'B' => true,
            _ => return Err(nonsense("a message of unknown byte order")),
        };
        let mut header = Reader::new(&fixed, big_endian);
        let kind = fixed[1];
        header.skip(4);
        let body_len = header.number()? as usize;
        header.skip(4);
        let fields_len = header.number()? as usize;
        if body_len > MESSAGE_MAX || fields_len > MESSAGE_MAX {
            return Err(nonsense("a message that is too long"));
        }
        // The body begins at a multiple of eight.
        let mut fields = vec![0; fields_len.next_multiple_of(8)];
        self.stream.read_exact(&mut fields)?;
        let mut body = vec![0; body_len];
        self.stream.read_exact(&mut body)?;
        let mut answer = Answer {
            kind,
            big_endian,
            reply_serial: None,
            error_name: String::new(),
            body,
        };
        if !matches!(kind, METHOD_RETURN | ERROR) {
            return Ok(answer);
        }
        fields.truncate(fields_len);
        let mut fields = Reader::new(&fields, big_endian);
        while fields.align(8).is_some() {
            let code = fields.byte()?;
            match (code, fields.signature()?.as_str()) {
                (FIELD_REPLY_SERIAL, "u") => answer.reply_serial = Some(fields.number()?),
                (FIELD_ERROR_NAME, "s") => answer.error_name = fields.string()?,
                (_, "u") => drop(fields.number()?),
                (_, "s" | "o") => drop(fields.string()?),
                (_, "g") => drop(fields.signature()?),
                _ => return Err(nonsense("a header field of unknown type")),
            }
        }
        Ok(answer)
    }
}

struct Answer {
    kind: u8,
    big_endian: bool,
    reply_serial: Option<u32>,
    error_name: String,
    body: Vec<u8>,
}

fn nonsense(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The first of the bus' addresses that is a path.
fn path_of(address: &str) -> Option<&str> {
    address
        .split(';')
        .filter_map(|one| one.strip_prefix("unix:"))
        .flat_map(|options| options.split(','))
        .find_map(|option| option.strip_prefix("path="))
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn push_string(bytes: &mut Vec<u8>, text: &str) -> io::Result<()> {
    align(bytes, 4);
    let length = u32::try_from(text.len()).map_err(|_long| nonsense("a string too long"))?;
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
    Ok(())
}

fn push_signature(bytes: &mut Vec<u8>, signature: &str) -> io::Result<()> {
    let length = u8::try_from(signature.len()).map_err(|_long| nonsense("a signature too long"))?;
    bytes.push(length);
    bytes.extend(signature.as_bytes());
    bytes.push(0);
    Ok(())
}

fn encode(serial: u32, method: Method<'_>, args: &[&str]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    for arg in args {
        push_string(&mut body, arg)?;
    }
    let mut fields = Vec::new();
    for (code, signature, text) in [
        (FIELD_PATH, "o", method.path),
        (FIELD_INTERFACE, "s", method.interface),
        (FIELD_MEMBER, "s", method.member),
        (FIELD_DESTINATION, "s", method.destination),
    ] {
        align(&mut fields, 8);
        fields.push(code);
        push_signature(&mut fields, signature)?;
        push_string(&mut fields, text)?;
    }
    if !args.is_empty() {
        align(&mut fields, 8);
        fields.push(FIELD_SIGNATURE);
        push_signature(&mut fields, "g")?;
        push_signature(&mut fields, &"s".repeat(args.len()))?;
    }
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_long| nonsense("too long"));
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    message.extend(length(&body)?.to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend(length(&fields)?.to_le_bytes());
    message.extend(fields);
    align(&mut message, 8);
    message.extend(body);
    Ok(message)
}

fn first_string(body: &[u8], big_endian: bool) -> String {
    Reader::new(body, big_endian).string().unwrap_or_default()
}

/// Reads a part of a message that begins at a multiple of eight.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], big_endian: bool) -> Self {
        Self {
            bytes,
            at: 0,
            big_endian,
        }
    }

    fn skip(&mut self, length: usize) {
        self.at += length;
    }

    /// `None` at the end.
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.next_multiple_of(to);
        (self.at < self.bytes.len()).then_some(())
    }

    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| nonsense("a message that ends early"))?;
        self.at += length;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> io::Result<u32> {
        self.at = self.at.next_multiple_of(4);
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn text(&mut self, length: usize) -> io::Result<String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        // Its final zero.
        self.take(1)?;
        Ok(text)
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.number()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> io::Result<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buss_address_is_found_among_others() {
        assert_eq!(
            path_of(DEFAULT_ADDRESS),
            Some("/var/run/dbus/system_bus_socket")
        );
        assert_eq!(
            path_of("unix:abstract=x,guid=1;unix:path=/tmp/bus,guid=2"),
            Some("/tmp/bus")
        );
        assert_eq!(path_of("tcp:host=localhost"), None);
        assert_eq!(path_of(""), None);
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let method = Method {
            destination: "a.b",
            path: "/a",
            interface: "a.b.c",
            member: "M",
        };
        let message = encode(7, method, &["x", "yz"]).unwrap();
        let mut header = Reader::new(&message, false);
        header.skip(4);
        let (body_len, serial) = (header.number().unwrap(), header.number().unwrap());
        assert_eq!((body_len, serial), (4 + 2 + 2 + 4 + 3, 7));
        let fields_len = header.number().unwrap() as usize;
        let body_at = (HEADER_LEN + fields_len).next_multiple_of(8);
        assert_eq!(message.len(), body_at + body_len as usize);
        let mut body = Reader::new(&message[body_at..], false);
        assert_eq!(
            (body.string().unwrap(), body.string().unwrap()),
            ("x".into(), "yz".into())
        );
        assert!(body.string().is_err());
    }

    #[test]
    fn a_message_that_ends_early_is_an_error() {
        let mut reader = Reader::new(&[255, 255, 255, 255, 0], false);
        assert!(reader.string().is_err());
        assert!(Reader::new(&[3, b's'], false).signature().is_err());
    }
}
