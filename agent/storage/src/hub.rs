//! Hands each committed change to the watchers of its prefix, in order and once.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Change, Revision, StorageError, Watch};

/// Batches that a watcher may lag behind before it is dropped.
const WATCHER_BACKLOG: usize = 4096;

/// The published state: what watchers have been told so far.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Newest revision that readers may have seen.
    committing: Revision,
    /// Newest revision that watchers know of.
    published: Revision,
    /// Watches can start at this revision or later.
    compacted: Revision,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    /// It knows of changes up to here, be they published or not.
    after: Revision,
    sender: mpsc::Sender<Arc<[Change]>>,
}

impl Watcher {
    /// Whether the watcher is still to be kept.
    fn send(&self, revision: Revision, changes: &Arc<[Change]>) -> bool {
        let matching = changes
            .iter()
            .filter(|change| change.key.starts_with(&self.prefix))
            .count();
        if matching == 0 || revision <= self.after {
            return !self.sender.is_closed();
        }
        let batch = if matching == changes.len() {
            Arc::clone(changes)
        } else {
            changes
                .iter()
                .filter(|c| c.key.starts_with(&self.prefix))
                .cloned()
                .collect()
        };
        // A full channel means that it lags: dropping it closes the channel, and it lists again.
        self.sender.try_send(batch).is_ok()
    }
}

impl Hub {
    pub(crate) fn new(published: Revision, compacted: Revision) -> Self {
        let watchers = Vec::new();
        Self {
            state: Mutex::new(State {
                committing: published,
                published,
                compacted,
                watchers,
            }),
        }
    }

    pub(crate) fn published(&self) -> Revision {
        self.state.lock().published
    }

    /// Says that readers may see `revision` from now on, before watchers are told of it.
    pub(crate) fn committing(&self, revision: Revision) {
        self.state.lock().committing = revision;
    }

    /// Tells the watchers of one revision's changes. Called in the order of revisions.
    pub(crate) fn publish(&self, revision: Revision, changes: Vec<Change>) {
        let changes: Arc<[Change]> = changes.into();
        let mut state = self.state.lock();
        state.committing = state.committing.max(revision);
        state.published = revision;
        state
            .watchers
            .retain(|watcher| watcher.send(revision, &changes));
    }

    /// Raises the compacted revision; never lowers it, never beyond what is published. Returns the new one.
    pub(crate) fn compact(&self, revision: Revision) -> Revision {
        let mut state = self.state.lock();
        state.compacted = state.compacted.max(revision.min(state.published));
        state.compacted
    }

    /// Starts a watch. `history` returns the changes after its first and up to its second argument, one vector
    /// a revision; no change is published while it runs, so none is missed or repeated.
    pub(crate) fn watch(
        &self,
        prefix: &str,
        after: Revision,
        history: impl FnOnce(Revision, Revision) -> Result<Vec<Vec<Change>>, StorageError>,
    ) -> Result<Watch, StorageError> {
        let mut state = self.state.lock();
        if after < state.compacted {
            return Err(StorageError::Compacted {
                requested: after,
                compacted: state.compacted,
            });
        }
        if after > state.committing {
            return Err(StorageError::FutureRevision {
                requested: after,
                current: state.committing,
            });
        }
        let missed = if after >= state.published {
            Vec::new()
        } else {
            history(after, state.published)?
        };
        let (sender, receiver) = mpsc::channel(WATCHER_BACKLOG + missed.len());
        let watcher = Watcher {
            prefix: prefix.to_owned(),
            after,
            sender,
        };
        for changes in missed {
            if let Some(revision) = changes.first().map(|change| change.revision) {
                watcher.send(revision, &changes.into());
            }
        }
        state.watchers.push(watcher);
        Ok(Watch { receiver })
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        self.state.lock().watchers.clear();
    }
}
