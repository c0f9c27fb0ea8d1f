//! Reading of container logs: CRI format files, whole or followed.
//!
//! A line is `2006-01-02T15:04:05.000000000Z stdout F text`; `P` instead of `F` marks a part of a line that
//! goes on. [`options`] reads the API's parameters, [`stream`] delivers the text.

mod cri;
mod inotify;
pub(crate) mod options;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

pub(crate) use self::cri::{Line, Stream, parse_line};

/// The first bytes of a file.
pub(crate) fn read_prefix(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(u64::try_from(limit).unwrap_or(u64::MAX))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of the last lines, at most `limit` bytes of it.
pub(crate) fn tail_text(path: &Path, lines: usize, limit: usize) -> io::Result<String> {
    let start = tail_offset(path, lines)?;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw)?;
    let mut text = Vec::new();
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        if let Some(parsed) = parse_line(line) {
            text.extend_from_slice(parsed.text);
            if parsed.ends {
                text.push(b'\n');
            }
        }
    }
    let keep = text.len().saturating_sub(limit);
    Ok(String::from_utf8_lossy(&text[keep..]).into_owned())
}

/// Where the last `lines` whole lines of a log begin. Reads backwards, so a long log costs nothing; parts of a
/// long line count as one line.
pub(crate) fn tail_offset(path: &Path, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if lines == 0 {
        return Ok(size);
    }
    let mut block = BLOCK;
    loop {
        let start = size.saturating_sub(block);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(size - start)
            .read_to_end(&mut bytes)?;
        if let Some(offset) = offset_in(&bytes, lines, start == 0) {
            return Ok(start + u64::try_from(offset).unwrap_or(0));
        }
        block = block.saturating_mul(4);
    }
}

/// The offset of the last `lines` lines in the end of a log; `None` if more of it is needed.
fn offset_in(bytes: &[u8], lines: usize, is_whole: bool) -> Option<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        starts.push((at, line));
        at += line.len();
    }
    if !is_whole && !starts.is_empty() {
        // Its beginning is before the block.
        starts.remove(0);
    }
    let mut count = 0;
    for (index, (offset, line)) in starts.iter().enumerate().rev() {
        // A line ends where its final part ends.
        if parse_line(line).is_none_or(|parsed| parsed.ends) || index + 1 == starts.len() {
            count += 1;
            if count > lines {
                let (next, _) = starts.get(index + 1)?;
                return Some(*next);
            }
        }
        if index == 0 && is_whole {
            return Some(*offset);
        }
    }
    is_whole.then_some(0)
}
