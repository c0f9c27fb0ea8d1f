//! ADD and GC of one network take turns, also those of different processes, as the specification wants it: what an ADD is
//! making is in no cache yet, so that a GC beside it would take that away.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::RunnerError;
use crate::{ByteLock, Holders, fingerprint, types::NetworkName};

const FILE: &str = "skiff.lock";
const POLL: Duration = Duration::from_millis(2);

/// Waits until nobody who uses this cache works on the network, or only those who share the work. `None` if there is no
/// place for a lock: nothing is cached then either.
pub(super) async fn hold(
    cache_dir: &Path,
    network: &NetworkName,
    holders: Holders,
    patience: Duration,
) -> Result<Option<ByteLock>, RunnerError> {
    let file = cache_dir.join(FILE);
    // 60 bits: a file has no negative places.
    let number = fingerprint(&[network.as_str()], 15);
    let number = u64::from_str_radix(&number, 16).unwrap_or_default();
    let start = Instant::now();
    loop {
        match ByteLock::try_take(&file, number, holders) {
            Ok(None) if start.elapsed() < patience => tokio::time::sleep(POLL).await,
            Ok(None) => {
                let network = network.as_str().to_owned();
                return Err(RunnerError::Busy { network });
            }
            Ok(taken) => return Ok(taken),
            Err(_no_place) => return Ok(None),
        }
    }
}
