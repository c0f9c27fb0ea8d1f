//! One attachment at a time: a plugin that was killed may have left a firewall program running, and DEL must not come
//! before that has had its effect.

use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use skiff_cni::{
    ByteLock, fingerprint,
    skel::Target,
    types::{CniError, code},
};

const LOCK_FILE: &str = "/run/skiff-cni/attachments.lock";
/// A firewall program takes milliseconds, and a minute if it waits for another's lock on the tables.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(1);

/// Waits until neither `plugin` nor a program that it has started works on this attachment, and keeps others from it.
/// The programs that this process starts have the lock too.
pub(crate) fn lock(plugin: &str, target: &Target) -> Result<ByteLock, CniError> {
    let failed = |error| CniError::from_error(code::IO, format!("cannot lock {LOCK_FILE}"), &error);
    let start = Instant::now();
    let lock = loop {
        if let Some(lock) = try_lock(plugin, target).map_err(failed)? {
            break lock;
        }
        if start.elapsed() > PATIENCE {
            let msg = "another call works on this attachment";
            return Err(CniError::new(code::TRY_AGAIN, msg));
        }
        thread::sleep(INTERVAL);
    };
    lock.share_with_children().map_err(failed)?;
    Ok(lock)
}

/// The same without waiting; `None` if somebody works on it.
pub(crate) fn try_lock(plugin: &str, target: &Target) -> io::Result<Option<ByteLock>> {
    let names = [plugin, target.container_id.as_str(), target.ifname.as_str()];
    // 60 bits: a file has no negative places.
    let number = u64::from_str_radix(&fingerprint(&names, 15), 16).unwrap_or_default();
    ByteLock::try_take(Path::new(LOCK_FILE), number)
}
