//! The directory that a layer is unpacked into. Everything below is reached from its file descriptor with
//! `openat2`, which refuses to leave it and to follow any symbolic link.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tar::EntryType;

use super::UnpackError;
use super::entry::Metadata;

const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);
const OPAQUE: &str = "trusted.overlay.opaque";

type Components<'a> = [&'a [u8]];

pub(super) struct Tree {
    root: Rc<OwnedFd>,
    /// The parent opened last: entries of one directory follow each other.
    cached: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories made without an entry.
    implicit: std::collections::BTreeSet<Vec<u8>>,
    /// Times of directories, set at the end: what is made in them changes them.
    times: std::collections::BTreeMap<Vec<u8>, Duration>,
}

impl Tree {
    pub(super) fn open(target: &Path) -> Result<Tree, UnpackError> {
        let root = rustix::fs::open(target, DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(UnpackError::write("open", target.as_os_str().as_bytes()))?;
        Ok(Tree {
            root: Rc::new(root),
            cached: None,
            implicit: std::collections::BTreeSet::new(),
            times: std::collections::BTreeMap::new(),
        })
    }

    pub(super) fn implicit_count(&self) -> u64 {
        self.implicit.len() as u64
    }

    /// Sets the directories' times; returns the directories that had no entry.
    pub(super) fn finish(self) -> Result<Vec<String>, UnpackError> {
        for (path, mtime) in &self.times {
            let fd = match open_inside(&self.root, path, OFlags::RDONLY) {
                Ok(fd) => fd,
                // Replaced by something else later in the tar.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(e) => return Err(UnpackError::write("open", path)(e)),
            };
            rustix::fs::futimens(&fd, &timestamps(*mtime))
                .map_err(UnpackError::write("set times of", path))?;
        }
        Ok(self
            .implicit
            .iter()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect())
    }

    pub(super) fn directory(
        &mut self,
        path: &Components<'_>,
        metadata: &Metadata,
    ) -> Result<(), UnpackError> {
        let joined = join(path);
        let fd = match path.split_last() {
            None => Rc::clone(&self.root),
            Some((name, parent)) => {
                let parent = self.parent(parent)?;
                let existing = stat(&parent, name);
                match &existing {
                    Some(stat) if is_dir(stat) => {}
                    _ => {
                        self.clear(&parent, name, &joined)?;
                        rustix::fs::mkdirat(&*parent, os(name), Mode::from_raw_mode(0o700))
                            .map_err(UnpackError::write("make directory", &joined))?;
                    }
                }
                let fd = open_inside(&parent, name, OFlags::RDONLY)
                    .map_err(UnpackError::write("open", &joined))?;
                // The whiteout hid what is below: the new directory shows nothing of it.
                if existing.as_ref().is_some_and(is_whiteout) {
                    set_opaque(&fd, &joined)?;
                }
                Rc::new(fd)
            }
        };
        set_owner(&fd, metadata)?;
        rustix::fs::fchmod(&*fd, Mode::from_raw_mode(metadata.mode))
            .map_err(UnpackError::write("set mode of", &joined))?;
        set_xattrs(&fd, metadata)?;
        self.implicit.remove(&joined);
        self.times.insert(joined, metadata.mtime);
        Ok(())
    }

    pub(super) fn file(
        &mut self,
        path: &Components<'_>,
        metadata: &Metadata,
        body: &mut dyn io::Read,
    ) -> Result<(), UnpackError> {
        let (parent, name) = self.make_room(path)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*parent, os(name), flags, Mode::from_raw_mode(0o600))
            .map_err(UnpackError::write("create", &metadata.path))?;
        let mut file = std::fs::File::from(fd);
        let copied = copy(body, &mut file, &metadata.path)?;
        if copied != metadata.size {
            return Err(UnpackError::refused(&metadata.path, "content is cut short"));
        }
        let fd = OwnedFd::from(file);
        set_owner(&fd, metadata)?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(metadata.mode))
            .map_err(UnpackError::write("set mode of", &metadata.path))?;
        set_xattrs(&fd, metadata)?;
        rustix::fs::futimens(&fd, &timestamps(metadata.mtime))
            .map_err(UnpackError::write("set times of", &metadata.path))
    }

    pub(super) fn symlink(
        &mut self,
        path: &Components<'_>,
        metadata: &Metadata,
    ) -> Result<(), UnpackError> {
        if metadata.link.is_empty() || metadata.link.len() > 4095 || metadata.link.contains(&0) {
            return Err(UnpackError::refused(
                &metadata.path,
                "symbolic link has no valid target",
            ));
        }
        let (parent, name) = self.make_room(path)?;
        // Any target will do: nothing here ever follows it, and the container follows it in its own root.
        rustix::fs::symlinkat(os(&metadata.link), &*parent, os(name))
            .map_err(UnpackError::write("make symbolic link", &metadata.path))?;
        set_owner_at(&parent, name, metadata)?;
        set_times_at(&parent, name, metadata)
    }

    pub(super) fn hard_link(
        &mut self,
        path: &Components<'_>,
        target: &Components<'_>,
        metadata: &Metadata,
    ) -> Result<(), UnpackError> {
        let Some((target_name, target_parent)) = target.split_last() else {
            return Err(UnpackError::refused(
                &metadata.path,
                "hard link to the root",
            ));
        };
        if path == target {
            return Err(UnpackError::refused(&metadata.path, "hard link to itself"));
        }
        let source = match open_inside(&self.root, &join(target_parent), OFlags::PATH) {
            Ok(fd) => fd,
            Err(e @ (Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NOENT)) => {
                return Err(UnpackError::refused(
                    &metadata.path,
                    format!("hard link target: {}", reason(e)),
                ));
            }
            Err(e) => return Err(UnpackError::write("open", &metadata.link)(e)),
        };
        match stat(&source, target_name) {
            None => {
                return Err(UnpackError::refused(
                    &metadata.path,
                    "hard link target is not in the layer",
                ));
            }
            Some(stat) if is_dir(&stat) => {
                return Err(UnpackError::refused(
                    &metadata.path,
                    "hard link to a directory",
                ));
            }
            Some(_) => {}
        }
        let (parent, name) = self.make_room(path)?;
        // Without AT_SYMLINK_FOLLOW a symbolic link is linked itself, not what it points to.
        rustix::fs::linkat(
            &source,
            os(target_name),
            &*parent,
            os(name),
            AtFlags::empty(),
        )
        .map_err(UnpackError::write("make hard link", &metadata.path))
    }

    pub(super) fn device(
        &mut self,
        path: &Components<'_>,
        kind: EntryType,
        metadata: &Metadata,
    ) -> Result<(), UnpackError> {
        let file_type = match kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let (major, minor) = if kind == EntryType::Fifo {
            (0, 0)
        } else {
            metadata.device
        };
        if kind == EntryType::Char && (major, minor) == (0, 0) {
            return Err(UnpackError::refused(
                &metadata.path,
                "a 0:0 device would be a whiteout",
            ));
        }
        let (parent, name) = self.make_room(path)?;
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(
            &*parent,
            os(name),
            file_type,
            Mode::from_raw_mode(metadata.mode),
            device,
        ) {
            Ok(()) => {}
            // Not allowed to make devices: containers get theirs from the runtime.
            Err(Errno::PERM) if kind != EntryType::Fifo => return Ok(()),
            Err(e) => return Err(UnpackError::write("make device", &metadata.path)(e)),
        }
        set_owner_at(&parent, name, metadata)?;
        // Made by us a moment ago, and no symbolic link.
        rustix::fs::chmodat(
            &*parent,
            os(name),
            Mode::from_raw_mode(metadata.mode),
            AtFlags::empty(),
        )
        .map_err(UnpackError::write("set mode of", &metadata.path))?;
        set_times_at(&parent, name, metadata)
    }

    /// Hides everything that lower layers have in a directory.
    pub(super) fn opaque(&mut self, path: &Components<'_>) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        // The cached descriptor may be a bare path, which takes no attributes.
        let joined = join(path);
        let fd = open_inside(&parent, b".", OFlags::RDONLY)
            .map_err(UnpackError::write("open", &joined))?;
        set_opaque(&fd, &joined)
    }

    /// Hides `name` of lower layers. What this layer itself has there stays, and hides it already.
    pub(super) fn whiteout(
        &mut self,
        parent: &Components<'_>,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let mut path = parent.to_vec();
        path.push(name);
        let joined = join(&path);
        let parent = self.parent(parent)?;
        match stat(&parent, name) {
            Some(stat) if is_dir(&stat) => {
                let fd = open_inside(&parent, name, OFlags::RDONLY)
                    .map_err(UnpackError::write("open", &joined))?;
                set_opaque(&fd, &joined)
            }
            Some(_) => Ok(()),
            None => rustix::fs::mknodat(
                &*parent,
                os(name),
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .map_err(UnpackError::write("make whiteout", &joined)),
        }
    }

    /// The parent and name of a path, with nothing at it.
    fn make_room<'a>(
        &mut self,
        path: &Components<'a>,
    ) -> Result<(Rc<OwnedFd>, &'a [u8]), UnpackError> {
        let Some((name, parent)) = path.split_last() else {
            return Err(UnpackError::refused(
                b"/",
                "only a directory can be the root",
            ));
        };
        let parent = self.parent(parent)?;
        self.clear(&parent, name, &join(path))?;
        Ok((parent, name))
    }

    /// Removes what is at `name`, with everything below.
    fn clear(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let Some(stat) = stat(parent, name) else {
            return Ok(());
        };
        self.cached = None;
        if is_dir(&stat) {
            let mut below = path.to_vec();
            below.push(b'/');
            self.implicit
                .retain(|p| p != path && !p.starts_with(&below));
            self.times
                .retain(|p, _| p != path && !p.starts_with(&below));
            remove_tree(parent, name)
        } else {
            rustix::fs::unlinkat(parent, os(name), AtFlags::empty())
        }
        .map_err(UnpackError::write("replace", path))
    }

    /// Opens a directory of the layer, making what is missing on the way.
    fn parent(&mut self, path: &Components<'_>) -> Result<Rc<OwnedFd>, UnpackError> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        let joined = join(path);
        if let Some((cached, fd)) = &self.cached
            && *cached == joined
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match open_inside(&self.root, &joined, OFlags::PATH) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(e) => return Err(parent_error(&joined, e)),
        };
        self.cached = Some((joined, Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_parents(&mut self, path: &Components<'_>) -> Result<Rc<OwnedFd>, UnpackError> {
        let mut at = Rc::clone(&self.root);
        for depth in 0..path.len() {
            let (Some(name), Some(so_far)) = (path.get(depth), path.get(..=depth)) else {
                break;
            };
            let joined = join(so_far);
            let existing = stat(&at, name);
            let was_whiteout = existing.as_ref().is_some_and(is_whiteout);
            if was_whiteout {
                self.clear(&at, name, &joined)?;
            }
            if existing.is_none() || was_whiteout {
                rustix::fs::mkdirat(&*at, os(name), Mode::from_raw_mode(0o755))
                    .map_err(UnpackError::write("make directory", &joined))?;
                self.implicit.insert(joined.clone());
            }
            let fd =
                open_inside(&at, name, OFlags::RDONLY).map_err(|e| parent_error(&joined, e))?;
            if existing.is_none() || was_whiteout {
                // Whatever the process's umask.
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
                    .map_err(UnpackError::write("set mode of", &joined))?;
            }
            if was_whiteout {
                set_opaque(&fd, &joined)?;
            }
            at = Rc::new(fd);
        }
        Ok(at)
    }
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn join(path: &Components<'_>) -> Vec<u8> {
    path.join(&b'/')
}

/// Opens a directory below `at`.
fn open_inside(at: &OwnedFd, path: &[u8], access: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(at, os(path), DIRECTORY | access, Mode::empty(), INSIDE)
}

fn reason(error: Errno) -> &'static str {
    match error {
        Errno::LOOP => "a parent is a symbolic link",
        Errno::XDEV => "a parent is outside the layer",
        Errno::NOTDIR => "a parent is not a directory",
        _ => "a parent is not in the layer",
    }
}

fn parent_error(path: &[u8], error: Errno) -> UnpackError {
    match error {
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR => UnpackError::refused(path, reason(error)),
        other => UnpackError::write("open", path)(other),
    }
}

fn stat(parent: &OwnedFd, name: &[u8]) -> Option<Stat> {
    rustix::fs::statat(parent, os(name), AtFlags::SYMLINK_NOFOLLOW).ok()
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn set_opaque(fd: &OwnedFd, path: &[u8]) -> Result<(), UnpackError> {
    rustix::fs::fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty())
        .map_err(UnpackError::write("mark opaque", path))
}

/// Attributes that mean something to a container. Overlayfs's own would forge whiteouts and redirections.
fn set_xattrs(fd: &OwnedFd, metadata: &Metadata) -> Result<(), UnpackError> {
    for (name, value) in &metadata.xattrs {
        let wanted = name == b"security.capability"
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
            || name.starts_with(b"system.posix_acl_");
        if !wanted || name.contains(&0) {
            continue;
        }
        match rustix::fs::fsetxattr(fd, os(name), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(UnpackError::write("set an attribute of", &metadata.path)(e)),
        }
    }
    Ok(())
}

fn owner(metadata: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(metadata.uid)),
        Some(Gid::from_raw(metadata.gid)),
    )
}

fn set_owner(fd: &OwnedFd, metadata: &Metadata) -> Result<(), UnpackError> {
    let (uid, gid) = owner(metadata);
    rustix::fs::fchown(fd, uid, gid).map_err(UnpackError::write("set owner of", &metadata.path))
}

fn set_owner_at(parent: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<(), UnpackError> {
    let (uid, gid) = owner(metadata);
    rustix::fs::chownat(parent, os(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(UnpackError::write("set owner of", &metadata.path))
}

fn set_times_at(parent: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<(), UnpackError> {
    rustix::fs::utimensat(
        parent,
        os(name),
        &timestamps(metadata.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(UnpackError::write("set times of", &metadata.path))
}

fn timestamps(mtime: Duration) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(mtime.as_secs()).unwrap_or_default(),
        tv_nsec: i64::from(mtime.subsec_nanos()),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Copies and tells the layer's errors from the disk's.
fn copy(from: &mut dyn io::Read, to: &mut std::fs::File, path: &[u8]) -> Result<u64, UnpackError> {
    use io::Write as _;
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut copied = 0_u64;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(UnpackError::Malformed(e)),
        };
        to.write_all(buffer.get(..n).unwrap_or_default())
            .map_err(UnpackError::write("write", path))?;
        copied += n as u64;
    }
}

/// Removes a directory without following anything; its depth is bounded by that of the paths accepted.
fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let fd = open_inside(parent, name, OFlags::RDONLY)?;
    for item in Dir::read_from(&fd)? {
        let item = item?;
        let child = item.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        if stat(&fd, child).as_ref().is_some_and(is_dir) {
            remove_tree(&fd, child)?;
        } else {
            rustix::fs::unlinkat(&fd, os(child), AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(parent, os(name), AtFlags::REMOVEDIR)
}
