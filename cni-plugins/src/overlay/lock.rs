//! One at a time changes the overlays of a network namespace.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use skiff_netns::NodeNetns;

use super::OverlayError;

/// Not the namespace's own file: whoever runs in the namespace, root or not, could lock that.
const LOCK_DIR: &str = "/run/skiff-cni";
/// Thousands of nodes are filled in within a second; whoever takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);

/// The lock. It is given back, and its file removed, when this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    /// Waits for the lock of a node's network namespace.
    pub(super) async fn acquire(node: &NodeNetns) -> Result<Self, OverlayError> {
        let path = node.run_blocking(path_of_namespace).await??;
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(lock) = Self::try_acquire(&path)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(OverlayError::Locked { path });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn try_acquire(path: &Path) -> Result<Option<Self>, OverlayError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(io_error("opening", path))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(None),
            Err((_, errno)) => return Err(io_error("locking", path)(errno.into())),
        };
        // Whoever had it before may have removed it in between: then it locks nothing.
        let ours = file.metadata().map_err(io_error("reading", path))?;
        let is_there = fs::metadata(path)
            .is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev());
        Ok(is_there.then(|| Self {
            path: path.to_owned(),
            _file: file,
        }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is unlocked. If it stays, the next one takes it as it is.
        fs::remove_file(&self.path).ok();
    }
}

fn path_of_namespace() -> Result<PathBuf, OverlayError> {
    let namespace = Path::new("/proc/thread-self/ns/net");
    let inode = fs::metadata(namespace)
        .map_err(io_error("reading", namespace))?
        .ino();
    let dir = Path::new(LOCK_DIR);
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(io_error("making", dir)(error));
        }
        _ => {}
    }
    Ok(dir.join(format!("overlay-{inode}.lock")))
}

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> OverlayError {
    let path = path.to_owned();
    move |source| OverlayError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::try_acquire(&path).unwrap().unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(first);
        assert!(!path.exists());
        assert!(Lock::try_acquire(&path).unwrap().is_some());
    }
}
