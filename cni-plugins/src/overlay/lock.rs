//! One at a time changes the overlays of a network namespace.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use skiff_netns::NodeNetns;

use super::OverlayError;
use crate::{ByteLock, Holders};

/// One lock for each namespace, by its number. Not the namespace's own file: whoever runs in the namespace, root or
/// not, could lock that.
const LOCK_FILE: &str = "/run/skiff-cni/overlay.lock";
/// Thousands of nodes are filled in within a second; whoever takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);

/// The lock. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _byte: ByteLock,
}

impl Lock {
    /// Waits for the lock of a node's network namespace.
    pub(super) async fn acquire(node: &NodeNetns) -> Result<Self, OverlayError> {
        let inode = node.run_blocking(inode_of_namespace).await??;
        let path = Path::new(LOCK_FILE);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let taken = ByteLock::try_take(path, inode, Holders::One);
            let taken = taken.map_err(io_error("locking", path))?;
            if let Some(byte) = taken {
                return Ok(Self { _byte: byte });
            }
            if Instant::now() >= deadline {
                return Err(OverlayError::Locked {
                    path: path.to_owned(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn inode_of_namespace() -> Result<u64, OverlayError> {
    let namespace = Path::new("/proc/thread-self/ns/net");
    let metadata = fs::metadata(namespace).map_err(io_error("reading", namespace))?;
    Ok(metadata.ino())
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
