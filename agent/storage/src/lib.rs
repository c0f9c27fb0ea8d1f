//! Revisioned key-value storage for the API server.
//!
//! Owns durability and the one sequence of revisions; knows nothing of Kubernetes objects. A [`Store`]
//! behaves like etcd with one key space: every transaction that changes something gets the next revision,
//! a watch from a revision delivers each later change once and in order, and history older than the
//! compacted revision is gone.
//!
//! Backends: [`redb::RedbStore`] (default, one file, group commit) and [`memory::MemoryStore`] (tests). All of
//! them pass the one contract suite in `tests/contract.rs`.

pub mod memory;
pub mod redb;

mod hub;

use std::{fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

/// A position in the one sequence of changes. 0 is "before everything".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One key with its value and the revisions that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, such as `/registry/pods/default/web`.
    pub key: String,
    /// The stored bytes.
    pub value: Bytes,
    /// Revision of the transaction that created the key.
    pub create_revision: Revision,
    /// Revision of the transaction that last wrote the key.
    pub mod_revision: Revision,
}

/// What a transaction demands before it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    Unchanged(String, Revision),
}

/// One change within a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes the value, creating the key if need be.
    Put {
        /// The key to write.
        key: String,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key; no change if it is absent.
    Delete {
        /// The key to remove.
        key: String,
    },
}

/// Preconditions and the changes to make if all of them hold. All changes share one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Applied in order.
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Durable, at this revision.
    Committed(Revision),
    /// A precondition failed; the current value of that key, if it exists. Nothing was changed.
    Conflict(Option<KeyValue>),
}

/// A consistent list of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// The revision that the list shows.
    pub revision: Revision,
    /// Whether more keys follow (only when a limit was given).
    pub more: bool,
}

/// One change of one key, as a watch delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision of its transaction.
    pub revision: Revision,
    /// The key that changed.
    pub key: String,
    /// The new value; `None` for a deletion.
    pub current: Option<KeyValue>,
    /// The value before; `None` for a creation.
    pub previous: Option<KeyValue>,
}

/// Changes of one prefix, in order, each once. All changes of one revision arrive in one batch.
#[derive(Debug)]
pub struct Watch {
    pub(crate) receiver: tokio::sync::mpsc::Receiver<Arc<[Change]>>,
}

impl Watch {
    /// The next batch, `None` when the store shut down or the watcher fell too far behind (list and
    /// watch again).
    pub async fn next(&mut self) -> Option<Arc<[Change]>> {
        self.receiver.recv().await
    }
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The asked-for history is gone.
    #[error("revision {requested} has been compacted, the oldest available is {compacted}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that a watch may start from.
        compacted: Revision,
    },
    /// The asked-for revision lies in the future.
    #[error("revision {requested} is ahead of the current revision {current}")]
    FutureRevision {
        /// What was asked for.
        requested: Revision,
        /// The newest revision there is.
        current: Revision,
    },
    /// Another process has the database open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The backend failed.
    #[error("storage backend failed: {operation}")]
    Backend {
        /// What was being done.
        operation: &'static str,
        /// The backend's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A revisioned store. Cheap to share as `Arc<dyn Store>`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The current value of a key and the revision at which it was read.
    ///
    /// # Errors
    /// [`StorageError::Backend`] if the backend fails.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StorageError>;

    /// Current keys that start with `prefix` and sort after `after`, at most `limit` of them (0 = all).
    ///
    /// # Errors
    /// [`StorageError::Backend`] if the backend fails.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, StorageError>;

    /// Applies a transaction. When it returns [`TxnOutcome::Committed`] the change is on disk.
    ///
    /// # Errors
    /// [`StorageError::Backend`] if the backend fails, [`StorageError::Closed`] after shutdown.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StorageError>;

    /// All changes of keys that start with `prefix`, later than `after`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] if `after` is older than the history that is kept,
    /// [`StorageError::FutureRevision`] if it is newer than the newest revision.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError>;

    /// The newest revision.
    fn current_revision(&self) -> Revision;

    /// Forgets history up to and including `revision`; current values stay.
    ///
    /// # Errors
    /// [`StorageError::Backend`] if the backend fails.
    async fn compact(&self, revision: Revision) -> Result<(), StorageError>;
}
