use super::*;

/// What a client sends to open a stream.
pub(crate) struct Client(Compress);

impl Client {
    pub(crate) fn new() -> Self {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&DICTIONARY).unwrap();
        Self(deflate)
    }

    pub(crate) fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(headers.len()).unwrap());
        for (name, value) in headers {
            put_text(&mut plain, name);
            put_text(&mut plain, value);
        }
        let mut packed = Vec::with_capacity(MAX_HEADERS);
        self.0
            .compress_vec(&plain, &mut packed, FlushCompress::Sync)
            .unwrap();
        let mut frame = BytesMut::new();
        put_control(&mut frame, SYN_STREAM, 10 + packed.len());
        frame.put_u32(stream);
        frame.put_bytes(0, 6);
        frame.extend_from_slice(&packed);
        frame.to_vec()
    }
}

pub(crate) fn data(stream: u32, bytes: &[u8], end: bool) -> Vec<u8> {
    let answer = Answer::Data {
        stream,
        bytes: bytes.to_vec(),
        end,
    };
    Encoder::new().encode(&answer).to_vec()
}

fn all(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Frame> {
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next().unwrap()).collect()
}

#[test]
fn the_dictionary_is_the_one_that_everybody_has() {
    // The zlib header of every SPDY/3 implementation names it by this checksum.
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in DICTIONARY.iter() {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
}

#[test]
fn streams_are_opened_with_headers_one_after_the_other() {
    let (mut client, mut decoder) = (Client::new(), Decoder::new());
    for stream in [1, 3, 5] {
        let headers = [("streamtype", "data"), ("port", "80")];
        let mut bytes = client.open(stream, &headers);
        let last = bytes.pop().unwrap();
        assert_eq!(all(&mut decoder, &bytes), []);
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            all(&mut decoder, &[last]),
            [Frame::Open {
                stream,
                headers: headers.to_vec()
            }]
        );
    }
}

#[test]
fn data_and_small_frames_are_told_apart() {
    let mut bytes = data(7, b"hello", true);
    bytes.extend(b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x09");
    bytes.extend(b"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x07\x00\x00\x00\x05");
    bytes.extend(b"\x80\x03\x00\x04\x00\x00\x00\x00");
    assert_eq!(
        all(&mut Decoder::new(), &bytes),
        [
            Frame::Data {
                stream: 7,
                bytes: Bytes::from_static(b"hello"),
                end: true
            },
            Frame::Ping(9),
            Frame::Reset { stream: 7 },
            Frame::Ignored,
        ]
    );
}

#[test]
fn nonsense_is_refused() {
    for (bytes, error) in [
        (
            &b"\x80\x02\x00\x01\x00\x00\x00\x00"[..],
            SpdyError::Version(2),
        ),
        (b"\x00\x00\x00\x01\x00\xff\xff\xff", SpdyError::Malformed),
        (
            b"\x80\x03\x00\x06\x00\x00\x00\x01\x00",
            SpdyError::Malformed,
        ),
        (
            b"\x80\x03\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00xx",
            SpdyError::Headers,
        ),
    ] {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
        assert_eq!(decoder.next(), Err(error), "{bytes:?}");
    }
    // More headers than anybody needs, in few bytes.
    let mut decoder = Decoder::new();
    decoder.push(&Client::new().open(1, &[("x", &"x".repeat(MAX_HEADERS))]));
    assert_eq!(decoder.next(), Err(SpdyError::Headers));
}

#[test]
fn what_is_accepted_has_a_reply_that_clients_unpack() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    for stream in [1, 3] {
        // Our decoder unpacks replies too, and fails if they are not one compressed stream.
        let reply = encoder.encode(&Answer::Accept(stream));
        assert_eq!(reply.get(..4).unwrap(), b"\x80\x03\x00\x02");
        assert_eq!(all(&mut decoder, &reply), [Frame::Ignored]);
    }
    assert_eq!(
        encoder.encode(&Answer::Pong(5)).to_vec(),
        b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x05"
    );
}
