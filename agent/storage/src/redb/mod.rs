//! The default store: one redb file.
//!
//! Three tables: current values, the history that watches may still ask for, and two counters. One thread
//! writes: it takes whatever transactions have queued up, applies them one after the other in one redb
//! transaction, syncs once, and only then tells watchers and callers (group commit). Readers never wait for it.

mod codec;
mod writer;

use std::{ops::Bound, path::Path, sync::Arc, thread};

use ::redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    Change, KeyValue, Listing, Revision, StorageError, Store, Txn, TxnOutcome, Watch, hub::Hub,
};

/// Key -> revisions and value ([`codec::encode_value`]).
const CURRENT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("current");
/// Revision and position within it -> change ([`codec::encode_change`]).
const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");
/// Counters.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Newest revision, in [`META`].
const REVISION: &str = "revision";
/// Oldest revision that a watch may start after, in [`META`].
const COMPACTED: &str = "compacted";

/// Page cache. The API server keeps its own cache of objects, so this only has to hold the upper tree levels.
const CACHE_BYTES: usize = 2 << 20;

/// A store in one file.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<Writer>>,
}

#[derive(Debug)]
struct Shared {
    database: Database,
    hub: Hub,
}

#[derive(Debug)]
struct Writer {
    requests: std::sync::mpsc::Sender<writer::Request>,
    thread: thread::JoinHandle<()>,
}

impl RedbStore {
    /// Opens the database at `path` or creates it.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if another process has it open, [`StorageError::Backend`] otherwise.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let existed = path.exists();
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|err| match err {
                DatabaseError::DatabaseAlreadyOpen => StorageError::InUse {
                    path: path.to_owned(),
                },
                err => backend("opening the database")(err),
            })?;
        if !existed {
            sync_parent(path)?;
        }
        let (revision, compacted) = initialise(&database).map_err(backend("creating tables"))?;
        let shared = Arc::new(Shared {
            database,
            hub: Hub::new(revision, compacted),
        });
        let (requests, receiver) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || writer::run(&shared, &receiver)
            })
            .map_err(backend("starting the writer"))?;
        Ok(Self {
            shared,
            writer: Mutex::new(Some(Writer { requests, thread })),
        })
    }

    /// Ends watches, finishes queued writes and closes the writer. Later writes get [`StorageError::Closed`].
    pub fn close(&self) {
        self.shared.hub.close();
        if let Some(Writer { requests, thread }) = self.writer.lock().take() {
            drop(requests);
            // A writer that panicked has nothing more to finish.
            thread.join().ok();
        }
    }

    async fn submit<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StorageError>>) -> writer::Request,
    ) -> Result<T, StorageError> {
        let (reply, answer) = oneshot::channel();
        let requests = self
            .writer
            .lock()
            .as_ref()
            .map(|writer| writer.requests.clone());
        requests
            .and_then(|requests| requests.send(request(reply)).ok())
            .ok_or(StorageError::Closed)?;
        answer.await.unwrap_or(Err(StorageError::Closed))
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.close();
    }
}

/// A newly created file is durable only when its folder is.
fn sync_parent(path: &Path) -> Result<(), StorageError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(backend("syncing the data directory"))
}

fn initialise(database: &Database) -> Result<(Revision, Revision), ::redb::Error> {
    let txn = database.begin_write()?;
    let counters = {
        txn.open_table(CURRENT)?;
        txn.open_table(HISTORY)?;
        let meta = txn.open_table(META)?;
        let read = |name| Ok::<_, ::redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
        (Revision(read(REVISION)?), Revision(read(COMPACTED)?))
    };
    txn.commit()?;
    Ok(counters)
}

fn backend<E>(operation: &'static str) -> impl FnOnce(E) -> StorageError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| StorageError::Backend {
        operation,
        source: source.into(),
    }
}

impl Shared {
    fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), ::redb::Error> {
        let txn = self.database.begin_read()?;
        let value = txn.open_table(CURRENT)?.get(key)?;
        let revision = txn
            .open_table(META)?
            .get(REVISION)?
            .map_or(0, |value| value.value());
        let current = value.and_then(|value| codec::decode_value(key, value.value()));
        Ok((current, Revision(revision)))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, ::redb::Error> {
        let txn = self.database.begin_read()?;
        let revision = txn
            .open_table(META)?
            .get(REVISION)?
            .map_or(0, |value| value.value());
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut items = Vec::new();
        let mut more = false;
        for entry in txn
            .open_table(CURRENT)?
            .range::<&str>((start, Bound::Unbounded))?
        {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            if limit != 0 && items.len() == limit {
                more = true;
                break;
            }
            items.extend(codec::decode_value(key.value(), value.value()));
        }
        Ok(Listing {
            items,
            revision: Revision(revision),
            more,
        })
    }

    /// The changes after the first and up to the second revision, one vector a revision.
    fn history(&self, after: Revision, upto: Revision) -> Result<Vec<Vec<Change>>, ::redb::Error> {
        let txn = self.database.begin_read()?;
        let mut revisions: Vec<Vec<Change>> = Vec::new();
        for entry in txn
            .open_table(HISTORY)?
            .range((after.0 + 1, 0)..=(upto.0, u32::MAX))?
        {
            let (key, value) = entry?;
            let (revision, position) = key.value();
            let Some(change) = codec::decode_change(Revision(revision), value.value()) else {
                continue;
            };
            match revisions.last_mut() {
                Some(changes) if position > 0 => changes.push(change),
                _ => revisions.push(vec![change]),
            }
        }
        Ok(revisions)
    }
}

#[async_trait]
impl Store for RedbStore {
    // One key is a handful of cached pages: cheaper here than on another thread.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StorageError> {
        self.shared.get(key).map_err(backend("reading a key"))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, StorageError> {
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.to_owned());
        let after = after.map(str::to_owned);
        tokio::task::spawn_blocking(move || shared.list(&prefix, after.as_deref(), limit))
            .await
            .map_err(backend("listing keys"))?
            .map_err(backend("listing keys"))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StorageError> {
        self.submit(|reply| writer::Request::Txn { txn, reply })
            .await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError> {
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.to_owned());
        tokio::task::spawn_blocking(move || {
            shared.hub.watch(&prefix, after, |after, upto| {
                shared
                    .history(after, upto)
                    .map_err(backend("reading history"))
            })
        })
        .await
        .map_err(backend("starting a watch"))?
    }

    fn current_revision(&self) -> Revision {
        self.shared.hub.published()
    }

    async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        // Watches are refused first, so that none starts on history that is being removed.
        let compacted = self.shared.hub.compact(revision);
        self.submit(|reply| writer::Request::Compact { compacted, reply })
            .await
    }
}
