//! A store that forgets everything with the process. For tests of whatever stands on a [`Store`].

use std::{collections::BTreeMap, ops::Bound};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    Change, KeyValue, Listing, Op, Precondition, Revision, StorageError, Store, Txn, TxnOutcome,
    Watch, hub::Hub,
};

/// Keys, values and history in memory.
#[derive(Debug)]
pub struct MemoryStore {
    data: Mutex<Data>,
    hub: Hub,
}

#[derive(Debug, Default)]
struct Data {
    revision: Revision,
    current: BTreeMap<String, KeyValue>,
    history: BTreeMap<Revision, Vec<Change>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            data: Mutex::default(),
            hub: Hub::new(Revision(0), Revision(0)),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Data {
    fn conflict(&self, precondition: &Precondition) -> Option<Option<KeyValue>> {
        let (key, holds) = match precondition {
            Precondition::Absent(key) => (key, !self.current.contains_key(key)),
            Precondition::Unchanged(key, revision) => (
                key,
                self.current
                    .get(key)
                    .is_some_and(|kv| kv.mod_revision == *revision),
            ),
        };
        (!holds).then(|| self.current.get(key).cloned())
    }

    fn apply(&mut self, revision: Revision, op: Op) -> Option<Change> {
        let (key, current) = match op {
            Op::Put { key, value } => {
                let kv = self.put(revision, key.clone(), value);
                (key, Some(kv))
            }
            Op::Delete { key } => (key, None),
        };
        let previous = match &current {
            Some(kv) => self.current.insert(key.clone(), kv.clone()),
            None => self.current.remove(&key),
        };
        (current.is_some() || previous.is_some()).then_some(Change {
            revision,
            key,
            current,
            previous,
        })
    }

    fn put(&self, revision: Revision, key: String, value: Bytes) -> KeyValue {
        let create_revision = self
            .current
            .get(&key)
            .map_or(revision, |kv| kv.create_revision);
        KeyValue {
            key,
            value,
            create_revision,
            mod_revision: revision,
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StorageError> {
        let data = self.data.lock();
        Ok((data.current.get(key).cloned(), data.revision))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, StorageError> {
        let data = self.data.lock();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut items: Vec<_> = data
            .current
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, kv)| kv)
            .take_while(|kv| kv.key.starts_with(prefix))
            .take(if limit == 0 {
                usize::MAX
            } else {
                limit.saturating_add(1)
            })
            .cloned()
            .collect();
        let more = limit != 0 && items.len() > limit;
        items.truncate(if limit == 0 { usize::MAX } else { limit });
        Ok(Listing {
            items,
            revision: data.revision,
            more,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StorageError> {
        let mut data = self.data.lock();
        if let Some(current) = txn.preconditions.iter().find_map(|p| data.conflict(p)) {
            return Ok(TxnOutcome::Conflict(current));
        }
        let revision = Revision(data.revision.0 + 1);
        let changes: Vec<_> = txn
            .ops
            .into_iter()
            .filter_map(|op| data.apply(revision, op))
            .collect();
        if changes.is_empty() {
            return Ok(TxnOutcome::Committed(data.revision));
        }
        data.revision = revision;
        data.history.insert(revision, changes.clone());
        // Still under the data lock, so that revisions are published in order.
        self.hub.publish(revision, changes);
        Ok(TxnOutcome::Committed(revision))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError> {
        // The data lock first, as `txn` takes them.
        let data = self.data.lock();
        self.hub.watch(prefix, after, |after, upto| {
            let range = (Bound::Excluded(after), Bound::Included(upto));
            Ok(data
                .history
                .range(range)
                .map(|(_, changes)| changes.clone())
                .collect())
        })
    }

    fn current_revision(&self) -> Revision {
        self.hub.published()
    }

    async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        let compacted = self.hub.compact(revision);
        self.data
            .lock()
            .history
            .retain(|revision, _| *revision > compacted);
        Ok(())
    }
}
