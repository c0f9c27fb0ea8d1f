//! What goes on in the background: Events expire, history is compacted.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::resource::{Kind, Registry};
use skiff_storage::{Op, Precondition, Revision, StorageError, Txn};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cache::Range;
use crate::object::{meta, text};
use crate::server::Core;

const COMPACTION_INTERVAL: Duration = Duration::from_secs(300);
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// An Event is kept so long after it was last seen.
const EVENT_TTL: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Works until cancelled.
pub(crate) async fn run(core: &Core, token: &CancellationToken) {
    let mut compaction = interval(COMPACTION_INTERVAL);
    let mut expiry = interval(EXPIRY_INTERVAL);
    compaction.set_missed_tick_behavior(MissedTickBehavior::Delay);
    expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Watchers get the time of one interval to catch up.
    let mut keep_after = core.store.current_revision();
    compaction.tick().await;
    loop {
        let done = tokio::select! {
            () = token.cancelled() => return,
            _ = compaction.tick() => {
                let revision = std::mem::replace(&mut keep_after, core.store.current_revision());
                compact(core, revision).await
            }
            _ = expiry.tick() => expire_events(core, Timestamp::now()).await,
        };
        if let Err(error) = done {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "maintenance of the store failed"
            );
        }
    }
}

async fn compact(core: &Core, revision: Revision) -> Result<(), StorageError> {
    if revision == Revision(0) {
        return Ok(());
    }
    core.store.compact(revision).await?;
    core.cache.trim(revision);
    Ok(())
}

/// Removes Events that were last seen longer ago than they are kept.
pub(crate) async fn expire_events(core: &Core, now: Timestamp) -> Result<(), StorageError> {
    let prefix = Registry::of(Kind::CoreEvent).map_or("", |resource| resource.storage_prefix);
    let Some(cache) = core.cache.resource(prefix) else {
        return Ok(());
    };
    let expired = cache.snapshot(&Range::default(), Revision(0), |_, object| {
        let value = serde_json::from_slice::<Value>(&object.json());
        let seen = value.ok().and_then(|value| last_seen(&value));
        seen.is_some_and(|seen| now.duration_since(seen) > EVENT_TTL)
    });
    for (key, object) in expired.items {
        let key = format!("{prefix}{key}");
        let txn = Txn {
            preconditions: vec![Precondition::Unchanged(key.clone(), object.revision)],
            ops: vec![Op::Delete { key }],
        };
        // A conflict means that it was seen again: it stays.
        core.store.txn(txn).await?;
    }
    Ok(())
}

fn last_seen(event: &Value) -> Option<Timestamp> {
    [
        text(event, &["series", "lastObservedTime"]),
        text(event, &["lastTimestamp"]),
        text(event, &["eventTime"]),
        meta(event, "creationTimestamp"),
    ]
    .into_iter()
    .find_map(|time| time.parse().ok())
}
