//! A pod's volumes: `emptyDir`, `hostPath` and those made of files.
//!
//! They lie in `<data>/pods/<uid>/volumes/<kind>/<name>`. [`set_up`] is idempotent; running it again brings
//! changed ConfigMaps and Secrets in. [`tear_down`] removes everything, unmounting memory volumes first.

mod atomic_writer;
mod payload;
mod subpath;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, HostPathVolumeSource, Pod, Secret, Volume};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::env::Allocatable;

pub(crate) use self::subpath::resolve_subpath;

/// Why a volume cannot be had. The text follows `MountVolume.SetUp failed for volume "x" :`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// An object that it shows is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// "configmap" or "secret".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("references non-existent {} key: {key}", if *.kind == "secret" { "secret" } else { "config" })]
    NoKey {
        /// "configmap" or "secret".
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// The key.
        key: String,
    },
    /// A field that it shows cannot be had.
    #[error("downward API")]
    Downward {
        /// Why.
        #[source]
        source: crate::env::EnvError,
    },
    /// A path in it would leave it.
    #[error("invalid path {path:?} in a volume")]
    BadPath {
        /// The path.
        path: String,
    },
    /// A kind of volume that this node does not know.
    #[error("unsupported volume type")]
    Unsupported,
    /// The `hostPath` is not what it is said to be.
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath {
        /// The path.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// The system refused.
    #[error("{operation} {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// The objects that a pod's volumes show.
#[derive(Debug, Default, Clone)]
pub(crate) struct Objects {
    /// ConfigMaps by name.
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets by name.
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// What the node can give.
    pub(crate) allocatable: Allocatable,
}

/// Names of the ConfigMaps and Secrets that the pod's volumes show.
pub(crate) fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for volume in pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
    {
        maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(
            volume
                .secret
                .iter()
                .filter_map(|source| source.secret_name.clone()),
        );
        let projected = volume
            .projected
            .iter()
            .flat_map(|source| source.sources.iter().flatten());
        for source in projected {
            maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    (maps, secrets)
}

/// Names of the volumes that show objects of the API: containers only read them.
pub(crate) fn shown(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let shows = |volume: &&Volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
    };
    volumes
        .filter(shows)
        .map(|volume| volume.name.clone())
        .collect()
}

/// A volume that could not be made, and why.
#[derive(Debug)]
pub(crate) struct FailedVolume {
    /// Its name.
    pub(crate) name: String,
    /// Why.
    pub(crate) error: VolumeError,
}

/// Makes or refreshes all volumes of the pod below `root`; where each is on the node. Blocking.
///
/// # Errors
/// The first volume that cannot be made.
pub(crate) fn set_up(
    pod: &Pod,
    root: &Path,
    objects: &Objects,
) -> Result<BTreeMap<String, PathBuf>, FailedVolume> {
    let spec = pod.spec.as_ref();
    let context = spec.and_then(|spec| spec.security_context.as_ref());
    let group = context
        .and_then(|c| c.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    let mut places = BTreeMap::new();
    for volume in spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let place =
            set_up_one(pod, volume, root, objects, group).map_err(|error| FailedVolume {
                name: volume.name.clone(),
                error,
            })?;
        places.insert(volume.name.clone(), place);
    }
    Ok(places)
}

fn set_up_one(
    pod: &Pod,
    volume: &Volume,
    root: &Path,
    objects: &Objects,
    group: Option<u32>,
) -> Result<PathBuf, VolumeError> {
    if let Some(source) = &volume.host_path {
        return host_path(source);
    }
    if let Some(source) = &volume.empty_dir {
        let place = root.join("empty-dir").join(&volume.name);
        let size = source
            .size_limit
            .as_ref()
            .and_then(|size| skiff_spec::parse_bytes(&size.0).ok());
        empty_dir(
            &place,
            source.medium.as_deref() == Some("Memory"),
            size,
            group,
        )?;
        return Ok(place);
    }
    let Some(files) = payload::payload(pod, volume, objects)? else {
        return Err(VolumeError::Unsupported);
    };
    let place = root.join("files").join(&volume.name);
    if volume.secret.is_some() || volume.projected.is_some() {
        // Secrets never reach a disk.
        make_dir(&place)?;
        mount_memory(&place, None)?;
    }
    atomic_writer::write(&place, &files, group)?;
    Ok(place)
}

fn empty_dir(
    place: &Path,
    memory: bool,
    size: Option<i64>,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    make_dir(place)?;
    if memory {
        mount_memory(place, size)?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    let set = || -> io::Result<()> {
        if let Some(group) = group {
            chown(place, None, Some(group))?;
        }
        fs::set_permissions(place, fs::Permissions::from_mode(mode))
    };
    set().map_err(|source| VolumeError::io("setting the mode of", place, source))
}

fn make_dir(place: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(place).map_err(|source| VolumeError::io("making", place, source))
}

/// Has a file system in memory there.
fn mount_memory(place: &Path, size: Option<i64>) -> Result<(), VolumeError> {
    if is_mount_point(place) {
        return Ok(());
    }
    let options = size.map(|size| format!("size={size}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        place,
        Some("tmpfs"),
        flags,
        options.as_deref(),
    )
    .map_err(|errno| VolumeError::io("mounting tmpfs at", place, errno.into()))
}

/// A mount point is on another device than its parent.
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let parent = path.parent().and_then(|parent| fs::metadata(parent).ok());
    match (fs::metadata(path), parent) {
        (Ok(meta), Some(parent)) => meta.dev() != parent.dev(),
        _ => false,
    }
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    use std::os::unix::fs::FileTypeExt;
    let path = PathBuf::from(&source.path);
    let meta = fs::metadata(&path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let is = |test: fn(&fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    let wrong = |wanted| {
        Err(VolumeError::HostPath {
            path: path.clone(),
            wanted,
        })
    };
    let made = |operation: &'static str, result: io::Result<()>| {
        result.map_err(|source| VolumeError::io(operation, &path, source))
    };
    match kind {
        // As container runtimes do: a missing source becomes a directory.
        "" | "DirectoryOrCreate" if meta.is_err() => made("making", fs::create_dir_all(&path))?,
        "FileOrCreate" if meta.is_err() => made("making", fs::write(&path, b""))?,
        "DirectoryOrCreate" | "Directory" if !is(fs::Metadata::is_dir) => {
            return wrong("directory");
        }
        "FileOrCreate" | "File" if !is(fs::Metadata::is_file) => return wrong("file"),
        "Socket" if !is(|meta| meta.file_type().is_socket()) => return wrong("socket"),
        "CharDevice" if !is(|meta| meta.file_type().is_char_device()) => {
            return wrong("character device");
        }
        "BlockDevice" if !is(|meta| meta.file_type().is_block_device()) => {
            return wrong("block device");
        }
        _ => {}
    }
    Ok(path)
}

/// Unmounts and removes all volumes below `root`. Absent is success. Blocking.
///
/// # Errors
/// [`VolumeError::Io`] naming what stays.
pub(crate) fn tear_down(root: &Path) -> Result<(), VolumeError> {
    let kinds = ["empty-dir", "files"].iter();
    let places = kinds.filter_map(|kind| fs::read_dir(root.join(kind)).ok());
    for entry in places.flatten().flatten() {
        let place = entry.path();
        if is_mount_point(&place) {
            umount2(&place, MntFlags::MNT_DETACH)
                .map_err(|errno| VolumeError::io("unmounting", &place, errno.into()))?;
        }
    }
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(VolumeError::io("removing", root, error))
        }
        _ => Ok(()),
    }
}

/// Unmounts and removes the volumes of all pods of a node that is taken down; absent is success. Blocking.
///
/// # Errors
/// The first volume that stays.
pub fn remove_volumes(config: &crate::NodeConfig) -> io::Result<()> {
    for pod in fs::read_dir(config.data_dir.join("pods"))
        .into_iter()
        .flatten()
    {
        tear_down(&pod?.path().join("volumes")).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(volumes: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [], "volumes": volumes}})).unwrap()
    }

    #[test]
    fn volumes_are_made_twice_without_harm_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let host = root.path().join("host");
        let pod = pod(json!([
            {"name": "e", "emptyDir": {}},
            {"name": "h", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
        ]));
        let volumes = root.path().join("volumes");
        for _ in 0..2 {
            let places = set_up(&pod, &volumes, &Objects::default()).unwrap();
            assert_eq!(
                fs::metadata(&places["e"]).unwrap().permissions().mode() & 0o777,
                0o777
            );
            assert_eq!(places["h"], host);
        }
        tear_down(&volumes).unwrap();
        tear_down(&volumes).unwrap();
        assert!(!volumes.exists());
        assert!(host.exists(), "hostPath is not ours to remove");
    }

    #[test]
    fn the_volume_that_fails_is_named() {
        let root = tempfile::tempdir().unwrap();
        let missing = pod(json!([{"name": "cfg", "configMap": {"name": "gone"}}]));
        let failed = set_up(&missing, root.path(), &Objects::default()).unwrap_err();
        assert_eq!(
            (failed.name.as_str(), failed.error.to_string().as_str()),
            ("cfg", "configmap \"gone\" not found")
        );
        let claim = pod(json!([{"name": "d", "persistentVolumeClaim": {"claimName": "x"}}]));
        let failed = set_up(&claim, root.path(), &Objects::default()).unwrap_err();
        assert!(matches!(failed.error, VolumeError::Unsupported));
        let host =
            pod(json!([{"name": "h", "hostPath": {"path": "/dev/null", "type": "Directory"}}]));
        let failed = set_up(&host, root.path(), &Objects::default()).unwrap_err();
        assert_eq!(
            failed.error.to_string(),
            "hostPath type check failed: /dev/null is not a directory"
        );
    }
}
