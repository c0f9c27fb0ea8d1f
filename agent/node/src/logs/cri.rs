//! The CRI log line.

use jiff::Timestamp;

/// Which of the container's streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// When it was written, as it stands in the file.
    pub(crate) stamp: &'a str,
    /// Where it came from.
    pub(crate) stream: Stream,
    /// It ends the container's line; else more of it follows.
    pub(crate) ends: bool,
    /// The text without the line's end.
    pub(crate) text: &'a [u8],
}

impl Line<'_> {
    /// When it was written.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        self.stamp.parse().ok()
    }
}

/// Reads a line; `None` if it is not in CRI format.
pub(crate) fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let stamp = std::str::from_utf8(parts.next()?)
        .ok()
        .filter(|stamp| !stamp.is_empty())?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first tells whether the line ends.
    let ends = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Line {
        stamp,
        stream,
        ends,
        text: parts.next().unwrap_or_default(),
    })
}
