//! The node table as a file: whoever knows the nodes (our agent, or a script) writes it, the plugin reads it.
//!
//! ```json
//! { "version": 1, "nodes": [ { "name": "a", "underlay": ["192.0.2.1"], "podCIDRs": ["10.244.0.0/24"] } ] }
//! ```

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{Node, NodeTable, OverlayError, lock::io_error};

const VERSION: u64 = 1;
/// A hundred thousand nodes have less.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct DocumentRef<'a> {
    version: u64,
    nodes: &'a NodeTable,
}

/// Reads the table of a state file and checks it.
///
/// # Errors
/// [`OverlayError`]; [`OverlayError::is_transient`] if there is no such file yet.
pub fn read_state_file(path: &Path) -> Result<NodeTable, OverlayError> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut text))
        .map_err(io_error("reading", path))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(OverlayError::StateFileSize {
            path: path.to_owned(),
            most: MAX_SIZE,
        });
    }
    let wrong = |source| OverlayError::StateFile {
        path: path.to_owned(),
        source,
    };
    let document: Result<Document, _> = serde_json::from_slice(&text);
    let document = match document {
        Ok(document) => document,
        // A later version may have other keys: what is to be said is the version, not the key.
        Err(error) => match serde_json::from_slice(&text) {
            Ok(Version { version }) if version != VERSION => {
                return Err(unknown_version(path, version));
            }
            _ => return Err(wrong(error)),
        },
    };
    if document.version != VERSION {
        return Err(unknown_version(path, document.version));
    }
    NodeTable::new(document.nodes)
}

fn unknown_version(path: &Path, version: u64) -> OverlayError {
    OverlayError::StateFileVersion {
        path: path.to_owned(),
        version,
    }
}

/// Writes a state file in one step: a reader sees the old table or the new one, also after a crash.
///
/// # Errors
/// [`OverlayError::Io`]; the old table stays then.
pub fn write_state_file(path: &Path, table: &NodeTable) -> Result<(), OverlayError> {
    let document = DocumentRef {
        version: VERSION,
        nodes: table,
    };
    let mut text = serde_json::to_vec(&document).map_err(|source| OverlayError::StateFile {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let written = write_synced(&draft, &text)
        .and_then(|()| fs::rename(&draft, path).map_err(io_error("replacing", path)));
    if written.is_err() {
        // What went wrong is the first error.
        fs::remove_file(&draft).ok();
    }
    written
}

fn write_synced(path: &Path, text: &[u8]) -> Result<(), OverlayError> {
    let mut file = File::create(path).map_err(io_error("making", path))?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .map_err(io_error("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> NodeTable {
        let node = Node {
            name: "a".to_owned(),
            underlay: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            vtep_mac: None,
        };
        NodeTable::new(vec![node]).unwrap()
    }

    #[test]
    fn a_table_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes.json");
        let missing = read_state_file(&path).unwrap_err();
        assert!(missing.is_transient() && !missing.is_configuration());
        write_state_file(&path, &table()).unwrap();
        assert_eq!(read_state_file(&path).unwrap(), table());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_table_and_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_state_file(&path, &table()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read_state_file(&path).unwrap_err()
        };
        for text in [
            "",
            "{",
            "[]",
            "null",
            r#"{"version":1}"#,
            r#"{"version":1,"nodes":[],"more":1}"#,
            r#"{"version":1,"nodes":[{"name":"a"}]}"#,
        ] {
            assert!(
                matches!(read(text), OverlayError::StateFile { .. }),
                "{text}"
            );
        }
        let next = r#"{"version":2,"peers":[]}"#;
        assert!(matches!(
            read(next),
            OverlayError::StateFileVersion { version: 2, .. }
        ));
        let twice = r#"{"version":1,"nodes":[
            {"name":"a","underlay":["192.0.2.1"],"podCIDRs":["10.0.0.0/24"]},
            {"name":"b","underlay":["192.0.2.1"],"podCIDRs":["10.0.1.0/24"]}]}"#;
        assert!(matches!(read(twice), OverlayError::Conflict { .. }));
        fs::write(&path, vec![b' '; 17 << 20]).unwrap();
        assert!(matches!(
            read_state_file(&path),
            Err(OverlayError::StateFileSize { .. })
        ));
    }
}
