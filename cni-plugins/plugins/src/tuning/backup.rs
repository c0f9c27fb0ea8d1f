//! What a link was like before it was tuned, as a file: it is either there in full or not at all.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use skiff_cni::{
    skel::Target,
    types::{AttachmentKey, CniError, NetworkName, code},
};

use super::link::LinkSettings;

/// A backup has about a hundred bytes.
const SIZE_MAX: u64 = 64 << 10;

/// The backup of one attachment.
#[derive(Debug)]
pub(super) struct Backup {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(flatten)]
    settings: LinkSettings,
    /// Whose it is, for GC; the reference plugin writes none and reads over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<NetworkName>,
}

fn file_name(container: &str, ifname: &str) -> String {
    format!("{container}_{ifname}.json")
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> CniError {
    let msg = format!("cannot {verb} {}", path.display());
    CniError::from_error(code::IO, msg, error)
}

impl Backup {
    /// Where it is, if it is.
    pub(super) fn of(dir: &Path, target: &Target) -> Self {
        let name = file_name(target.container_id.as_str(), target.ifname.as_str());
        Self {
            path: dir.join(name),
        }
    }

    pub(super) fn write(
        &self,
        settings: &LinkSettings,
        network: &NetworkName,
    ) -> Result<(), CniError> {
        let failed = |error: io::Error| failed("write", &self.path, &error);
        let document = Document {
            settings: settings.clone(),
            network: Some(network.clone()),
        };
        let text = serde_json::to_vec_pretty(&document).map_err(|error| failed(error.into()))?;
        if let Some(dir) = self.path.parent() {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(dir).map_err(failed)?;
        }
        let half = self.path.with_extension("json.tmp");
        let written = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&half)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&half, &self.path));
        written.map_err(|error| {
            fs::remove_file(&half).ok();
            failed(error)
        })
    }

    /// `None` if there is none. One that cannot be understood says nothing, and goes.
    pub(super) fn read(&self) -> Result<Option<LinkSettings>, CniError> {
        match read_document(&self.path) {
            Ok(Some(document)) => Ok(Some(document.settings)),
            Ok(None) => self.remove().map(|()| None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed("read", &self.path, &error)),
        }
    }

    /// Absent is success.
    pub(super) fn remove(&self) -> Result<(), CniError> {
        remove(&self.path)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn read_document(path: &Path) -> io::Result<Option<Document>> {
    let mut text = Vec::new();
    File::open(path)?.take(SIZE_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

fn remove(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Removes the backups of a network's attachments that are not valid any more. Those of the reference plugin do not say
/// which network's they are, and stay.
pub(super) fn sweep(
    dir: &Path,
    network: &NetworkName,
    valid: &[AttachmentKey],
) -> Result<(), CniError> {
    let valid: HashSet<OsString> = valid
        .iter()
        .map(|key| file_name(key.container_id.as_str(), key.ifname.as_str()).into())
        .collect();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(failed("list", dir, &error)),
    };
    let mut errors = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if valid.contains(&entry.file_name()) || path.extension().is_none_or(|ext| ext != "json") {
            continue;
        }
        if let Ok(Some(document)) = read_document(&path)
            && document.network.as_ref() == Some(network)
        {
            errors.extend(remove(&path).err());
        }
    }
    CniError::join(errors)
}
