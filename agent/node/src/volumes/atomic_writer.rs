//! Files that change all at once: upstream's AtomicWriter layout.
//!
//! ```text
//! volume/key            -> ..data/key
//! volume/..data         -> ..1699999999.123
//! volume/..1699999999.123/key
//! ```
//! An update writes a new directory and swaps `..data` by one rename, so a reader sees the old files or the
//! new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use super::VolumeError;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Its content.
    pub(crate) data: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// The files of a volume by relative path.
pub(crate) type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Makes `directory` show exactly `payload`; whether anything changed. `group` gets the files, readable.
///
/// # Errors
/// [`VolumeError::BadPath`] for a path that would leave the volume, [`VolumeError::Io`] otherwise.
pub(crate) fn write(
    directory: &Path,
    payload: &Payload,
    group: Option<u32>,
) -> Result<bool, VolumeError> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let run = |operation: &'static str, path: &Path, result: io::Result<()>| {
        result.map_err(|source| VolumeError::io(operation, path, source))
    };
    run("making", directory, fs::create_dir_all(directory))?;
    run("setting the mode of", directory, set_mode(directory, 0o755))?;
    let current = fs::read_link(directory.join(DATA)).ok();
    if let Some(current) = &current
        && is_same(&directory.join(current), payload, group)
    {
        return Ok(false);
    }
    let generation = new_generation(directory)?;
    if let Err(error) = write_files(&generation, payload, group) {
        drop(fs::remove_dir_all(&generation));
        return Err(error);
    }
    let tmp = directory.join(DATA_TMP);
    drop(fs::remove_file(&tmp));
    let name = generation
        .file_name()
        .map(PathBuf::from)
        .unwrap_or_default();
    run("linking", &tmp, symlink(&name, &tmp))?;
    run("swapping", &tmp, fs::rename(&tmp, directory.join(DATA)))?;
    show(directory, payload)?;
    if let Some(old) = current {
        let old = directory.join(old);
        run(
            "removing",
            &old,
            fs::remove_dir_all(&old).or_else(absent_is_fine),
        )?;
    }
    Ok(true)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

fn check_path(path: &str) -> Result<(), VolumeError> {
    let mut components = Path::new(path).components().peekable();
    let first_is_fine = components
        .peek()
        .is_some_and(|first| !first.as_os_str().to_string_lossy().starts_with(".."));
    if first_is_fine && components.all(|component| matches!(component, Component::Normal(_))) {
        return Ok(());
    }
    Err(VolumeError::BadPath {
        path: path.to_owned(),
    })
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn new_generation(directory: &Path) -> Result<PathBuf, VolumeError> {
    for attempt in 0_u32.. {
        let now = jiff::Timestamp::now();
        let path = directory.join(format!("..{}.{attempt}", now.as_nanosecond()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => {}
            Err(source) => return Err(VolumeError::io("making", &path, source)),
            Ok(()) => {
                set_mode(&path, 0o755)
                    .map_err(|source| VolumeError::io("making", &path, source))?;
                return Ok(path);
            }
        }
    }
    Err(VolumeError::io(
        "making a directory in",
        directory,
        io::ErrorKind::AlreadyExists.into(),
    ))
}

fn write_files(
    generation: &Path,
    payload: &Payload,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    for (name, file) in payload {
        let path = generation.join(name);
        let write = || -> io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, &file.data)?;
            if let Some(group) = group {
                chown(&path, None, Some(group))?;
            }
            set_mode(&path, effective_mode(file, group))
        };
        write().map_err(|source| VolumeError::io("writing", &path, source))?;
    }
    Ok(())
}

fn effective_mode(file: &File, group: Option<u32>) -> u32 {
    if group.is_some() {
        file.mode | 0o440
    } else {
        file.mode
    }
}

fn is_same(generation: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    if collect(generation, generation, &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(name, file)| {
        let path = generation.join(name);
        let mode = fs::metadata(&path).map(|meta| meta.permissions().mode() & 0o7777);
        found.contains(Path::new(name))
            && mode.is_ok_and(|mode| mode == effective_mode(file, group))
            && fs::read(&path).is_ok_and(|data| data == file.data)
    })
}

fn collect(root: &Path, directory: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, found)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.insert(relative.to_owned());
        }
    }
    Ok(())
}

/// Links the top level of the payload into the volume and drops links of what is gone.
fn show(directory: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let top = |path: &str| path.split('/').next().map(str::to_owned);
    let wanted: BTreeSet<String> = payload.keys().filter_map(|path| top(path)).collect();
    for name in &wanted {
        let link = directory.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(VolumeError::io("linking", &link, error));
            }
            _ => {}
        }
    }
    let entries =
        fs::read_dir(directory).map_err(|source| VolumeError::io("reading", directory, source))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| VolumeError::io("removing", &path, source))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let file = |(name, data, mode): &(&str, &str, u32)| {
            (
                (*name).to_owned(),
                File {
                    data: data.as_bytes().to_vec(),
                    mode: *mode,
                },
            )
        };
        files.iter().map(file).collect()
    }

    fn visible(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_shown_through_links_and_swapped_at_once() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        assert!(
            write(
                &volume,
                &payload(&[("a", "1", 0o644), ("d/b", "2", 0o400)]),
                None
            )
            .unwrap()
        );
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        assert_eq!(
            fs::metadata(volume.join("d/b"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o400
        );
        assert_eq!(
            fs::read_link(volume.join("a")).unwrap(),
            Path::new("..data/a")
        );
        let old = fs::read_link(volume.join("..data")).unwrap();

        assert!(
            write(
                &volume,
                &payload(&[("a", "3", 0o644), ("c", "4", 0o644)]),
                None
            )
            .unwrap()
        );
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert_eq!(visible(&volume), ["a", "c"]);
        assert!(!volume.join(old).exists());
    }

    #[test]
    fn the_same_files_change_nothing() {
        let root = tempfile::tempdir().unwrap();
        let files = payload(&[("a", "1", 0o644)]);
        assert!(write(root.path(), &files, None).unwrap());
        let before = fs::read_link(root.path().join("..data")).unwrap();
        assert!(!write(root.path(), &files, None).unwrap());
        assert_eq!(fs::read_link(root.path().join("..data")).unwrap(), before);
        assert!(write(root.path(), &payload(&[("a", "1", 0o600)]), None).unwrap());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            let result = write(
                &root.path().join("v"),
                &payload(&[(path, "1", 0o644)]),
                None,
            );
            assert!(matches!(result, Err(VolumeError::BadPath { .. })), "{path}");
        }
        assert!(!root.path().join("x").exists());
    }
}
