//! The lock that belongs to a network namespace: tables of different namespaces do not wait for each other.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::FirewallError;
use crate::ByteLock;

/// One lock for each namespace, by its number.
const LOCK_FILE: &str = "/run/skiff-cni/firewall.lock";
/// How often a plan is made.
const ATTEMPTS: usize = 8;

/// Held while tables are looked at and changed according to what was seen. Released when dropped, or by the kernel
/// when the process dies.
#[derive(Debug)]
pub struct FirewallLock {
    _byte: ByteLock,
}

impl FirewallLock {
    /// Waits for the lock of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`FirewallError::Lock`].
    pub fn acquire() -> Result<Self, FirewallError> {
        let namespace = Path::new("/proc/thread-self/ns/net");
        let inode = fs::metadata(namespace)
            .map_err(|source| failed(namespace, source))?
            .ino();
        let file = Path::new(LOCK_FILE);
        ByteLock::take(file, inode)
            .map(|byte| Self { _byte: byte })
            .map_err(|source| failed(file, source))
    }
}

/// Runs `attempt` until its change is not refused: whoever does not take the lock may change the tables between a look
/// and what follows from it. Without anything to change an attempt gives `None`. Says whether there was anything.
pub(super) fn replan(
    attempt: impl Fn() -> Result<Option<Result<(), FirewallError>>, FirewallError>,
) -> Result<bool, FirewallError> {
    let mut last = Ok(false);
    for _attempt in 0..ATTEMPTS {
        let Some(changed) = attempt()? else {
            return Ok(false);
        };
        last = changed.map(|()| true);
        match &last {
            Err(error) if error.is_refusal() => {}
            _ => break,
        }
    }
    last
}

fn failed(path: &Path, source: std::io::Error) -> FirewallError {
    FirewallError::Lock {
        path: path.to_owned(),
        source,
    }
}
