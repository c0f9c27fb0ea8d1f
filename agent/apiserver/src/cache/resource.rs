//! The cached objects of one resource and the ring of their recent events.
//!
//! Watchers hold a [`Cursor`] into the ring and read at their own pace: nothing is queued per watcher, and
//! one that falls out of the ring is told so without anybody having waited for it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use skiff_storage::Revision;
use tokio::sync::watch;

use super::object::{CachedObject, EventType};

/// The ring never holds more events than this.
const MAX_EVENTS: usize = 4096;
/// Beyond this many bytes of objects the oldest events go, down to [`MIN_EVENTS`].
const MAX_BYTES: usize = 2 << 20;
/// So many events are kept however large they are.
const MIN_EVENTS: usize = 128;

/// One change of one object.
#[derive(Debug)]
pub(crate) struct CacheEvent {
    /// Key below the resource's prefix: `namespace/name`, or `name`.
    pub(crate) key: Arc<str>,
    /// What happened to the object itself.
    pub(crate) kind: EventType,
    /// The new state; for a deletion the last state, at the deletion's revision.
    pub(crate) object: Arc<CachedObject>,
    /// The state before.
    pub(crate) previous: Option<Arc<CachedObject>>,
}

impl CacheEvent {
    /// The revision of the change.
    pub(crate) fn revision(&self) -> Revision {
        self.object.revision
    }
}

/// The history that was asked for is no longer in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOld {
    /// The oldest revision that can still be asked for.
    pub(crate) oldest: Revision,
}

/// The next event that a watcher will read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor(u64);

/// An object with its key below the resource's prefix.
pub(crate) type Item = (Arc<str>, Arc<CachedObject>);

/// Items in key order, and the revision that they show.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// In key order.
    pub(crate) items: Vec<Item>,
    /// All changes up to here are in, none later.
    pub(crate) revision: Revision,
    /// Continues right after this snapshot.
    pub(crate) cursor: Cursor,
    /// How many items follow the last one returned.
    pub(crate) remaining: usize,
}

/// One change to take in.
#[derive(Debug)]
pub(crate) enum Change {
    /// The key has this value now.
    Put(Arc<str>, Bytes, Revision),
    /// The key is gone.
    Delete(Arc<str>, Revision),
}

/// Extracts what field selectors may ask for.
pub(crate) type FieldsOf = fn(&[u8]) -> Box<[(&'static str, Box<str>)]>;

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<CachedObject>>,
    ring: VecDeque<Arc<CacheEvent>>,
    ring_bytes: usize,
    /// Sequence number of the event after the last one in the ring.
    next: u64,
    /// The ring holds every event later than this.
    complete_after: Revision,
    /// Revision of the newest event ever taken in.
    newest: Revision,
}

impl State {
    fn first(&self) -> u64 {
        self.next - self.ring.len() as u64
    }

    fn push(&mut self, event: CacheEvent) {
        self.newest = event.revision();
        self.ring_bytes += event.object.len();
        self.ring.push_back(Arc::new(event));
        self.next += 1;
        while self.ring.len() > MAX_EVENTS
            || (self.ring_bytes > MAX_BYTES && self.ring.len() > MIN_EVENTS)
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.ring.pop_front() {
            self.ring_bytes -= event.object.len();
            self.complete_after = self.complete_after.max(event.revision());
        }
    }

    fn put(&mut self, key: Arc<str>, value: &[u8], revision: Revision, fields: FieldsOf) {
        let kind = if self.objects.contains_key(&key) {
            EventType::Modified
        } else {
            EventType::Added
        };
        match CachedObject::new(kind, value, revision, fields) {
            Ok(object) => {
                let object = Arc::new(object);
                let previous = self.objects.insert(Arc::clone(&key), Arc::clone(&object));
                self.push(CacheEvent {
                    key,
                    kind,
                    object,
                    previous,
                });
            }
            Err(error) => {
                tracing::error!(
                    key = &*key,
                    error = &error as &dyn std::error::Error,
                    "stored object is unreadable"
                );
            }
        }
    }

    fn delete(&mut self, key: Arc<str>, revision: Revision) {
        let Some(previous) = self.objects.remove(&key) else {
            return;
        };
        let object = Arc::new(previous.at_revision(EventType::Deleted, revision));
        self.push(CacheEvent {
            key,
            kind: EventType::Deleted,
            object,
            previous: Some(previous),
        });
    }

    /// Keys that changed after `revision`, with the state that they had then.
    fn changed_since(&self, revision: Revision) -> BTreeMap<&Arc<str>, Option<&Arc<CachedObject>>> {
        let mut then = BTreeMap::new();
        for event in self
            .ring
            .iter()
            .skip(self.ring.partition_point(|e| e.revision() <= revision))
        {
            then.entry(&event.key).or_insert(event.previous.as_ref());
        }
        then
    }
}

/// All objects of one resource.
#[derive(Debug)]
pub(crate) struct ResourceCache {
    state: RwLock<State>,
    /// Sequence number of the next event.
    progress: watch::Sender<u64>,
    fields: FieldsOf,
}

impl ResourceCache {
    pub(crate) fn new(fields: FieldsOf) -> Self {
        Self {
            state: RwLock::default(),
            progress: watch::Sender::new(0),
            fields,
        }
    }

    /// Starts afresh from a full list. Who watches is cut off and lists again.
    pub(crate) fn reset(&self, items: Vec<(Arc<str>, Bytes, Revision)>, at: Revision) {
        let mut state = self.state.write();
        state.objects.clear();
        for (key, value, revision) in items {
            match CachedObject::new(EventType::Added, &value, revision, self.fields) {
                Ok(object) => drop(state.objects.insert(key, Arc::new(object))),
                Err(error) => tracing::error!(
                    key = &*key,
                    error = &error as &dyn std::error::Error,
                    "stored object is unreadable"
                ),
            }
        }
        state.ring = VecDeque::new();
        state.ring_bytes = 0;
        state.complete_after = at;
        state.newest = at;
        // A gap in the numbers tells every cursor that it missed something.
        state.next += 1;
        self.progress.send_replace(state.next);
    }

    /// Takes in changes that belong together: readers see all of them or none.
    pub(crate) fn apply(&self, changes: Vec<Change>) {
        let mut state = self.state.write();
        for change in changes {
            match change {
                Change::Put(key, value, revision) => state.put(key, &value, revision, self.fields),
                Change::Delete(key, revision) => state.delete(key, revision),
            }
        }
        self.progress.send_replace(state.next);
    }

    /// Forgets events up to and including `revision`.
    pub(crate) fn trim(&self, revision: Revision) {
        let mut state = self.state.write();
        while state
            .ring
            .front()
            .is_some_and(|event| event.revision() <= revision)
        {
            state.drop_oldest();
        }
        state.ring.shrink_to(MIN_EVENTS);
    }

    /// Signals that the ring grew.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<CachedObject>> {
        self.state.read().objects.get(key).cloned()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// The current objects below `prefix`, after key `after`, that `keep` keeps, at most `limit` (0 = all).
    /// `known` is the revision that the whole cache had reached before this call.
    pub(crate) fn snapshot(
        &self,
        range: &Range<'_>,
        known: Revision,
        keep: impl Fn(&str, &CachedObject) -> bool,
    ) -> Snapshot {
        let state = self.state.read();
        let revision = known.max(state.newest);
        let cursor = Cursor(state.next);
        let candidates = range.of(&state.objects);
        let (items, remaining) = take(candidates, range, keep);
        Snapshot {
            items,
            revision,
            cursor,
            remaining,
        }
    }

    /// As [`snapshot`](Self::snapshot), as it was at an earlier revision.
    pub(crate) fn snapshot_at(
        &self,
        range: &Range<'_>,
        revision: Revision,
        keep: impl Fn(&str, &CachedObject) -> bool,
    ) -> Result<Snapshot, TooOld> {
        let state = self.state.read();
        if revision < state.complete_after {
            return Err(TooOld {
                oldest: state.complete_after,
            });
        }
        let then = state.changed_since(revision);
        let mut objects: BTreeMap<Arc<str>, Arc<CachedObject>> = range
            .of(&state.objects)
            .filter(|(key, _)| !then.contains_key(key))
            .map(|(key, object)| (Arc::clone(key), Arc::clone(object)))
            .collect();
        for (key, object) in then {
            if let Some(object) = object {
                objects.insert(Arc::clone(key), Arc::clone(object));
            }
        }
        let cursor = Cursor(state.next);
        drop(state);
        let (items, remaining) = take(range.of(&objects), range, keep);
        Ok(Snapshot {
            items,
            revision,
            cursor,
            remaining,
        })
    }

    /// A cursor at the first event later than `revision`.
    pub(crate) fn cursor_after(&self, revision: Revision) -> Result<Cursor, TooOld> {
        let state = self.state.read();
        if revision < state.complete_after {
            return Err(TooOld {
                oldest: state.complete_after,
            });
        }
        let skipped = state
            .ring
            .partition_point(|event| event.revision() <= revision);
        Ok(Cursor(state.first() + skipped as u64))
    }

    /// The next events, at most `max`, and the cursor after them.
    pub(crate) fn read(
        &self,
        cursor: Cursor,
        max: usize,
    ) -> Result<(Vec<Arc<CacheEvent>>, Cursor), TooOld> {
        let state = self.state.read();
        let Some(skip) = cursor.0.checked_sub(state.first()) else {
            return Err(TooOld {
                oldest: state.complete_after,
            });
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let events: Vec<_> = state.ring.iter().skip(skip).take(max).cloned().collect();
        let next = Cursor(cursor.0 + events.len() as u64);
        Ok((events, next))
    }
}

/// Which part of a resource is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Range<'a> {
    /// `namespace/`, or empty for all.
    pub(crate) prefix: &'a str,
    /// Only keys that sort after this one.
    pub(crate) after: Option<&'a str>,
    /// At most so many, 0 for all.
    pub(crate) limit: usize,
}

impl Range<'_> {
    fn of<'m>(
        &self,
        objects: &'m BTreeMap<Arc<str>, Arc<CachedObject>>,
    ) -> impl Iterator<Item = (&'m Arc<str>, &'m Arc<CachedObject>)> {
        let start = match self.after {
            Some(after) if after >= self.prefix => Bound::Excluded(after),
            _ => Bound::Included(self.prefix),
        };
        let prefix = self.prefix.to_owned();
        objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(&prefix))
    }
}

fn take<'m>(
    mut candidates: impl Iterator<Item = (&'m Arc<str>, &'m Arc<CachedObject>)>,
    range: &Range<'_>,
    keep: impl Fn(&str, &CachedObject) -> bool,
) -> (Vec<Item>, usize) {
    let limit = if range.limit == 0 {
        usize::MAX
    } else {
        range.limit
    };
    let items: Vec<Item> = candidates
        .by_ref()
        .filter(|(key, object)| keep(key, object))
        .take(limit)
        .map(|(key, object)| (Arc::clone(key), Arc::clone(object)))
        .collect();
    let remaining = candidates.filter(|(key, object)| keep(key, object)).count();
    (items, remaining)
}
