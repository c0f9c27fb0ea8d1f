//! Locks on single bytes of a file that everybody shares: as many locks as there are numbers, and no file for each.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
};

/// With whom a lock can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holders {
    /// With nobody.
    One,
    /// With others that want it so.
    Many,
}

/// A lock that its holder has until this is dropped, or the process ends.
#[derive(Debug)]
pub struct ByteLock {
    file: File,
}

impl ByteLock {
    /// Takes the lock with this number in `file`, which is made if need be; `None` if somebody else has it.
    ///
    /// # Errors
    /// If the file cannot be had.
    pub fn try_take(file: &Path, number: u64, holders: Holders) -> io::Result<Option<Self>> {
        let file = open(file)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(number, holders)?)) {
            Ok(_) => Ok(Some(Self { file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for the lock with this number, and has it alone.
    ///
    /// # Errors
    /// If the file cannot be had.
    pub fn take(file: &Path, number: u64) -> io::Result<Self> {
        let file = open(file)?;
        let byte = byte(number, Holders::One)?;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte)) {
                Ok(_) => return Ok(Self { file }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Lets programs that this process starts from now on keep the lock too, until the last of them has ended.
    ///
    /// # Errors
    /// If the file is closed.
    pub fn share_with_children(&self) -> io::Result<()> {
        fcntl(&self.file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    }
}

/// Opens a file for locks, and makes it and its folder if need be. Only root may read it.
pub(crate) fn open(file: &Path) -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(file)
    };
    match (open(), file.parent()) {
        (Err(error), Some(folder)) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            open()
        }
        (opened, _) => opened,
    }
}

fn byte(number: u64, holders: Holders) -> io::Result<libc::flock> {
    let word = |value| i16::try_from(value).map_err(io::Error::other);
    Ok(libc::flock {
        l_type: word(match holders {
            Holders::One => libc::F_WRLCK,
            Holders::Many => libc::F_RDLCK,
        })?,
        l_whence: word(libc::SEEK_SET)?,
        l_start: i64::try_from(number).map_err(io::Error::other)?,
        l_len: 1,
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_numbers_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let take = |number| ByteLock::try_take(&path, number, Holders::One).unwrap();
        let first = take(1);
        assert!(first.is_some());
        assert!(take(1).is_none());
        assert!(take(2).is_some());
        drop(first);
        assert!(take(1).is_some());
    }

    #[test]
    fn many_have_a_lock_that_none_has_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let take = |holders| ByteLock::try_take(&path, 1, holders).unwrap();
        let (first, second) = (take(Holders::Many), take(Holders::Many));
        assert!(first.is_some() && second.is_some());
        drop(first);
        assert!(take(Holders::One).is_none());
        drop(second);
        let alone = take(Holders::One);
        assert!(alone.is_some() && take(Holders::Many).is_none());
    }

    #[test]
    fn a_child_keeps_a_shared_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let lock = ByteLock::take(&path, 1).unwrap();
        lock.share_with_children().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        drop(lock);
        let take = || ByteLock::try_take(&path, 1, Holders::One).unwrap();
        assert!(take().is_none());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(take().is_some());
    }
}
