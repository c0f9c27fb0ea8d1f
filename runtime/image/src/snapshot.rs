//! Containers' root filesystems: an overlay of an image's layers and a writable one.
//!
//! The state is the disk and `/proc/self/mountinfo`: a restarted daemon finds every snapshot as it was left.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ImageId};
use crate::error::StoreError;
use crate::overlay::mount_overlay;
use crate::store::write_atomically;

/// A mounted root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub rootfs: PathBuf,
    /// Its writable layer, for measuring.
    pub upper: PathBuf,
}

/// A container's root filesystem as found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The container's key.
    pub key: String,
    /// The image it is made from.
    pub image: ImageId,
    /// The layers below it, the lowest first.
    pub layers: Vec<Digest>,
    /// Whether it is mounted.
    pub mounted: bool,
}

/// Why a snapshot cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The key is not fit for a file name.
    #[error("invalid container key {0:?}")]
    Key(String),
    /// There is a snapshot of this key from another image.
    #[error("snapshot {key} is made from image {existing}")]
    Exists {
        /// The key.
        key: String,
        /// What it is made from.
        existing: ImageId,
    },
    /// A layer of the image is not there: it must be pulled again.
    #[error("layer {0} is missing")]
    MissingLayer(Digest),
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The record of the snapshot cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task of the store panicked or was cancelled at shutdown.
    #[error("background work of the image store did not finish")]
    Interrupted,
}

/// `snapshot.json`: written before anything is mounted.
#[derive(Serialize, Deserialize)]
struct Record {
    image: ImageId,
    layers: Vec<Digest>,
}

#[derive(Deserialize)]
struct LayerMarker {
    #[serde(default)]
    implicit: Vec<String>,
}

pub(crate) struct Snapshots {
    containers: PathBuf,
    layers: PathBuf,
}

impl SnapshotError {
    pub(crate) fn io<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> SnapshotError {
        let path = path.into();
        move |source| SnapshotError::Io {
            operation,
            path,
            source: source.into(),
        }
    }

    pub(crate) fn into_store(self) -> StoreError {
        match self {
            SnapshotError::Io {
                operation,
                path,
                source,
            } => StoreError::Io {
                operation,
                path,
                source,
            },
            SnapshotError::Store(error) => error,
            _ => StoreError::Interrupted,
        }
    }
}

impl Snapshots {
    pub(crate) fn new(containers: PathBuf, layers: PathBuf) -> Snapshots {
        Snapshots { containers, layers }
    }

    pub(crate) fn prepare(
        &self,
        key: &str,
        image: &ImageId,
        layers: &[Digest],
    ) -> Result<Mount, SnapshotError> {
        let dir = self.dir(key)?;
        let mount = Mount {
            rootfs: dir.join("rootfs"),
            upper: dir.join("upper"),
        };
        match read_record(&dir) {
            Some(record) if record.image != *image => {
                return Err(SnapshotError::Exists {
                    key: key.to_owned(),
                    existing: record.image,
                });
            }
            Some(_) if mount_points()?.contains(&mount.rootfs) => return Ok(mount),
            _ => {}
        }
        let undo = Undo {
            dir: Some(dir.clone()),
        };
        // The work directory may be dirty after a crash; the writable layer is kept.
        let work = dir.join("work");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(SnapshotError::io("remove", &work))?;
        }
        for (path, mode) in [
            (&dir, 0o700),
            (&mount.upper, 0o755),
            (&work, 0o700),
            (&mount.rootfs, 0o755),
        ] {
            fs::create_dir_all(path).map_err(SnapshotError::io("make", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(SnapshotError::io("protect", path))?;
        }
        write_atomically(
            &dir.join("snapshot.json"),
            &Record {
                image: image.clone(),
                layers: layers.to_vec(),
            },
        )?;
        let lower = self.lower_dirs(layers, &dir)?;
        self.restore_implicit(layers, &mount.upper)?;
        mount_overlay(&lower, &mount.upper, &work, &mount.rootfs)?;
        undo.disarm();
        Ok(mount)
    }

    pub(crate) fn release(&self, key: &str) -> Result<(), SnapshotError> {
        release_dir(&self.dir(key)?)
    }

    pub(crate) fn list(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        let mounted = mount_points()?;
        let mut found = Vec::new();
        for (key, dir) in self.dirs()? {
            if let Some(record) = read_record(&dir) {
                let mounted = mounted.contains(&dir.join("rootfs"));
                found.push(Snapshot {
                    key,
                    image: record.image,
                    layers: record.layers,
                    mounted,
                });
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    pub(crate) fn sweep(&self, known: &HashSet<String>) -> Result<Vec<String>, SnapshotError> {
        let mut gone = Vec::new();
        for (key, dir) in self.dirs()? {
            if known.contains(&key) {
                continue;
            }
            match release_dir(&dir) {
                Ok(()) => gone.push(key),
                Err(error) => tracing::warn!(
                    key,
                    error = crate::registry::chain(&error),
                    "snapshot cannot be removed"
                ),
            }
        }
        gone.sort();
        Ok(gone)
    }

    fn dirs(&self) -> Result<Vec<(String, PathBuf)>, SnapshotError> {
        let failed = || SnapshotError::io::<io::Error>("read", &self.containers);
        let mut dirs = Vec::new();
        for item in fs::read_dir(&self.containers).map_err(failed())? {
            let item = item.map_err(failed())?;
            if let Ok(key) = item.file_name().into_string() {
                dirs.push((key, item.path()));
            }
        }
        Ok(dirs)
    }

    fn dir(&self, key: &str) -> Result<PathBuf, SnapshotError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if key.is_empty() || key.len() > 200 || key.starts_with('.') || !key.chars().all(plain) {
            return Err(SnapshotError::Key(key.to_owned()));
        }
        Ok(self.containers.join(key))
    }

    /// The directories of the layers, the topmost first, each once: overlayfs refuses repeats, and
    /// only the topmost of equal layers shows.
    fn lower_dirs(&self, layers: &[Digest], dir: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lower = Vec::new();
        for layer in layers.iter().rev() {
            let place = self.layers.join(layer.file_name());
            if !place.join("layer.json").exists() {
                return Err(SnapshotError::MissingLayer(layer.clone()));
            }
            let diff = place.join("diff");
            if !lower.contains(&diff) {
                lower.push(diff);
            }
        }
        if lower.is_empty() {
            let empty = dir.join("empty");
            fs::create_dir_all(&empty).map_err(SnapshotError::io("make", &empty))?;
            lower.push(empty);
        }
        Ok(lower)
    }

    /// Gives directories that a layer has without an entry (`a/b` without `a/`) the owner and mode that the layers
    /// below give them: overlayfs shows those of the topmost layer, whose values we made up.
    fn restore_implicit(&self, layers: &[Digest], upper: &Path) -> Result<(), SnapshotError> {
        let mut made_up: Vec<(PathBuf, HashSet<PathBuf>)> = Vec::new();
        for layer in layers.iter().rev() {
            let place = self.layers.join(layer.file_name());
            let marker = fs::read(place.join("layer.json"))
                .map_err(SnapshotError::io("read", place.join("layer.json")))?;
            let marker: LayerMarker = serde_json::from_slice(&marker).map_err(|e| {
                SnapshotError::io("read", place.join("layer.json"))(io::Error::other(e))
            })?;
            made_up.push((
                place.join("diff"),
                marker.implicit.into_iter().map(PathBuf::from).collect(),
            ));
        }
        let mut wanted: Vec<&PathBuf> = made_up.iter().flat_map(|(_, implicit)| implicit).collect();
        wanted.sort();
        wanted.dedup();
        for path in wanted {
            // Parents sort before their children; each is looked up on its own.
            let Some((top, implicit)) = made_up.iter().find(|(diff, _)| is_real_dir(diff, path))
            else {
                continue;
            };
            if !implicit.contains(path) {
                continue;
            }
            let known = made_up
                .iter()
                .skip_while(|(diff, _)| diff != top)
                .find(|(diff, implicit)| is_real_dir(diff, path) && !implicit.contains(path));
            if let Some((diff, _)) = known {
                copy_dir_chain(diff, &made_up, path, upper)?;
            }
        }
        Ok(())
    }
}

/// Whether `path` in a layer is a directory reached without a symbolic link.
fn is_real_dir(diff: &Path, path: &Path) -> bool {
    let mut at = diff.to_owned();
    path.components().all(|part| {
        at.push(part);
        fs::symlink_metadata(&at).is_ok_and(|m| m.is_dir())
    })
}

/// Makes `path` in the writable layer with the owner and mode it has in `diff`, its parents as they show.
fn copy_dir_chain(
    diff: &Path,
    layers: &[(PathBuf, HashSet<PathBuf>)],
    path: &Path,
    upper: &Path,
) -> Result<(), SnapshotError> {
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        let to = upper.join(&so_far);
        if to.exists() {
            continue;
        }
        let shown = layers
            .iter()
            .find(|(diff, implicit)| is_real_dir(diff, &so_far) && !implicit.contains(&so_far))
            .map_or(diff, |(diff, _)| diff.as_path());
        let from = shown.join(&so_far);
        let metadata = fs::symlink_metadata(&from).map_err(SnapshotError::io("read", &from))?;
        fs::create_dir(&to).map_err(SnapshotError::io("make", &to))?;
        let (uid, gid) = {
            use std::os::unix::fs::MetadataExt as _;
            (metadata.uid(), metadata.gid())
        };
        std::os::unix::fs::lchown(&to, Some(uid), Some(gid))
            .map_err(SnapshotError::io("set owner of", &to))?;
        fs::set_permissions(&to, metadata.permissions())
            .map_err(SnapshotError::io("protect", &to))?;
    }
    Ok(())
}

/// Removes a half made snapshot unless it is disarmed.
struct Undo {
    dir: Option<PathBuf>,
}

impl Undo {
    fn disarm(mut self) {
        self.dir = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take()
            && let Err(error) = release_dir(&dir)
        {
            tracing::warn!(dir = %dir.display(), error = crate::registry::chain(&error), "half made snapshot is left");
        }
    }
}

fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join("snapshot.json")).ok()?).ok()
}

fn release_dir(dir: &Path) -> Result<(), SnapshotError> {
    let rootfs = dir.join("rootfs");
    // More than one mount can be stacked; each call takes the topmost.
    loop {
        match rustix::mount::unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(e) => return Err(SnapshotError::io("unmount", &rootfs)(e)),
        }
    }
    // Never delete through a mount that someone else put there.
    if let Some(busy) = mount_points()?
        .into_iter()
        .find(|point| point.starts_with(dir))
    {
        return Err(SnapshotError::io("remove", busy)(Errno::BUSY));
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SnapshotError::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Every mount point of this process.
fn mount_points() -> Result<HashSet<PathBuf>, SnapshotError> {
    let text = fs::read("/proc/self/mountinfo")
        .map_err(SnapshotError::io("read", "/proc/self/mountinfo"))?;
    Ok(text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
        .collect())
}

/// `\040` is a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        match code {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
        assert_eq!(unescape(br"/a\9\04"), br"/a\9\04");
        assert!(mount_points().unwrap().contains(Path::new("/")));
    }

    #[test]
    fn keys_that_are_no_file_names_are_refused() {
        let snapshots = Snapshots::new("/nonexistent".into(), "/nonexistent".into());
        for key in ["", ".", "..", "a/b", "a b", ".hidden", &"x".repeat(201)] {
            assert!(
                matches!(snapshots.dir(key), Err(SnapshotError::Key(_))),
                "{key:?}"
            );
        }
        assert!(snapshots.dir("0a-b_c.d").is_ok());
    }
}
