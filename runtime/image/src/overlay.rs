//! Mounting overlayfs with any number of layers, on kernels old and new.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use crate::snapshot::SnapshotError;

/// A directory as a mount option: its path if that fits, else by a file descriptor that must stay open.
struct OptionPath {
    text: String,
    _fd: Option<OwnedFd>,
}

impl OptionPath {
    fn by_fd(path: &Path) -> Result<OptionPath, SnapshotError> {
        let fd = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(SnapshotError::io("open", path))?;
        Ok(OptionPath {
            text: format!("/proc/self/fd/{}", fd.as_raw_fd()),
            _fd: Some(fd),
        })
    }

    fn new(path: &Path) -> Result<OptionPath, SnapshotError> {
        match path.to_str() {
            // The kernel takes 255 bytes, and reads commas, colons and backslashes its own way.
            Some(text) if text.len() < 256 && !text.contains([',', ':', '\\']) => Ok(OptionPath {
                text: text.to_owned(),
                _fd: None,
            }),
            _ => OptionPath::by_fd(path),
        }
    }
}

/// Mounts `lower` (the topmost first) below `upper` on `target`.
pub(crate) fn mount_overlay(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<(), SnapshotError> {
    match mount_by_layer(lower, upper, work, target) {
        // `lowerdir+` is known since Linux 6.5.
        Err(NewMountError::NotKnown) => mount_at_once(lower, upper, work, target),
        Err(NewMountError::Failed(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

enum NewMountError {
    NotKnown,
    Failed(SnapshotError),
}

impl From<SnapshotError> for NewMountError {
    fn from(error: SnapshotError) -> NewMountError {
        NewMountError::Failed(error)
    }
}

/// One option a layer: their number is not bounded by a page.
fn mount_by_layer(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<(), NewMountError> {
    let failed = || SnapshotError::io::<Errno>("mount overlay on", target);
    let fs = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(fs) => fs,
        Err(Errno::NOSYS) => return Err(NewMountError::NotKnown),
        Err(e) => return Err(failed()(e).into()),
    };
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value);
    set("source", "overlay").map_err(failed())?;
    for path in lower {
        let option = OptionPath::new(path)?;
        match set("lowerdir+", &option.text) {
            Ok(()) => {}
            Err(Errno::INVAL) => return Err(NewMountError::NotKnown),
            Err(e) => return Err(failed()(e).into()),
        }
    }
    let (upper, work) = (OptionPath::new(upper)?, OptionPath::new(work)?);
    set("upperdir", &upper.text).map_err(failed())?;
    set("workdir", &work.text).map_err(failed())?;
    set("index", "off").map_err(failed())?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(failed())?;
    let mount = rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(failed())?;
    rustix::mount::move_mount(
        mount.as_fd(),
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed())?;
    Ok(())
}

/// All options in one string of at most a page; by file descriptor a layer takes some 17 bytes.
fn mount_at_once(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<(), SnapshotError> {
    let lower: Vec<OptionPath> = lower
        .iter()
        .map(|path| OptionPath::by_fd(path))
        .collect::<Result<_, _>>()?;
    let (upper, work) = (OptionPath::by_fd(upper)?, OptionPath::by_fd(work)?);
    let list: Vec<&str> = lower.iter().map(|option| option.text.as_str()).collect();
    let data = format!(
        "index=off,lowerdir={},upperdir={},workdir={}",
        list.join(":"),
        upper.text,
        work.text
    );
    let failed = || SnapshotError::io::<io::Error>("mount overlay on", target);
    if data.len() >= 4096 {
        return Err(failed()(io::Error::other(
            "too many layers for this kernel, Linux 6.5 has no such limit",
        )));
    }
    let data = std::ffi::CString::new(data).map_err(|e| failed()(e.into()))?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        data.as_c_str(),
    )
    .map_err(SnapshotError::io("mount overlay on", target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_mount_options_cannot_carry_go_by_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let plain = OptionPath::new(dir.path()).unwrap();
        assert_eq!(Path::new(&plain.text), dir.path());
        for name in ["a,b", "a:b", "a\\b", &"x".repeat(250)] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let option = OptionPath::new(&path).unwrap();
            assert!(option.text.starts_with("/proc/self/fd/"), "{name}");
            assert_eq!(std::fs::read_link(&option.text).unwrap(), path);
        }
    }
}
