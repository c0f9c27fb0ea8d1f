//! State files: JSON, replaced whole, never seen half-written.

use std::{collections::BTreeMap, fs, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::RuntimeError;

/// What the daemon knows of a container when it makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// Name of the container in the pod.
    pub name: String,
    /// How often this container was started before in this pod.
    pub restart_count: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// As given by the caller.
    pub annotations: BTreeMap<String, String>,
}

/// What the shim knows of a container that it has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunState {
    /// Process id of its init.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot: tells a reused pid from the container.
    pub start_ticks: u64,
    /// When it was started.
    pub started_at: Timestamp,
}

/// Reads a state file; `None` if there is none.
///
/// # Errors
/// [`RuntimeError::Io`] or [`RuntimeError::Decode`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuntimeError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RuntimeError::io("reading", path, source)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| RuntimeError::Decode {
            path: path.to_owned(),
            source,
        })
}

/// Replaces a state file in one step.
///
/// # Errors
/// [`RuntimeError::Io`].
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), RuntimeError> {
    let bytes = serde_json::to_vec(value).map_err(|source| RuntimeError::Decode {
        path: path.to_owned(),
        source,
    })?;
    write_bytes(path, &bytes)
}

/// Replaces a file in one step.
///
/// # Errors
/// [`RuntimeError::Io`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), RuntimeError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let partial = Path::new(&partial);
    fs::write(partial, bytes).map_err(|source| RuntimeError::io("writing", partial, source))?;
    fs::rename(partial, path).map_err(|source| RuntimeError::io("replacing", path, source))
}

/// The start time of a process in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_an_absent_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(read::<RunState>(&path).unwrap(), None);
        let state = RunState {
            pid: 7,
            start_ticks: 9,
            started_at: Timestamp::UNIX_EPOCH,
        };
        write(&path, &state).unwrap();
        assert_eq!(read(&path).unwrap(), Some(state));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            read::<RunState>(&path),
            Err(RuntimeError::Decode { .. })
        ));
    }

    #[test]
    fn start_ticks_of_a_living_process_are_known() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_ticks(own).unwrap() > 0);
        assert_eq!(start_ticks(i32::MAX), None);
    }
}
