//! What a tar says of an entry: its header, GNU long names and PAX records put together.

use std::io::{self, Read as _};
use std::time::Duration;

use tar::{Entry, EntryType, PaxExtensions};

use super::UnpackError;
use super::reader::LayerReader;

/// Longest path: the kernel's own limit.
const MAX_PATH: usize = 4096;
/// Deepest path: removing a tree holds a file descriptor for each level.
const MAX_DEPTH: usize = 200;
/// Longest extended header.
const MAX_EXTENSION: u64 = 1 << 20;

/// Everything about an entry but its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Duration,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Headers that describe the entry after them.
#[derive(Default)]
pub(super) struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl Pending {
    /// Takes in `entry` if it is such a header.
    pub(super) fn absorb(
        &mut self,
        entry: &mut Entry<'_, LayerReader>,
    ) -> Result<bool, UnpackError> {
        let slot = match entry.header().entry_type() {
            EntryType::GNULongName => &mut self.long_name,
            EntryType::GNULongLink => &mut self.long_link,
            EntryType::XHeader => &mut self.pax,
            // Global headers carry comments (git archive) in layers; they are read past.
            EntryType::XGlobalHeader => return Ok(true),
            _ => return Ok(false),
        };
        let size = entry
            .header()
            .entry_size()
            .map_err(UnpackError::Malformed)?;
        if size > MAX_EXTENSION {
            return Err(UnpackError::refused(
                &entry.path_bytes(),
                "extended header is too long",
            ));
        }
        let mut bytes = Vec::new();
        let read = entry
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(UnpackError::Malformed)?;
        if read as u64 != size {
            return Err(malformed("extended header is cut short"));
        }
        if slot.replace(bytes).is_some() {
            return Err(malformed("two extended headers of one kind for one entry"));
        }
        Ok(true)
    }

    /// The metadata of `entry` itself.
    pub(super) fn complete(self, entry: &Entry<'_, LayerReader>) -> Result<Metadata, UnpackError> {
        let header = entry.header();
        let without_nul =
            |bytes: Vec<u8>| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        // Tools leave out what is zero; the library does not take a blank for a number.
        let blank = |field: &[u8]| field.iter().all(|b| matches!(b, 0 | b' '));
        let number = |field: &[u8], value: io::Result<u64>| match value {
            Err(_) if blank(field) => Ok(0),
            value => value.map_err(UnpackError::Malformed),
        };
        let old = header.as_old();
        let mut path = self
            .long_name
            .map_or_else(|| header.path_bytes().into_owned(), without_nul);
        let mut link = match self.long_link {
            Some(link) => without_nul(link),
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let size = number(&old.size, header.entry_size())?;
        let mut uid = number(&old.uid, header.uid())?;
        let mut gid = number(&old.gid, header.gid())?;
        let mut mtime = Duration::from_secs(header.mtime().unwrap_or_default());
        let mut xattrs = Vec::new();
        for record in PaxExtensions::new(self.pax.as_deref().unwrap_or_default()) {
            let record = record.map_err(UnpackError::Malformed)?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => path = value.to_vec(),
                b"linkpath" => link = value.to_vec(),
                b"uid" => uid = pax_number(value)?,
                b"gid" => gid = pax_number(value)?,
                b"mtime" => mtime = pax_time(value),
                // The library walks by the header's size: where the two differ, tools would see different files.
                b"size" if pax_number(value)? != size => {
                    return Err(UnpackError::refused(
                        &path,
                        "size in the extended header differs",
                    ));
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(UnpackError::refused(
                        &path,
                        "sparse entries are not supported",
                    ));
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        let id = |value: u64| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| {
                    UnpackError::refused(&path, format!("user or group id {value} is out of range"))
                })
        };
        let (uid, gid) = (id(uid)?, id(gid)?);
        let device = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or_default();
        let mode = match header.mode() {
            Err(_) if blank(&old.mode) => 0,
            mode => mode.map_err(UnpackError::Malformed)? & 0o7777,
        };
        let device = (device(header.device_major()), device(header.device_minor()));
        Ok(Metadata {
            path,
            link,
            size,
            mode,
            uid,
            gid,
            mtime,
            device,
            xattrs,
        })
    }
}

fn malformed(message: &'static str) -> UnpackError {
    UnpackError::Malformed(io::Error::new(io::ErrorKind::InvalidData, message))
}

fn pax_number(value: &[u8]) -> Result<u64, UnpackError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed("number in an extended header"))
}

/// `1700000000.123456789`; what is not a time after 1970 becomes 1970, as it does not matter enough to fail.
fn pax_time(value: &[u8]) -> Duration {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    Duration::new(
        seconds.parse().unwrap_or_default(),
        nanos.parse().unwrap_or_default(),
    )
}

/// The components of a path in the layer, without `.` and leading slashes; none for the root.
pub(super) fn split(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    if path.len() > MAX_PATH {
        return Err(UnpackError::refused(
            path.get(..64).unwrap_or_default(),
            "path is too long",
        ));
    }
    if path.contains(&0) {
        return Err(UnpackError::refused(path, "path contains NUL"));
    }
    let mut components = Vec::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(UnpackError::refused(path, "path leaves its directory")),
            name if name.len() > 255 => return Err(UnpackError::refused(path, "name is too long")),
            name => components.push(name),
        }
    }
    if components.len() > MAX_DEPTH {
        return Err(UnpackError::refused(path, "path is too deep"));
    }
    Ok(components)
}
