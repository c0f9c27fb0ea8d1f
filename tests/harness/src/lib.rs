//! What tests that run real binaries share: clusters that clean up after themselves, waiting with a deadline,
//! and a look at what is left on the machine.

mod cluster;
pub(crate) mod leftovers;
pub mod probe;
pub mod scene;

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

pub use crate::{
    cluster::{Cluster, Kubectl, binary},
    leftovers::leftovers,
};

/// Asks again and again until `condition` is met: level-triggered, with a deadline.
///
/// # Errors
/// After `patience`, with the last answer in the message.
pub fn eventually<T: Debug>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Result<T>,
    condition: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let last = probe();
        match last {
            Ok(value) if condition(&value) => return Ok(value),
            last if Instant::now() > deadline => {
                bail!("{what}: not within {patience:?}; last: {last:?}")
            }
            _ => thread::sleep(Duration::from_millis(30)),
        }
    }
}
