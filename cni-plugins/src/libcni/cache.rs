//! What ADD left of attachments, kept for CHECK, DEL and GC in the reference library's format (`cniCacheV1`), so that a
//! container that one runtime attached can be detached by another.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Attachment, Conflist};
use crate::types::{AttachmentKey, CniResult, CniVersion, NetworkName};

const KIND: &str = "cniCacheV1";

/// What ADD left of an attachment.
#[derive(Debug, Clone)]
pub struct CachedAttachment {
    /// As it was asked for.
    pub attachment: Attachment,
    /// The list that was run, at the version in which it was; `None` if that cannot be told.
    pub list: Option<Conflist>,
    /// The result; `None` if that cannot be told.
    pub result: Option<CniResult>,
}

impl CachedAttachment {
    /// Takes from `asked` what is not cached: the reference library kept no namespace before its version 1.2, and
    /// nothing but the result before 0.8.
    pub fn fill_from(&mut self, asked: &Attachment) {
        let attachment = &mut self.attachment;
        if attachment.netns.as_os_str().is_empty() {
            attachment.netns.clone_from(&asked.netns);
        }
        if self.list.is_none() {
            attachment.args.clone_from(&asked.args);
            attachment
                .capability_args
                .clone_from(&asked.capability_args);
        }
    }
}

/// The file's form.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    kind: String,
    container_id: String,
    /// The configuration list, base64.
    #[serde(default)]
    config: Option<String>,
    if_name: String,
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    #[serde(default)]
    result: Value,
}

impl Entry {
    fn key(&self) -> Option<AttachmentKey> {
        Some(AttachmentKey {
            container_id: self.container_id.parse().ok()?,
            ifname: self.if_name.parse().ok()?,
        })
    }

    fn is_of(&self, network: &NetworkName, key: &AttachmentKey) -> bool {
        self.network_name == network.as_str() && self.key().as_ref() == Some(key)
    }

    fn list(&self) -> Option<Conflist> {
        let text = BASE64.decode(self.config.as_ref()?).ok()?;
        let list = Conflist::parse(&text).ok()?;
        let version = self.result.get("cniVersion").and_then(Value::as_str);
        let version = version.and_then(|text| text.parse::<CniVersion>().ok());
        match version.filter(|version| list.versions.contains(version)) {
            Some(version) => Some(list.at_version(version)),
            None => Some(list),
        }
    }

    fn into_cached(self) -> Option<CachedAttachment> {
        let (key, list) = (self.key()?, self.list());
        Some(CachedAttachment {
            attachment: Attachment {
                container_id: key.container_id,
                ifname: key.ifname,
                netns: PathBuf::from(self.netns),
                args: self.cni_args,
                capability_args: self.capability_args,
            },
            list,
            result: CniResult::from_json(&self.result).ok(),
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

    fn path(&self, network: &NetworkName, key: &AttachmentKey) -> PathBuf {
        self.0
            .join(format!("{network}-{}-{}", key.container_id, key.ifname))
    }

    fn path_of(&self, entry: &Entry) -> Option<PathBuf> {
        Some(self.path(&entry.network_name.parse().ok()?, &entry.key()?))
    }

    pub(super) fn put(
        &self,
        list: &Conflist,
        attachment: &Attachment,
        result: &CniResult,
    ) -> io::Result<()> {
        let entry = Entry {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.as_str().to_owned(),
            config: Some(BASE64.encode(list.to_json().to_string())),
            if_name: attachment.ifname.as_str().to_owned(),
            network_name: list.name.as_str().to_owned(),
            netns: attachment.netns.to_string_lossy().into_owned(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capability_args.clone(),
            result: result.to_json(list.version),
        };
        // What a user gives a plugin may be secret; the reference library keeps it to root as well.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        let path = self.path(&list.name, &attachment.key());
        // No network begins with a dot: this is no attachment's name.
        let draft = self.0.join(format!(
            ".{}-{}-{}",
            list.name, attachment.container_id, attachment.ifname
        ));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&draft)?;
        file.write_all(&serde_json::to_vec(&entry)?)?;
        fs::rename(&draft, &path)
    }

    /// `None` if there is none, or it is damaged: an attachment can be detached without it. Names have dashes too, so that
    /// the file may be another attachment's: that counts as none.
    pub(super) fn get(
        &self,
        network: &NetworkName,
        key: &AttachmentKey,
    ) -> Option<CachedAttachment> {
        let value = read(&self.path(network, key))?;
        if let Some(entry) = entry(&value) {
            return Some(entry)
                .filter(|entry| entry.is_of(network, key))?
                .into_cached();
        }
        // The reference library's first format: the bare result.
        value.get("cniVersion")?;
        Some(CachedAttachment {
            attachment: Attachment {
                container_id: key.container_id.clone(),
                ifname: key.ifname.clone(),
                netns: PathBuf::new(),
                args: Vec::new(),
                capability_args: Map::new(),
            },
            list: None,
            result: Some(CniResult::from_json(&value).ok()?),
        })
    }

    pub(super) fn remove(&self, network: &NetworkName, key: &AttachmentKey) -> io::Result<()> {
        let path = self.path(network, key);
        let there = read(&path).and_then(|value| entry(&value));
        if there.is_some_and(|entry| entry.key().is_some() && !entry.is_of(network, key)) {
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All attachments, of one network or of every one.
    pub(super) fn list(&self, network: Option<&NetworkName>) -> io::Result<Vec<CachedAttachment>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for file in entries {
            let path = file?.path();
            // Not those under another name than their own, such as a draft that a crash left.
            let cached = read(&path)
                .and_then(|value| entry(&value))
                .filter(|entry| {
                    network.is_none_or(|network| entry.network_name == network.as_str())
                })
                .filter(|entry| self.path_of(entry).as_ref() == Some(&path))
                .and_then(Entry::into_cached);
            found.extend(cached);
        }
        Ok(found)
    }
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn entry(value: &Value) -> Option<Entry> {
    let entry = Entry::deserialize(value).ok()?;
    (entry.kind == KIND).then_some(entry)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn list() -> Conflist {
        let text = br#"{"cniVersion":"0.4.0","cniVersions":["1.1.0"],"name":"net","plugins":[{"type":"x","k":1}]}"#;
        Conflist::parse(text).unwrap()
    }

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c-1".parse().unwrap(),
            netns: PathBuf::from("/run/netns/c"),
            ifname: "eth0".parse().unwrap(),
            args: vec![("K".to_owned(), "V".to_owned())],
            capability_args: Map::from_iter([("mac".to_owned(), json!("02:00:00:00:00:01"))]),
        }
    }

    fn result() -> CniResult {
        let json = json!({"ips": [{"address": "10.0.0.2/24"}]});
        CniResult::from_json(&json).unwrap()
    }

    #[test]
    fn an_attachment_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ResultCache::new(dir.path());
        let older = list().at_version(CniVersion::V0_4_0);
        cache.put(&older, &attachment(), &result()).unwrap();
        let cached = cache.get(&older.name, &attachment().key()).unwrap();
        assert_eq!(cached.attachment, attachment());
        assert_eq!(cached.result, Some(result()));
        // At the version that was spoken, not the newest that the list offers.
        let read = cached.list.unwrap();
        assert_eq!(
            (read.version, &read.plugins),
            (older.version, &older.plugins)
        );
        assert_eq!(cache.list(Some(&older.name)).unwrap().len(), 1);
        assert!(
            cache
                .list(Some(&"other".parse().unwrap()))
                .unwrap()
                .is_empty()
        );

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = dir.path().join("results/net-c-1-eth0");
        assert_eq!((mode(file.parent().unwrap()), mode(&file)), (0o700, 0o600));
        fs::copy(&file, dir.path().join("results/.net-c-1-eth0")).unwrap();
        assert_eq!(cache.list(Some(&older.name)).unwrap().len(), 1);
        assert_eq!(cache.list(None).unwrap().len(), 1);
        cache.remove(&older.name, &attachment().key()).unwrap();
        cache.remove(&older.name, &attachment().key()).unwrap();
        assert!(cache.list(Some(&older.name)).unwrap().is_empty());
    }

    #[test]
    fn an_attachment_whose_file_has_the_same_name_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ResultCache::new(dir.path());
        cache.put(&list(), &attachment(), &result()).unwrap();
        let (network, key) = (
            "net-c".parse().unwrap(),
            AttachmentKey {
                container_id: "1".parse().unwrap(),
                ifname: "eth0".parse().unwrap(),
            },
        );
        let path = cache.path(&network, &key);
        assert_eq!(path, cache.path(&list().name, &attachment().key()));
        assert!(cache.get(&network, &key).is_none());
        cache.remove(&network, &key).unwrap();
        assert!(cache.get(&list().name, &attachment().key()).is_some());
    }

    #[test]
    fn what_the_reference_library_wrote_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ResultCache::new(dir.path());
        let (network, key) = (list().name, attachment().key());
        let path = cache.path(&network, &key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let config =
            BASE64.encode(r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"x"}]}"#);
        let text = json!({
            "kind": "cniCacheV1", "containerId": "c-1", "config": config, "ifName": "eth0",
            "networkName": "net", "netns": "/run/netns/c", "cniArgs": [["K", "V"]],
            "capabilityArgs": {"mac": "02:00:00:00:00:01"},
            "result": {"cniVersion": "1.0.0", "dns": {}, "ips": [{"address": "10.0.0.2/24"}]},
        });
        fs::write(&path, text.to_string()).unwrap();
        let cached = cache.get(&network, &key).unwrap();
        assert_eq!(cached.attachment, attachment());
        assert_eq!(cached.result, Some(result()));
        assert_eq!(cached.list.unwrap().version, CniVersion::V1_0_0);

        // Nothing but what it must have.
        let text = json!({"kind": "cniCacheV1", "containerId": "c-1", "config": null, "ifName": "eth0", "networkName": "net"});
        fs::write(&path, text.to_string()).unwrap();
        let cached = cache.get(&network, &key).unwrap();
        assert!(cached.list.is_none() && cached.result.is_none());

        // The form before: the bare result.
        let text =
            json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24"}]});
        fs::write(&path, text.to_string()).unwrap();
        assert_eq!(cache.get(&network, &key).unwrap().result, Some(result()));
    }

    #[test]
    fn damaged_entries_count_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ResultCache::new(dir.path());
        let (network, key) = (list().name, attachment().key());
        let path = cache.path(&network, &key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for text in [
            "",
            "{",
            "[]",
            r#"{"kind":"cniCacheV1","containerId":"../x"}"#,
        ] {
            fs::write(&path, text).unwrap();
            assert!(cache.get(&network, &key).is_none(), "{text}");
            assert!(cache.list(Some(&network)).unwrap().is_empty(), "{text}");
        }
    }
}
