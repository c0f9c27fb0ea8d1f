//! Who works on what: two calls for one attachment do not run at once, and GC does not run beside an ADD.
//!
//! A plugin that was killed may have left a firewall program running, and DEL must not come before that has had its
//! effect. GC takes what none of the valid attachments owns, and what an ADD makes meanwhile is not among those: so it
//! refuses to work then, and ADD waits until it is done. The specification has runtimes run GC alone anyway, but whoever
//! calls one by hand beside a runtime does not know of each ADD.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use skiff_cni::{
    ByteLock, Holders, fingerprint,
    skel::{Call, Target},
    types::{CniError, code},
};

const LOCK_FILE: &str = "/run/skiff-cni/attachments.lock";
/// A firewall program takes milliseconds, and a minute if it waits for another's lock on the tables.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(1);

/// Waits until neither `plugin` nor a program that it has started works on this attachment, and keeps others from it.
/// The programs that this process starts have the lock too.
pub(crate) fn lock(plugin: &str, target: &Target) -> Result<ByteLock, CniError> {
    let names = [plugin, target.container_id.as_str(), target.ifname.as_str()];
    let what = "another call works on this attachment";
    take(number(&names), Holders::One, what)
}

/// The same for ADD, which also waits for a GC of its network to end.
pub(crate) fn lock_for_add(
    plugin: &str,
    call: &Call,
    target: &Target,
) -> Result<[ByteLock; 2], CniError> {
    let what = "GC works on this network";
    let network = take(network(plugin, call)?, Holders::Many, what)?;
    Ok([network, lock(plugin, target)?])
}

/// Keeps ADDs of `plugin` from working on the network in this network namespace. Fails if one does already.
pub(crate) fn lock_for_gc(plugin: &str, call: &Call) -> Result<ByteLock, CniError> {
    let network = network(plugin, call)?;
    try_take(network, Holders::One)?.ok_or_else(|| {
        let msg = "an ADD works on this network, whose attachment GC cannot know";
        CniError::new(code::TRY_AGAIN, msg)
    })
}

fn network(plugin: &str, call: &Call) -> Result<u64, CniError> {
    let netns = fs::metadata("/proc/thread-self/ns/net").map_err(failed)?;
    let netns = netns.ino().to_string();
    Ok(number(&[
        plugin,
        call.conf.name.as_str(),
        &netns,
        "network",
    ]))
}

fn take(number: u64, holders: Holders, otherwise: &str) -> Result<ByteLock, CniError> {
    let start = Instant::now();
    loop {
        if let Some(lock) = try_take(number, holders)? {
            return Ok(lock);
        }
        if start.elapsed() > PATIENCE {
            return Err(CniError::new(code::TRY_AGAIN, otherwise));
        }
        thread::sleep(INTERVAL);
    }
}

fn try_take(number: u64, holders: Holders) -> Result<Option<ByteLock>, CniError> {
    let taken = ByteLock::try_take(Path::new(LOCK_FILE), number, holders).map_err(failed)?;
    if let Some(lock) = &taken {
        lock.share_with_children().map_err(failed)?;
    }
    Ok(taken)
}

/// 60 bits: a file has no negative places.
fn number(names: &[&str]) -> u64 {
    u64::from_str_radix(&fingerprint(names, 15), 16).unwrap_or_default()
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn failed(error: io::Error) -> CniError {
    CniError::from_error(code::IO, format!("cannot lock {LOCK_FILE}"), &error)
}
