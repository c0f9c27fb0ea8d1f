//! As much of SPDY/3.1 as kubectl's port-forward speaks: streams with headers, data, ends, pings.
//!
//! Source: the SPDY Protocol, draft 3.1, sections 2.2 (frames), 2.6.10 (headers and their dictionary). kubectl's side of
//! it (moby/spdystream) knows no flow control, so neither does this: a stream that is not read holds the connection up.

use std::sync::LazyLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

const CONTROL: u32 = 1 << 31;
const VERSION: u32 = 3;
const SYN_STREAM: u32 = 1;
const SYN_REPLY: u32 = 2;
const RST_STREAM: u32 = 3;
const PING: u32 = 6;
const GOAWAY: u32 = 7;
const HEADERS: u32 = 8;
const FLAG_FIN: u8 = 1;
const PREFIX: usize = 8;
/// kubectl sends pieces of 32 KiB.
const MAX_FRAME: usize = 1 << 20;
/// Of all headers of a stream together.
const MAX_HEADERS: usize = 16 * 1024;
/// RST_STREAM's `REFUSED_STREAM`.
const REFUSED: u32 = 3;

/// The words that both sides' compression begins with: section 2.6.10.1.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
        proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
        user-agent vary via warning www-authenticate method get status";
    const MORE: [&str; 8] = [
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
        "origin",
    ];
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
        Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
        Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
        Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
        application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
        sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut dictionary = Vec::new();
    for word in WORDS.split_whitespace().chain(MORE) {
        put_text(&mut dictionary, word);
    }
    dictionary.extend_from_slice(REST.as_bytes());
    dictionary
});

/// What cannot be understood ends the connection.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum SpdyError {
    /// A version other than 3.
    #[error("SPDY version {0} is not spoken")]
    Version(u32),
    /// A frame that is cut short or too large.
    #[error("malformed SPDY frame")]
    Malformed,
    /// Headers that cannot be unpacked, or are too large.
    #[error("malformed SPDY headers")]
    Headers,
}

/// What the client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A new stream.
    Open {
        /// Its number.
        stream: u32,
        /// Its headers, names in lower case.
        headers: Vec<(String, String)>,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        stream: u32,
        /// The bytes.
        bytes: Bytes,
        /// There will be no more.
        end: bool,
    },
    /// A stream is given up.
    Reset {
        /// Its number.
        stream: u32,
    },
    /// To be sent back.
    Ping(u32),
    /// The client leaves.
    GoAway,
    /// Nothing that has a meaning here.
    Ignored,
}

/// Takes the client's bytes apart.
pub(super) struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            inflate: Decompress::new(true),
        }
    }

    /// Adds what has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; `None` if it is not there as a whole yet.
    ///
    /// # Errors
    /// [`SpdyError`]; the connection is of no use then.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some(mut prefix) = self.buffer.get(..PREFIX) else {
            return Ok(None);
        };
        let (word, rest) = (prefix.get_u32(), prefix.get_u32());
        let [flags, length @ ..] = rest.to_be_bytes();
        let length = length
            .iter()
            .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        if length > MAX_FRAME {
            return Err(SpdyError::Malformed);
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let body = self.buffer.split_to(length).freeze();
        if word & CONTROL == 0 {
            return Ok(Some(Frame::Data {
                stream: word,
                bytes: body,
                end: flags & FLAG_FIN != 0,
            }));
        }
        let version = (word & !CONTROL) >> 16;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        self.control(word & 0xffff, body).map(Some)
    }

    fn control(&mut self, kind: u32, mut body: Bytes) -> Result<Frame, SpdyError> {
        match kind {
            SYN_STREAM => {
                let stream = take_u32(&mut body)?;
                // The stream that it belongs to, its priority, its credentials.
                take_u32(&mut body)?;
                body.try_get_u16().map_err(|_short| SpdyError::Malformed)?;
                let headers = self.headers(&body)?;
                Ok(Frame::Open { stream, headers })
            }
            // Not used by clients; but the compression must not lose its place.
            HEADERS | SYN_REPLY => {
                take_u32(&mut body)?;
                self.headers(&body)?;
                Ok(Frame::Ignored)
            }
            RST_STREAM => Ok(Frame::Reset {
                stream: take_u32(&mut body)?,
            }),
            PING => Ok(Frame::Ping(take_u32(&mut body)?)),
            GOAWAY => Ok(Frame::GoAway),
            _ => Ok(Frame::Ignored),
        }
    }

    /// All headers of a connection are one compressed stream.
    fn headers(&mut self, packed: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
        let start = self.inflate.total_in();
        let mut plain = Vec::with_capacity(MAX_HEADERS);
        loop {
            let read = self.inflate.total_in() - start;
            let read = usize::try_from(read).map_err(|_huge| SpdyError::Headers)?;
            let rest = packed.get(read..).unwrap_or_default();
            let (before_in, before_out) = (read, plain.len());
            match self
                .inflate
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync)
            {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_other| SpdyError::Headers)?;
                    continue;
                }
                Ok(Status::Ok | Status::BufError) => {}
                _ => return Err(SpdyError::Headers),
            }
            if plain.len() == plain.capacity() {
                return Err(SpdyError::Headers);
            }
            let read = self.inflate.total_in() - start;
            if usize::try_from(read) == Ok(before_in) && plain.len() == before_out {
                break;
            }
        }
        parse_headers(&plain)
    }
}

fn take_u32(body: &mut Bytes) -> Result<u32, SpdyError> {
    let word = body.try_get_u32().map_err(|_short| SpdyError::Malformed)?;
    Ok(word & !CONTROL)
}

fn parse_headers(mut plain: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
    let text = |plain: &mut &[u8]| {
        let length = plain.try_get_u32().map_err(|_short| SpdyError::Headers)?;
        let length = usize::try_from(length).map_err(|_huge| SpdyError::Headers)?;
        let (text, rest) = plain.split_at_checked(length).ok_or(SpdyError::Headers)?;
        *plain = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    };
    let count = plain.try_get_u32().map_err(|_short| SpdyError::Headers)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((text(&mut plain)?, text(&mut plain)?));
    }
    Ok(headers)
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    to.extend_from_slice(text.as_bytes());
}

/// What we send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A stream is accepted.
    Accept(u32),
    /// A stream is refused.
    Refuse(u32),
    /// Bytes of a stream; `end`: the last.
    Data {
        /// Its number.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// There will be no more.
        end: bool,
    },
    /// To [`Frame::Ping`].
    Pong(u32),
}

/// Puts our bytes together.
pub(super) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(super) fn new() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        // Cannot fail before the first byte.
        deflate.set_dictionary(&DICTIONARY).ok();
        Self { deflate }
    }

    /// One frame.
    pub(super) fn encode(&mut self, answer: &Answer) -> Bytes {
        let mut frame = BytesMut::new();
        match answer {
            Answer::Accept(stream) => {
                let headers = self.no_headers();
                put_control(&mut frame, SYN_REPLY, 4 + headers.len());
                frame.put_u32(*stream);
                frame.extend_from_slice(&headers);
            }
            Answer::Refuse(stream) => {
                put_control(&mut frame, RST_STREAM, 8);
                frame.put_u32(*stream);
                frame.put_u32(REFUSED);
            }
            Answer::Data { stream, bytes, end } => {
                frame.put_u32(*stream);
                frame.put_u32(length(bytes.len()) | u32::from(u8::from(*end) * FLAG_FIN) << 24);
                frame.extend_from_slice(bytes);
            }
            Answer::Pong(id) => {
                put_control(&mut frame, PING, 4);
                frame.put_u32(*id);
            }
        }
        frame.freeze()
    }

    fn no_headers(&mut self) -> Vec<u8> {
        let mut packed = Vec::with_capacity(64);
        // Four bytes into 64: there is room.
        self.deflate
            .compress_vec(&[0; 4], &mut packed, FlushCompress::Sync)
            .ok();
        packed
    }
}

fn put_control(frame: &mut BytesMut, kind: u32, body: usize) {
    frame.put_u32(CONTROL | VERSION << 16 | kind);
    frame.put_u32(length(body));
}

/// As a frame has it. Ours are far below the limit of 24 bits.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX) & 0x00ff_ffff
}

#[cfg(test)]
pub(super) mod tests;
