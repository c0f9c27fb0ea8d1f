//! What the store remembers of an image: one JSON file each, replaced atomically.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ImageId};
use crate::error::StoreError;
use crate::manifest::RunConfig;
use crate::reference::ImageReference;

/// An image that is on this node, all layers unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// Digest of its configuration: a container's `imageID`.
    pub id: ImageId,
    /// Tagged names, spelled out: `docker.io/library/redis:6`.
    pub names: Vec<String>,
    /// `docker.io/library/redis@sha256:...`, by the digest that the registry resolved the name to.
    pub repo_digests: Vec<String>,
    /// Bytes of the configuration and the layers as downloaded.
    pub size: u64,
    /// Diff ids of the layers, the lowest first.
    pub layers: Vec<Digest>,
    /// How it wants to be run.
    pub config: RunConfig,
    /// When it was last pulled: seconds since 1970.
    pub pulled_at: u64,
}

impl ImageRecord {
    pub(super) fn is_named(&self, reference: &ImageReference) -> bool {
        match (reference.digest(), reference.tagged_name()) {
            (Some(digest), _) => self
                .repo_digests
                .contains(&format!("{}@{digest}", reference.name())),
            (None, Some(name)) => self.names.contains(&name),
            (None, None) => false,
        }
    }

    /// Adds the names of an older record of the same image.
    pub(super) fn take_in(&mut self, old: &ImageRecord) {
        for name in &old.names {
            if !self.names.contains(name) {
                self.names.push(name.clone());
            }
        }
        for digest in &old.repo_digests {
            if !self.repo_digests.contains(digest) {
                self.repo_digests.push(digest.clone());
            }
        }
    }
}

pub(super) fn load_all(images: &Path) -> Result<HashMap<ImageId, Arc<ImageRecord>>, StoreError> {
    let mut records: HashMap<ImageId, ImageRecord> = HashMap::new();
    for item in fs::read_dir(images).map_err(StoreError::io("read", images))? {
        let path = item.map_err(StoreError::io("read", images))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        match serde_json::from_slice::<ImageRecord>(&bytes) {
            Ok(record) => {
                records.insert(record.id.clone(), record);
            }
            // Another version's, or damaged: the image is pulled again when it is wanted.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "image record is not readable, ignored")
            }
        }
    }
    // A crash between two writes leaves a moved tag at both: the later pull has it.
    let mut owners: HashMap<String, (u64, ImageId)> = HashMap::new();
    for record in records.values() {
        for name in &record.names {
            let claim = (record.pulled_at, record.id.clone());
            let owner = owners.entry(name.clone()).or_insert_with(|| claim.clone());
            if *owner < claim {
                *owner = claim;
            }
        }
    }
    for record in records.values_mut() {
        let id = record.id.clone();
        record
            .names
            .retain(|name| owners.get(name).is_some_and(|(_, owner)| *owner == id));
    }
    Ok(records
        .into_iter()
        .map(|(id, record)| (id, Arc::new(record)))
        .collect())
}

pub(super) fn save(images: &Path, record: &ImageRecord) -> Result<(), StoreError> {
    let path = images.join(format!("{}.json", record.id.file_name()));
    write_atomically(&path, record)
}

pub(super) fn delete(images: &Path, id: &ImageId) -> Result<(), StoreError> {
    let path = images.join(format!("{}.json", id.file_name()));
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(e)),
        _ => Ok(()),
    }
}

/// Writes JSON so that a crash leaves the old file or the new one.
pub(crate) fn write_atomically(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(io::Error::other)
        .map_err(StoreError::io("encode", path))?;
    bytes.push(b'\n');
    let next = path.with_extension("json.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&next)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(StoreError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, pulled_at: u64) -> ImageRecord {
        ImageRecord {
            id: Digest::of(id.as_bytes()),
            names: vec!["docker.io/library/a:1".to_owned()],
            repo_digests: vec![],
            size: 0,
            layers: vec![],
            config: RunConfig::default(),
            pulled_at,
        }
    }

    #[test]
    fn a_tag_that_a_crash_left_twice_belongs_to_the_later_pull() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &record("old", 1)).unwrap();
        save(dir.path(), &record("new", 2)).unwrap();
        fs::write(dir.path().join("damaged.json"), "{").unwrap();
        let records = load_all(dir.path()).unwrap();
        assert_eq!(records.len(), 2);
        assert!(records[&Digest::of(b"old")].names.is_empty());
        assert_eq!(records[&Digest::of(b"new")].names.len(), 1);
    }
}
