//! Layers: from a compressed tar to a directory that overlayfs takes as a lower layer.
//!
//! A layer is hostile until proven otherwise. Nothing is trusted to stay inside: every path is opened
//! through [`tree::Tree`], from the layer's own root, following no symbolic link. Whiteouts become what
//! overlayfs wants: `.wh.x` a 0:0 character device, `.wh..wh..opq` the `trusted.overlay.opaque` attribute.

mod entry;
mod reader;
mod tree;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use tar::{Archive, EntryType};

use crate::digest::Digest;
use entry::{Metadata, Pending};
use reader::LayerReader;
use tree::Tree;

/// Bounds on what a layer may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of the uncompressed tar.
    pub max_bytes: u64,
    /// Entries, directories that are made along the way included.
    pub max_entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits {
            max_bytes: 32 << 30,
            max_entries: 4_000_000,
        }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry would write outside the layer or is otherwise not acceptable.
    #[error("{path:?} is refused: {reason}")]
    Refused {
        /// The entry's path as the tar has it.
        path: String,
        /// Why.
        reason: String,
    },
    /// The tar cannot be read.
    #[error("malformed tar")]
    Malformed(#[source] io::Error),
    /// The layer is larger than allowed.
    #[error("layer has more than {limit} {what}")]
    TooLarge {
        /// "bytes" or "entries".
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The content is not what the image's configuration says.
    #[error("layer has diff id {actual}, the image says {wanted}")]
    WrongDiffId {
        /// What was unpacked.
        actual: Digest,
        /// What should have been.
        wanted: Digest,
    },
    /// The file system refused.
    #[error("cannot {operation} {path:?}")]
    Write {
        /// What was being done.
        operation: &'static str,
        /// The entry's path.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the layer is to blame, and not this machine.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !matches!(self, UnpackError::Write { .. })
    }

    pub(crate) fn refused(path: &[u8], reason: impl Into<String>) -> UnpackError {
        UnpackError::Refused {
            path: String::from_utf8_lossy(path).into_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn write<E: Into<io::Error>>(
        operation: &'static str,
        path: &[u8],
    ) -> impl FnOnce(E) -> UnpackError {
        let path = String::from_utf8_lossy(path).into_owned();
        move |source| UnpackError::Write {
            operation,
            path,
            source: source.into(),
        }
    }
}

/// What became of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes of the uncompressed tar.
    pub(crate) bytes: u64,
    /// Entries made.
    pub(crate) entries: u64,
    /// Directories that the tar has no entry for: a lower layer may know their owner and mode.
    pub(crate) implicit: Vec<String>,
}

/// Unpacks `blob` (gzip, zstd or plain, told apart by its first bytes) into the empty directory `target`.
pub(crate) fn unpack(
    blob: File,
    target: &Path,
    wanted: &Digest,
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let reader = LayerReader::open(blob, limits.max_bytes).map_err(UnpackError::Malformed)?;
    let mut tree = Tree::open(target)?;
    let mut archive = Archive::new(reader);
    let outcome = unpack_entries(&mut archive, &mut tree, limits);
    let mut reader = archive.into_inner();
    // What went wrong because of the limit shows as a malformed tar.
    let drained = outcome.and_then(|entries| {
        io::copy(&mut reader, &mut io::sink()).map_err(UnpackError::Malformed)?;
        Ok(entries)
    });
    if reader.exceeded() {
        return Err(UnpackError::TooLarge {
            what: "bytes",
            limit: limits.max_bytes,
        });
    }
    let entries = drained?;
    let (actual, bytes) = reader.finish();
    if actual != *wanted {
        return Err(UnpackError::WrongDiffId {
            actual,
            wanted: wanted.clone(),
        });
    }
    Ok(Unpacked {
        bytes,
        entries,
        implicit: tree.finish()?,
    })
}

fn unpack_entries(
    archive: &mut Archive<LayerReader>,
    tree: &mut Tree,
    limits: UnpackLimits,
) -> Result<u64, UnpackError> {
    let mut pending = Pending::default();
    let mut count = 0_u64;
    // Raw: the library would read extended headers of any length into memory.
    for entry in archive.entries().map_err(UnpackError::Malformed)?.raw(true) {
        let mut entry = entry.map_err(UnpackError::Malformed)?;
        if pending.absorb(&mut entry)? {
            continue;
        }
        let metadata = std::mem::take(&mut pending).complete(&entry)?;
        let kind = entry.header().entry_type();
        count += 1;
        if count + tree.implicit_count() > limits.max_entries {
            return Err(UnpackError::TooLarge {
                what: "entries",
                limit: limits.max_entries,
            });
        }
        let size = metadata.size;
        let mut body = (&mut entry).take(size);
        apply(tree, kind, &metadata, &mut body)?;
    }
    Ok(count)
}

fn apply(
    tree: &mut Tree,
    kind: EntryType,
    metadata: &Metadata,
    body: &mut dyn io::Read,
) -> Result<(), UnpackError> {
    let path = entry::split(&metadata.path)?;
    let Some((name, parent)) = path.split_last() else {
        // "./": the root of the layer itself.
        return match kind {
            EntryType::Directory => tree.directory(&[], metadata),
            _ => Err(UnpackError::refused(
                &metadata.path,
                "only a directory can be the root",
            )),
        };
    };
    if *name == b".wh..wh..opq" {
        return tree.opaque(parent);
    }
    if name.starts_with(b".wh..wh.") {
        // Book-keeping of aufs.
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(b".wh.") {
        return match hidden {
            b"" | b"." | b".." => Err(UnpackError::refused(&metadata.path, "whiteout of nothing")),
            hidden => tree.whiteout(parent, hidden),
        };
    }
    match kind {
        EntryType::Regular | EntryType::Continuous => tree.file(&path, metadata, body),
        // Old tars mark a directory by its slash alone, but a link never ends in one.
        EntryType::Directory => tree.directory(&path, metadata),
        EntryType::Symlink => tree.symlink(&path, metadata),
        EntryType::Link => {
            let target = entry::split(&metadata.link)?;
            tree.hard_link(&path, &target, metadata)
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => tree.device(&path, kind, metadata),
        EntryType::GNUSparse => Err(UnpackError::refused(
            &metadata.path,
            "sparse entries are not supported",
        )),
        other => Err(UnpackError::refused(
            &metadata.path,
            format!("entry type {:?} is not known", char::from(other.as_byte())),
        )),
    }
}
