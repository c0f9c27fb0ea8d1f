//! One attachment at a time: a plugin that was killed may have left a firewall program running, and DEL must not come
//! before that has had its effect.

use std::{path::Path, time::Duration};

use skiff_cni::{
    ByteLock, fingerprint,
    skel::Target,
    types::{CniError, code},
};

use crate::runtime::block_on;

const LOCK_FILE: &str = "/run/skiff-cni/attachments.lock";
/// A firewall program takes milliseconds, and a minute if it waits for another's lock on the tables.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(1);

/// Waits until neither `plugin` nor a program that it has started works on this attachment, and keeps others from it.
/// The programs that this process starts have the lock too.
pub(crate) fn lock(plugin: &str, target: &Target) -> Result<ByteLock, CniError> {
    let names = [plugin, target.container_id.as_str(), target.ifname.as_str()];
    // 60 bits: a file has no negative places.
    let number = u64::from_str_radix(&fingerprint(&names, 15), 16).unwrap_or_default();
    let failed = |error| CniError::from_error(code::IO, format!("cannot lock {LOCK_FILE}"), &error);
    let file = Path::new(LOCK_FILE);
    let lock = match ByteLock::try_take(file, number).map_err(failed)? {
        Some(lock) => lock,
        None => block_on(async {
            let taken = async {
                loop {
                    if let Some(lock) = ByteLock::try_take(file, number).map_err(failed)? {
                        return Ok(lock);
                    }
                    tokio::time::sleep(INTERVAL).await;
                }
            };
            let busy = || CniError::new(code::TRY_AGAIN, "another call works on this attachment");
            tokio::time::timeout(PATIENCE, taken)
                .await
                .unwrap_or_else(|_elapsed| Err(busy()))
        })?,
    };
    lock.share_with_children().map_err(failed)?;
    Ok(lock)
}
