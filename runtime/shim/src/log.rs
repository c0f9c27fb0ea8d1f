//! A container's log file in CRI format, with rotation as the kubelet does it.
//!
//! Nothing is lost: bytes that could not be written stay here, and as long as there are any the container's
//! pipes are not read, so that it waits and memory stays bounded.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

/// Longest piece of a line, as CRI runtimes have it. Longer lines are written in parts.
const MAX_LINE: usize = 16 * 1024;
/// Size at which a file is put aside (the kubelet's `containerLogMaxSize`).
const MAX_SIZE: u64 = 10 * 1024 * 1024;
/// Files that are kept, the current one included (the kubelet's `containerLogMaxFiles`).
const MAX_FILES: usize = 5;
/// Buffers that have grown beyond this are given back when they are empty.
const KEEP_CAPACITY: usize = 4 * 1024;

/// An open log file.
pub(crate) struct CriLog {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    pending: Vec<u8>,
}

/// One of a container's output streams.
pub(crate) struct LineBuffer {
    name: &'static str,
    partial: Vec<u8>,
}

impl LineBuffer {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            partial: Vec::new(),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

impl CriLog {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            max_size: MAX_SIZE,
            pending: Vec::new(),
        })
    }

    /// Adds output of one stream.
    pub(crate) fn add(&mut self, stream: &mut LineBuffer, mut bytes: &[u8]) {
        let now = Timestamp::now();
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let room = MAX_LINE - stream.partial.len();
            match newline {
                Some(end) if end <= room => {
                    let (line, rest) = bytes.split_at(end);
                    stream.partial.extend_from_slice(line);
                    self.line(now, stream, 'F');
                    bytes = rest.get(1..).unwrap_or_default();
                }
                _ => {
                    let (part, rest) = bytes.split_at(room.min(bytes.len()));
                    stream.partial.extend_from_slice(part);
                    bytes = rest;
                    if stream.partial.len() >= MAX_LINE {
                        self.line(now, stream, 'P');
                    }
                }
            }
        }
        self.flush();
    }

    /// Adds what a stream has left without a line's end.
    pub(crate) fn end(&mut self, stream: &mut LineBuffer) {
        if !stream.partial.is_empty() {
            self.line(Timestamp::now(), stream, 'F');
        }
        self.flush();
    }

    fn line(&mut self, now: Timestamp, stream: &mut LineBuffer, tag: char) {
        // Writing to memory does not fail.
        write!(self.pending, "{now:.9} {} {tag} ", stream.name).ok();
        self.pending.append(&mut stream.partial);
        self.pending.push(b'\n');
        if stream.partial.capacity() > KEEP_CAPACITY {
            stream.partial = Vec::new();
        }
    }

    /// Whether something waits to be written: then no more output may be taken.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes what waits. What cannot be written now stays.
    pub(crate) fn flush(&mut self) {
        if let Err(error) = self.try_flush() {
            crate::say(format_args!("writing {}: {error}", self.path.display()));
        }
    }

    fn try_flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let rest = self.pending.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match self.file.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.pending.drain(..written);
        self.size += u64::try_from(written).unwrap_or_default();
        if self.pending.is_empty() && self.pending.capacity() > KEEP_CAPACITY {
            self.pending = Vec::new();
        }
        result?;
        if self.size >= self.max_size {
            self.rotate()
        } else {
            Ok(())
        }
    }

    /// Puts the file aside under the kubelet's name for it, begins a new one, and removes the oldest.
    fn rotate(&mut self) -> io::Result<()> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(Timestamp::now().strftime(".%Y%m%d-%H%M%S").to_string());
        let aside = PathBuf::from(aside);
        if aside.exists() {
            // More than a file's worth in one second: it grows until the next.
            return Ok(());
        }
        fs::rename(&self.path, &aside)?;
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        self.size = 0;
        let mut old = rotated(&self.path)?;
        old.sort();
        for path in old.iter().rev().skip(MAX_FILES - 1) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// The files that were put aside earlier.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_ours = |other: &str| {
            other
                .strip_prefix(name)
                .is_some_and(|end| end.starts_with('.'))
        };
        if entry.file_name().to_str().is_some_and(is_ours) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, CriLog) {
        let dir = tempfile::tempdir().unwrap();
        let log = CriLog::open(&dir.path().join("pod/0.log")).unwrap();
        (dir, log)
    }

    fn lines(log: &CriLog) -> Vec<String> {
        let text = fs::read_to_string(&log.path).unwrap();
        // Without the timestamp, which is 30 characters long and ends in Z.
        let line = |line: &str| {
            assert_eq!(line.as_bytes().get(29), Some(&b'Z'), "{line}");
            line.get(31..).unwrap().to_owned()
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn lines_come_out_as_they_came_in_however_they_were_cut() {
        let (_dir, mut log) = log();
        let (mut out, mut err) = (LineBuffer::new("stdout"), LineBuffer::new("stderr"));
        log.add(&mut out, b"one\ntw");
        log.add(&mut err, b"oops\n");
        log.add(&mut out, b"o\n\nend");
        log.end(&mut out);
        log.end(&mut err);
        assert_eq!(
            lines(&log),
            [
                "stdout F one",
                "stderr F oops",
                "stdout F two",
                "stdout F ",
                "stdout F end"
            ]
        );
    }

    #[test]
    fn a_long_line_is_written_in_parts_that_add_up() {
        let (_dir, mut log) = log();
        let mut out = LineBuffer::new("stdout");
        let text = "x".repeat(2 * MAX_LINE + 5);
        for piece in text.as_bytes().chunks(1000) {
            log.add(&mut out, piece);
        }
        log.add(&mut out, b"\n");
        let lines = lines(&log);
        let tags: Vec<_> = lines.iter().map(|line| line.get(7..8).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        let joined: String = lines.iter().map(|line| line.get(9..).unwrap()).collect();
        assert_eq!(joined, text);
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let (_dir, mut log) = log();
        log.max_size = 10;
        for second in 0..6 {
            fs::write(
                log.path
                    .with_extension(format!("log.2001010{second}-000000")),
                "",
            )
            .unwrap();
        }
        let mut out = LineBuffer::new("stdout");
        log.add(&mut out, b"enough\n");
        let mut left = rotated(&log.path).unwrap();
        left.sort();
        assert_eq!(left.len(), MAX_FILES - 1);
        assert!(
            left.first()
                .unwrap()
                .to_str()
                .unwrap()
                .ends_with(".20010103-000000")
        );
        assert_eq!(fs::read_to_string(&log.path).unwrap(), "");
    }

    #[test]
    fn what_cannot_be_written_is_kept() {
        let (_dir, mut log) = log();
        log.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut out = LineBuffer::new("stdout");
        log.add(&mut out, b"kept\n");
        assert!(log.is_blocked());
        log.file = OpenOptions::new().append(true).open(&log.path).unwrap();
        log.flush();
        assert!(!log.is_blocked());
        assert_eq!(lines(&log), ["stdout F kept"]);
    }
}
