//! The uncompressed bytes of a layer: counted, bounded and hashed on the way.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Zeros given after the end. Some tools leave out the padding of the last entry and the two empty
/// blocks after it, without which the tar library fails; the diff id is of the real bytes only.
const PADDING: usize = 3 * 512;

pub(super) struct LayerReader {
    inner: Box<dyn Read>,
    hasher: Sha256,
    bytes: u64,
    limit: u64,
    exceeded: bool,
    ended: bool,
    padding: usize,
}

impl LayerReader {
    pub(super) fn open(mut blob: File, limit: u64) -> io::Result<LayerReader> {
        blob.rewind()?;
        let mut magic = [0_u8; 4];
        let mut filled = 0;
        while let Some(rest) = magic.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match blob.read(rest)? {
                0 => break,
                n => filled += n,
            }
        }
        blob.rewind()?;
        let file = BufReader::with_capacity(256 * 1024, blob);
        let inner: Box<dyn Read> = match magic {
            [0x1f, 0x8b, _, _] => Box::new(MultiGzDecoder::new(file)),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
            _ => Box::new(file),
        };
        Ok(LayerReader {
            inner: Box::new(BufReader::with_capacity(64 * 1024, inner)),
            hasher: Sha256::new(),
            bytes: 0,
            limit,
            exceeded: false,
            ended: false,
            padding: PADDING,
        })
    }

    /// Whether reading stopped at the limit.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// The digest and number of the bytes read.
    pub(super) fn finish(self) -> (Digest, u64) {
        (Digest::from_hasher(self.hasher), self.bytes)
    }
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            let n = buffer.len().min(self.padding);
            self.padding -= n;
            if let Some(head) = buffer.get_mut(..n) {
                head.fill(0);
            }
            return Ok(n);
        }
        if self.exceeded {
            return Err(io::Error::other("size limit"));
        }
        let n = self.inner.read(buffer)?;
        if n == 0 && !buffer.is_empty() {
            self.ended = true;
            return self.read(buffer);
        }
        self.bytes += n as u64;
        if self.bytes > self.limit {
            self.exceeded = true;
            return Err(io::Error::other("size limit"));
        }
        self.hasher.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}
