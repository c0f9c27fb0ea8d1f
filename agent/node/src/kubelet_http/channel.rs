//! The `v5.channel.k8s.io` and `v4.channel.k8s.io` protocols: one byte names the channel, the rest is data.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

/// Protocols, the preferred one first.
pub(super) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Standard output.
pub(super) const STDOUT: u8 = 1;
/// Standard error.
pub(super) const STDERR: u8 = 2;
/// The final status.
pub(super) const ERROR: u8 = 3;
const STDIN: u8 = 0;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientFrame {
    /// Data for standard input.
    Stdin(Bytes),
    /// No more standard input (v5).
    CloseStdin,
    /// The terminal's new size: columns, rows.
    Resize(u16, u16),
    /// Nothing that has a meaning here.
    Ignored,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a client's message.
pub(super) fn decode(message: &Bytes) -> ClientFrame {
    let Some((channel, data)) = message.split_first() else {
        return ClientFrame::Ignored;
    };
    match *channel {
        STDIN => ClientFrame::Stdin(message.slice(1..)),
        RESIZE => match serde_json::from_slice::<Size>(data) {
            Ok(size) => ClientFrame::Resize(size.width, size.height),
            Err(_malformed) => ClientFrame::Ignored,
        },
        CLOSE if data == [STDIN] => ClientFrame::CloseStdin,
        _ => ClientFrame::Ignored,
    }
}

/// A message for a channel.
pub(super) fn encode(channel: u8, data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    message.freeze()
}

/// The final status of a command that ended.
pub(super) fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

/// The final status of a command that could not be run to its end.
pub(super) fn failure_status(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "code": 500,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_frames_are_told_apart() {
        for (message, frame) in [
            (
                &b"\0hello"[..],
                ClientFrame::Stdin(Bytes::from_static(b"hello")),
            ),
            (b"\0", ClientFrame::Stdin(Bytes::new())),
            (b"\xff\0", ClientFrame::CloseStdin),
            (b"\xff\x01", ClientFrame::Ignored),
            (
                b"\x04{\"Width\":80,\"Height\":24}",
                ClientFrame::Resize(80, 24),
            ),
            (b"\x04{\"Width\":-1}", ClientFrame::Ignored),
            (b"\x04", ClientFrame::Ignored),
            (b"\x09x", ClientFrame::Ignored),
            (b"", ClientFrame::Ignored),
        ] {
            assert_eq!(decode(&Bytes::from_static(message)), frame, "{message:?}");
        }
    }

    #[test]
    fn messages_begin_with_their_channel() {
        assert_eq!(encode(STDERR, b"x"), Bytes::from_static(b"\x02x"));
        assert_eq!(exit_status(0)["status"], "Success");
        let failed = exit_status(7);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(
            failed["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "7"})
        );
    }
}
