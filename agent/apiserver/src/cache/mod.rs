//! The watch cache: every object in memory, fed by one watch of the store.
//!
//! Reads wait until the cache has caught up with the store's revision, so they see every write that was
//! acknowledged before they began.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use skiff_api::resource::Registry;
use skiff_storage::{Revision, StorageError, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod fields;
mod object;
mod resource;
#[cfg(test)]
mod tests;

pub(crate) use fields::{Field, sparse};
pub(crate) use object::{CachedObject, EventType, frame, frame_named};
pub(crate) use resource::{CacheEvent, Cursor, Range, ResourceCache, Snapshot, TooOld};

/// How long a read waits for the cache to catch up.
const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before the store is listed again after its watch broke.
const REFILL_DELAY: Duration = Duration::from_millis(100);

/// The cache did not reach a revision in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Too large resource version: {wanted}, current: {current}")]
pub(crate) struct NotFresh {
    /// What was waited for.
    pub(crate) wanted: Revision,
    /// How far the cache is.
    pub(crate) current: Revision,
}

/// All resources.
#[derive(Debug)]
pub(crate) struct WatchCache {
    resources: HashMap<&'static str, Arc<ResourceCache>>,
    /// Every change up to here has been taken in; `None` before the first fill.
    reached: watch::Sender<Option<Revision>>,
}

impl WatchCache {
    pub(crate) fn new() -> Self {
        let resources = Registry::iter()
            .map(|r| {
                (
                    r.storage_prefix,
                    Arc::new(ResourceCache::new(fields::extractor(r.id))),
                )
            })
            .collect();
        Self {
            resources,
            reached: watch::Sender::new(None),
        }
    }

    /// The cache of the resource that is stored below `prefix`.
    pub(crate) fn resource(&self, prefix: &str) -> Option<&Arc<ResourceCache>> {
        self.resources.get(prefix)
    }

    /// How far the cache is.
    pub(crate) fn reached(&self) -> Revision {
        self.reached.borrow().unwrap_or_default()
    }

    /// Whether it has been filled once.
    pub(crate) fn is_filled(&self) -> bool {
        self.reached.borrow().is_some()
    }

    /// Waits until every change up to `revision` is in.
    pub(crate) async fn wait_for(&self, revision: Revision) -> Result<(), NotFresh> {
        let fresh = |reached: &Option<Revision>| reached.is_some_and(|r| r >= revision);
        if fresh(&self.reached.borrow()) {
            return Ok(());
        }
        let mut receiver = self.reached.subscribe();
        let waited = tokio::time::timeout(FRESHNESS_TIMEOUT, receiver.wait_for(fresh)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(NotFresh {
                wanted: revision,
                current: self.reached(),
            }),
        }
    }

    /// Feeds the cache until cancelled.
    pub(crate) async fn run(&self, store: &dyn Store, token: &CancellationToken) {
        while !token.is_cancelled() {
            let followed = token.run_until_cancelled(self.fill_and_follow(store)).await;
            if let Some(Err(error)) = followed {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "watch of the store failed"
                );
            }
            token
                .run_until_cancelled(tokio::time::sleep(REFILL_DELAY))
                .await;
        }
    }

    async fn fill_and_follow(&self, store: &dyn Store) -> Result<(), StorageError> {
        let listing = store.list("/registry/", None, 0).await?;
        let mut watch = store.watch("", listing.revision).await?;
        let mut found: HashMap<&'static str, Vec<_>> = HashMap::new();
        for kv in &listing.items {
            if let Some((prefix, key)) = self.split(&kv.key) {
                found
                    .entry(prefix)
                    .or_default()
                    .push((key, kv.value.clone(), kv.mod_revision));
            }
        }
        drop(listing.items);
        for (prefix, cache) in &self.resources {
            cache.reset(found.remove(prefix).unwrap_or_default(), listing.revision);
        }
        self.reached.send_replace(Some(listing.revision));
        while let Some(batch) = watch.next().await {
            self.ingest(&batch);
        }
        Ok(())
    }

    fn ingest(&self, batch: &[skiff_storage::Change]) {
        let mut by_resource: Vec<(&'static str, Vec<resource::Change>)> = Vec::new();
        for change in batch {
            let Some((prefix, key)) = self.split(&change.key) else {
                continue;
            };
            let change = match &change.current {
                Some(kv) => resource::Change::Put(key, kv.value.clone(), change.revision),
                None => resource::Change::Delete(key, change.revision),
            };
            match by_resource.iter_mut().find(|(p, _)| *p == prefix) {
                Some((_, changes)) => changes.push(change),
                None => by_resource.push((prefix, vec![change])),
            }
        }
        for (prefix, changes) in by_resource {
            if let Some(cache) = self.resources.get(prefix) {
                cache.apply(changes);
            }
        }
        if let Some(last) = batch.last() {
            self.reached.send_replace(Some(last.revision));
        }
    }

    /// Forgets events up to and including `revision`.
    pub(crate) fn trim(&self, revision: Revision) {
        for cache in self.resources.values() {
            cache.trim(revision);
        }
    }

    /// The resource's prefix and the key below it; `None` for what is no served object.
    fn split(&self, key: &str) -> Option<(&'static str, Arc<str>)> {
        let plural_end = key.strip_prefix("/registry/")?.find('/')? + "/registry/".len() + 1;
        let (prefix, rest) = key.split_at_checked(plural_end)?;
        let (prefix, _) = self.resources.get_key_value(prefix)?;
        Some((prefix, Arc::from(rest)))
    }
}
