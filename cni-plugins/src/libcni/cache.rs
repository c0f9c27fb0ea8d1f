//! Results of ADD, kept for CHECK, DEL and GC in the reference library's format (`cniCacheV1`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::{AttachmentKey, NetworkName};

const KIND: &str = "cniCacheV1";

/// What is kept of an attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CachedResult {
    kind: String,
    pub(super) container_id: String,
    /// The configuration list, base64.
    config: String,
    pub(super) if_name: String,
    pub(super) network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) capability_args: Map<String, Value>,
    #[serde(default)]
    pub(super) result: Value,
}

impl CachedResult {
    pub(super) fn new(
        network: &NetworkName,
        attachment: &super::Attachment,
        config: &Value,
        result: Value,
    ) -> Self {
        Self {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.as_str().to_owned(),
            config: base64::engine::general_purpose::STANDARD.encode(config.to_string()),
            if_name: attachment.ifname.as_str().to_owned(),
            network_name: network.as_str().to_owned(),
            netns: attachment.netns.to_string_lossy().into_owned(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capability_args.clone(),
            result,
        }
    }

    pub(super) fn key(&self) -> Option<AttachmentKey> {
        Some(AttachmentKey {
            container_id: self.container_id.parse().ok()?,
            ifname: self.if_name.parse().ok()?,
        })
    }
}

/// The folder of cached results.
#[derive(Debug, Clone)]
pub(super) struct ResultCache(PathBuf);

impl ResultCache {
    pub(super) fn new(cache_dir: &Path) -> Self {
        Self(cache_dir.join("results"))
    }

    pub(super) fn path(&self, network: &NetworkName, key: &AttachmentKey) -> PathBuf {
        self.0
            .join(format!("{network}-{}-{}", key.container_id, key.ifname))
    }

    pub(super) fn put(
        &self,
        network: &NetworkName,
        key: &AttachmentKey,
        entry: &CachedResult,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let path = self.path(network, key);
        let mut draft = path.clone().into_os_string();
        draft.push(".draft");
        fs::write(&draft, serde_json::to_vec(entry)?)?;
        fs::rename(&draft, &path)
    }

    /// `None` if there is none, or it is damaged: an attachment can be detached without it.
    pub(super) fn get(&self, network: &NetworkName, key: &AttachmentKey) -> Option<CachedResult> {
        read(&self.path(network, key))
    }

    pub(super) fn remove(&self, network: &NetworkName, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(network, key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All entries of a network.
    pub(super) fn list(&self, network: &NetworkName) -> io::Result<Vec<CachedResult>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            if let Some(cached) = read(&entry?.path())
                && cached.network_name == network.as_str()
            {
                found.push(cached);
            }
        }
        Ok(found)
    }
}

fn read(path: &Path) -> Option<CachedResult> {
    let cached: CachedResult = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (cached.kind == KIND).then_some(cached)
}
