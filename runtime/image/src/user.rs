//! Users of an image: `/etc/passwd` and `/etc/group` of a root filesystem, read without leaving it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Larger files are not lists of users.
const MAX_FILE: u64 = 4 << 20;

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups of `/etc/group` that list the user; none if a group was asked for.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` if the user is not in `/etc/passwd`.
    pub home: String,
}

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user in the image.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// There is no such group in the image.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A file of the image cannot be read.
    #[error("cannot read {file} of the image")]
    Read {
        /// Which file.
        file: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` or nothing (root) in the root filesystem at `rootfs`, by the rules
/// that Docker has: a number need not be listed, a name must be. Symbolic links are followed inside `rootfs` only.
///
/// # Errors
/// [`UserError`] if a name is not listed or a file cannot be read.
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<ResolvedUser, UserError> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let passwd = read(rootfs, "etc/passwd")?;
    let entry = passwd
        .lines()
        .filter_map(parse_passwd)
        .find(|entry| entry.name == user)
        .or_else(|| {
            passwd
                .lines()
                .filter_map(parse_passwd)
                .find(|entry| Some(entry.uid) == number)
        });
    let (uid, gid, home, name) = match (entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (None, Some(uid)) => (uid, 0, "/".to_owned(), None),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let groups = read(rootfs, "etc/group")?;
    let mut groups = groups.lines().filter_map(parse_group);
    let (gid, additional_gids) = match group {
        Some(wanted) => {
            let number = wanted.parse::<u32>().ok();
            let listed = groups
                .find(|group| group.name == wanted)
                .map(|group| group.gid);
            let gid = listed
                .or(number)
                .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))?;
            (gid, Vec::new())
        }
        None => {
            let mut gids: Vec<u32> = groups
                .filter(|group| {
                    name.as_ref()
                        .is_some_and(|name| group.members.contains(name))
                })
                .map(|group| group.gid)
                .collect();
            gids.sort_unstable();
            gids.dedup();
            (gid, gids)
        }
    };
    let home = if home.is_empty() {
        "/".to_owned()
    } else {
        home
    };
    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids,
        home,
    })
}

fn parse_passwd(line: &str) -> Option<Passwd> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?
        .to_owned();
    let mut fields = fields.skip(1);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(Passwd {
        name,
        uid,
        gid,
        home,
    })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?
        .to_owned();
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields
        .next()
        .unwrap_or_default()
        .split(',')
        .map(str::to_owned)
        .collect();
    Some(Group { name, gid, members })
}

/// Reads a file of the image; an absent one is empty.
fn read(rootfs: &Path, file: &'static str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::Read { file, source };
    let bytes = match open(rootfs, file) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(failed(io::Error::other("not a regular file")));
            }
            let mut bytes = Vec::new();
            File::from(fd)
                .take(MAX_FILE + 1)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
            if bytes.len() as u64 > MAX_FILE {
                return Err(failed(io::Error::other("file is too large")));
            }
            bytes
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Vec::new(),
        Err(e) => return Err(failed(e.into())),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open(rootfs: &Path, file: &str) -> Result<OwnedFd, Errno> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    // NONBLOCK: the image may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&root, file, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn rootfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(
            dir.path().join("etc/passwd"),
            "# comment\nroot:x:0:0:root:/root:/bin/sh\nredis:x:999:998::/data:/bin/false\nbroken:x\n1000:x:7:7::/seven:\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("etc/group"),
            "root:x:0:\nredis:x:998:\ntls:x:50:redis,other\nlog:x:40:redis\nbad\n",
        )
        .unwrap();
        dir
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let dir = rootfs();
        let user = |uid, gid, additional: &[u32], home: &str| ResolvedUser {
            uid,
            gid,
            additional_gids: additional.to_vec(),
            home: home.to_owned(),
        };
        for (given, want) in [
            ("", user(0, 0, &[], "/root")),
            ("root", user(0, 0, &[], "/root")),
            ("redis", user(999, 998, &[40, 50], "/data")),
            ("999", user(999, 998, &[40, 50], "/data")),
            ("redis:tls", user(999, 50, &[], "/data")),
            ("redis:", user(999, 998, &[40, 50], "/data")),
            (":tls", user(0, 50, &[], "/root")),
            ("1234:4321", user(1234, 4321, &[], "/")),
            ("1234", user(1234, 0, &[], "/")),
            // A name that looks like a number is a name first.
            ("1000", user(7, 7, &[], "/seven")),
        ] {
            assert_eq!(resolve_user(dir.path(), given).unwrap(), want, "{given:?}");
        }
        assert!(matches!(
            resolve_user(dir.path(), "nobody"),
            Err(UserError::NoUser(_))
        ));
        assert!(matches!(
            resolve_user(dir.path(), "redis:none"),
            Err(UserError::NoGroup(_))
        ));
        assert!(matches!(
            resolve_user(dir.path(), "-1"),
            Err(UserError::NoUser(_))
        ));
        assert!(matches!(
            resolve_user(dir.path(), "4294967296"),
            Err(UserError::NoUser(_))
        ));
    }

    #[test]
    fn links_are_followed_inside_the_root_filesystem_only() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "evil:x:666:666::/:\n").unwrap();
        let dir = rootfs();
        let passwd = dir.path().join("etc/passwd");
        for target in [
            outside.path().join("passwd").display().to_string(),
            format!(
                "../../../../../../../../..{}/passwd",
                outside.path().display()
            ),
            "/proc/self/root/etc/passwd".to_owned(),
        ] {
            fs::remove_file(&passwd).unwrap();
            symlink(&target, &passwd).unwrap();
            assert!(
                matches!(resolve_user(dir.path(), "evil"), Err(UserError::NoUser(_))),
                "{target}"
            );
            assert!(
                matches!(resolve_user(dir.path(), "redis"), Err(UserError::NoUser(_))),
                "{target}"
            );
        }
        fs::remove_file(&passwd).unwrap();
        fs::write(dir.path().join("users"), "inside:x:5:5::/:\n").unwrap();
        symlink("/users", &passwd).unwrap();
        assert_eq!(resolve_user(dir.path(), "inside").unwrap().uid, 5);
    }

    #[test]
    fn a_fifo_in_place_of_a_file_is_an_error_and_does_not_hang() {
        let dir = rootfs();
        let passwd = dir.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &passwd, Mode::from_raw_mode(0o644)).unwrap();
        assert!(matches!(
            resolve_user(dir.path(), "root"),
            Err(UserError::Read { .. })
        ));
    }
}
