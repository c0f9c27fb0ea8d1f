//! The folder on the BPF file system that keeps programs and maps alive, and its removal.
//!
//! ```text
//! <bpffs_dir>/links/connect4 …            the attachments
//! <bpffs_dir>/pod_egress, pod_ingress     the programs for pods' links
//! <bpffs_dir>/pods/12 …                   the attachments of the first, by the number of the link
//! <bpffs_dir>/pods_ingress/12 …           those of the second
//! <bpffs_dir>/uplinks/in-2 …              those at links to the outside, for both ways, and XDP's
//! <bpffs_dir>/uplink_in, uplink_out, uplink_xdp   the programs that they attach
//! <bpffs_dir>/maps-<abi>-<shape>/LB_…    the tables; another ABI or other sizes lie beside
//! ```

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs},
};

use crate::{DatapathError, sys};

/// The source of mounts that we made, as mountinfo shows it.
const MOUNT_SOURCE: &str = "skiff";

pub(crate) const LINKS: &str = "links";
/// The programs at pods' links: for what pods send, for what they get.
pub(crate) const POD_PROGRAMS: [&str; 2] = ["pod_egress", "pod_ingress"];
pub(crate) const UPLINKS: &str = "uplinks";
/// The programs at links to the outside: for frames, for packets that come in, for those that go out.
pub(crate) const UPLINK_PROGRAMS: [&str; 3] = ["uplink_xdp", "uplink_in", "uplink_out"];
pub(crate) const MAPS_PREFIX: &str = "maps-";

/// Where the attachments of one of [`POD_PROGRAMS`] are pinned.
pub(crate) fn pods_folder(program: &str) -> &'static str {
    let [egress, _] = POD_PROGRAMS;
    if program == egress {
        "pods"
    } else {
        "pods_ingress"
    }
}

fn filesystem(path: &Path) -> Result<FsType, DatapathError> {
    let found = statfs(path).map_err(|e| DatapathError::io("looking at", path, e.into()))?;
    Ok(found.filesystem_type())
}

/// Fails unless `path` is a folder of a cgroup2 hierarchy.
pub(crate) fn check_cgroup2(path: &Path) -> Result<(), DatapathError> {
    if filesystem(path)? == CGROUP2_SUPER_MAGIC {
        Ok(())
    } else {
        Err(DatapathError::NotCgroup2 {
            path: path.to_owned(),
        })
    }
}

/// Makes the folder; if it is not on a BPF file system, mounts one there.
pub(crate) fn ensure(path: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(path).map_err(|e| DatapathError::io("making", path, e))?;
    if filesystem(path)? != BPF_FS_MAGIC {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some(MOUNT_SOURCE),
            path,
            Some("bpf"),
            flags,
            Some("mode=0700"),
        )
        .map_err(|error| match error {
            Errno::ENODEV => DatapathError::MissingFeature {
                feature: "the BPF file system (CONFIG_BPF_SYSCALL)",
                since: "5.18",
            },
            _ => DatapathError::io("mounting a BPF file system at", path, error.into()),
        })?;
    }
    Ok(())
}

/// The folder with the maps that the attached programs use: the only one, but for the moments of a change of their sizes.
pub(crate) fn maps_in_force(bpffs: &Path) -> Result<PathBuf, DatapathError> {
    let absent = io::Error::from(io::ErrorKind::NotFound);
    let mut folders = other_map_folders(bpffs, Path::new(""));
    folders.sort();
    folders
        .into_iter()
        .next()
        .ok_or_else(|| DatapathError::io("finding the datapath's tables in", bpffs, absent))
}

/// The map folders other than `current`.
pub(crate) fn other_map_folders(bpffs: &Path, current: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(bpffs) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path != current)
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(MAPS_PREFIX))
        })
        .collect()
}

/// Removes everything that [`crate::Datapath::open`] made for this folder: attachments, maps, folders, and the mount
/// if it was ours. What is gone already is no error; goes on after an error and returns the first.
///
/// # Errors
/// [`DatapathError::Io`] naming what could not be removed.
pub fn teardown(bpffs_dir: &Path) -> Result<(), DatapathError> {
    let mut first = None;
    let mut note = |result: Result<(), DatapathError>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };
    if bpffs_dir.exists() && filesystem(bpffs_dir)? == BPF_FS_MAGIC {
        let folders = POD_PROGRAMS.map(|name| bpffs_dir.join(pods_folder(name)));
        for links in folders
            .into_iter()
            .chain([LINKS, UPLINKS].map(|name| bpffs_dir.join(name)))
        {
            for path in children(&links) {
                note(remove_link(&path));
            }
            note(absent_is_fine("removing", &links, fs::remove_dir(&links)));
        }
        let programs = POD_PROGRAMS.into_iter().chain(UPLINK_PROGRAMS);
        for program in programs.map(|name| bpffs_dir.join(name)) {
            let removed = fs::remove_file(&program);
            note(absent_is_fine("removing", &program, removed));
        }
        for folder in other_map_folders(bpffs_dir, Path::new("")) {
            note(remove_map_folder(&folder));
        }
    }
    if is_our_mount(bpffs_dir) {
        note(
            umount2(bpffs_dir, MntFlags::MNT_DETACH)
                .map_err(|e| DatapathError::io("unmounting", bpffs_dir, e.into())),
        );
    }
    note(absent_is_fine(
        "removing",
        bpffs_dir,
        fs::remove_dir(bpffs_dir),
    ));
    first.map_or(Ok(()), Err)
}

/// Takes an attachment away, even if somebody (a daemon that still runs) holds it open.
pub(crate) fn remove_link(path: &Path) -> Result<(), DatapathError> {
    if let Ok(link) = sys::obj_get(path)
        && let Err(error) = sys::link_detach(link.as_fd())
    {
        tracing::debug!(%error, path = %path.display(), "detaching");
    }
    absent_is_fine("removing", path, fs::remove_file(path))
}

/// Unpins the maps of one folder and removes it.
pub(crate) fn remove_map_folder(folder: &Path) -> Result<(), DatapathError> {
    for path in children(folder) {
        absent_is_fine("removing", &path, fs::remove_file(&path))?;
    }
    absent_is_fine("removing", folder, fs::remove_dir(folder))
}

pub(crate) fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

fn absent_is_fine(
    what: &'static str,
    path: &Path,
    result: io::Result<()>,
) -> Result<(), DatapathError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::io(what, path, error))
        }
        _ => Ok(()),
    }
}

/// Whether a BPF file system of ours is mounted exactly there.
fn is_our_mount(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let Some((fields, kind)) = line.split_once(" - ") else {
            return false;
        };
        let at = fields.split(' ').nth(4).map(unescape);
        at.as_deref() == path.to_str()
            && kind.starts_with("bpf ")
            && kind.split(' ').nth(1) == Some(MOUNT_SOURCE)
    })
}

/// mountinfo writes blanks as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}
