//! `subPath` of a volume mount.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::VolumeError;

/// Where `subpath` of the volume at `volume` is on the node; a missing one becomes a directory. What leads
/// out of the volume, by name or by link, is refused.
///
/// # Errors
/// [`VolumeError::BadPath`] or [`VolumeError::Io`].
pub(crate) fn resolve_subpath(volume: &Path, subpath: &str) -> Result<PathBuf, VolumeError> {
    let bad = || VolumeError::BadPath {
        path: subpath.to_owned(),
    };
    let relative = Path::new(subpath);
    if relative
        .components()
        .any(|c| !matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(bad());
    }
    let io = |path: &Path, source| VolumeError::io("resolving", path, source);
    let root = volume.canonicalize().map_err(|source| io(volume, source))?;
    let mut current = root.clone();
    for component in relative.components() {
        let next = current.join(component);
        if !next.exists() && !next.is_symlink() {
            fs::create_dir(&next).map_err(|source| io(&next, source))?;
        }
        current = next.canonicalize().map_err(|source| io(&next, source))?;
        if !current.starts_with(&root) {
            return Err(bad());
        }
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn stays_in_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        fs::create_dir(&volume).unwrap();
        let volume = volume.canonicalize().unwrap();
        assert_eq!(resolve_subpath(&volume, "a/b").unwrap(), volume.join("a/b"));
        assert!(volume.join("a/b").is_dir());
        symlink("/etc", volume.join("out")).unwrap();
        symlink("a", volume.join("in")).unwrap();
        assert_eq!(
            resolve_subpath(&volume, "in/b").unwrap(),
            volume.join("a/b")
        );
        for path in ["out", "out/x", "../x", "/etc", "a/../../x"] {
            assert!(
                matches!(
                    resolve_subpath(&volume, path),
                    Err(VolumeError::BadPath { .. })
                ),
                "{path}"
            );
        }
    }
}
