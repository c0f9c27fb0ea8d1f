//! What an owner has just asked for and the cache has yet to show.
//!
//! Without it an owner that looks again before its own pods arrive in the cache would create them
//! twice.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use skiff_client::Key;

/// Upstream's: after that long the watch has lost something, and the cache is believed again.
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Pending {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations of all owners of one controller, by the owner's key.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    pending: Mutex<HashMap<Key, Pending>>,
}

impl Expectations {
    /// Nothing is awaited any more, or for too long.
    pub(crate) fn satisfied(&self, owner: &Key) -> bool {
        let mut pending = self.pending.lock();
        match pending.get(owner) {
            None => true,
            Some(p) if p.creations == 0 && p.deletions.is_empty() => {
                pending.remove(owner);
                true
            }
            Some(p) => p.since.elapsed() > TIMEOUT,
        }
    }

    /// To be called before the creations are sent: their echo may be faster than their answer.
    pub(crate) fn expect_creations(&self, owner: &Key, count: usize) {
        self.set(owner, count, HashSet::new());
    }

    /// To be called before the deletions are sent, with the pods' UIDs.
    pub(crate) fn expect_deletions(&self, owner: &Key, uids: HashSet<String>) {
        self.set(owner, 0, uids);
    }

    fn set(&self, owner: &Key, creations: usize, deletions: HashSet<String>) {
        let pending = Pending {
            creations,
            deletions,
            since: Instant::now(),
        };
        self.pending.lock().insert(owner.clone(), pending);
    }

    /// Seen, or known never to come.
    pub(crate) fn creation_observed(&self, owner: &Key) {
        if let Some(p) = self.pending.lock().get_mut(owner) {
            p.creations = p.creations.saturating_sub(1);
        }
    }

    /// Seen, or known never to come.
    pub(crate) fn deletion_observed(&self, owner: &Key, uid: &str) {
        if let Some(p) = self.pending.lock().get_mut(owner) {
            p.deletions.remove(uid);
        }
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &Key) {
        self.pending.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn satisfied_once_everything_was_seen() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        assert!(e.satisfied(&key));
        e.expect_creations(&key, 2);
        e.creation_observed(&key);
        assert!(!e.satisfied(&key));
        e.creation_observed(&key);
        assert!(e.satisfied(&key));
        e.expect_deletions(&key, HashSet::from(["a".to_owned()]));
        e.deletion_observed(&key, "b");
        assert!(!e.satisfied(&key));
        e.deletion_observed(&key, "a");
        assert!(e.satisfied(&key));
    }
}
