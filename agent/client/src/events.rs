//! Records core/v1 Events about objects, as client-go's recorder and correlator do.
//!
//! The caller's side only puts a note into a bounded channel; when that is full the note is lost,
//! never the caller's time. One task correlates and writes:
//! - the same event again: `count` and `lastTimestamp` of the first one are patched;
//! - more than ten different messages for one object and reason within ten minutes: one event
//!   "(combined from similar events)";
//! - more than 25 events about one object, refilled by one per five minutes: dropped.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{chain, is_not_found};

const CHANNEL: usize = 1024;
const MAX_CACHED: usize = 4096;
const SIMILAR_LIMIT: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_PER_SECOND: f64 = 1.0 / 300.0;

/// `type` of an Event.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EventKind {
    /// All is as it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        }
    }
}

/// A reference to `object` as Events and EndpointSlices carry it.
pub fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    kind: EventKind,
    reason: String,
    message: String,
    at: Timestamp,
}

/// The caller's side; cheap to clone.
#[derive(Clone, Debug)]
pub struct EventRecorder {
    notes: mpsc::Sender<Note>,
}

impl EventRecorder {
    /// A recorder for `component` (such as `deployment-controller`) on `host` (empty if it belongs
    /// to no node). The writing task ends when `token` is cancelled.
    #[must_use]
    pub fn start(
        client: Client,
        component: impl Into<String>,
        host: impl Into<String>,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> EventRecorder {
        let (notes, receiver) = mpsc::channel(CHANNEL);
        let source = EventSource {
            component: Some(component.into()),
            host: Some(host.into()).filter(|host: &String| !host.is_empty()),
        };
        tasks.spawn(write_loop(client, source, receiver, token.clone()));
        EventRecorder { notes }
    }

    /// Records an event about `about`. Never waits; drops the event when too many are pending.
    pub fn record(
        &self,
        about: ObjectReference,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let note = Note {
            about,
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.notes.try_send(note).is_err() {
            tracing::debug!(reason, "event dropped");
        }
    }

    /// [`record`](Self::record) for a typed object.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(object_reference(about), kind, reason, message);
    }
}

async fn write_loop(
    client: Client,
    source: EventSource,
    mut notes: mpsc::Receiver<Note>,
    token: CancellationToken,
) {
    let mut correlator = Correlator::new(source);
    loop {
        let note = tokio::select! {
            () = token.cancelled() => return,
            note = notes.recv() => note,
        };
        let Some(note) = note else { return };
        let Some(write) = correlator.observe(note, Instant::now()) else {
            continue;
        };
        if let Err(error) = apply(&client, &write).await {
            tracing::debug!(error = %chain(&error), "event not written");
        }
    }
}

async fn apply(client: &Client, write: &Write) -> kube::Result<()> {
    let namespace = write
        .event
        .metadata
        .namespace
        .as_deref()
        .unwrap_or("default");
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    if write.again {
        let name = write.event.metadata.name.as_deref().unwrap_or_default();
        let patch = serde_json::json!({
            "count": write.event.count,
            "lastTimestamp": write.event.last_timestamp,
            "message": write.event.message,
        });
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    api.create(&PostParams::default(), &write.event)
        .await
        .map(|_| ())
}

/// What to do about one note.
#[derive(Debug)]
struct Write {
    /// Patch the event of that name (and create it if it has expired); else create.
    again: bool,
    event: Event,
}

type GroupKey = (String, String, EventKind, String);

struct Written {
    name: String,
    count: i32,
    first: Timestamp,
}

struct Similar {
    messages: HashSet<String>,
    since: Instant,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Decides; does no I/O. Its maps are emptied when they grow too large, which costs a `count` that
/// starts again at one.
struct Correlator {
    source: EventSource,
    written: HashMap<(GroupKey, String), Written>,
    similar: HashMap<GroupKey, Similar>,
    buckets: HashMap<String, Bucket>,
    sequence: u64,
}

impl Correlator {
    fn new(source: EventSource) -> Self {
        Correlator {
            source,
            written: HashMap::new(),
            similar: HashMap::new(),
            buckets: HashMap::new(),
            sequence: 0,
        }
    }

    fn observe(&mut self, note: Note, now: Instant) -> Option<Write> {
        self.bound_memory();
        let about = &note.about;
        let object = format!(
            "{}/{}/{}/{}",
            about.kind.as_deref().unwrap_or_default(),
            about.namespace.as_deref().unwrap_or_default(),
            about.name.as_deref().unwrap_or_default(),
            about.uid.as_deref().unwrap_or_default(),
        );
        let field = about.field_path.clone().unwrap_or_default();
        let group: GroupKey = (object.clone(), field, note.kind, note.reason.clone());

        let combined = self.too_many_similar(&group, &note.message, now);
        if !self.take_token(object, now) {
            return None;
        }
        // All of a combined group is one event, whatever the messages.
        let message = if combined {
            format!("(combined from similar events): {}", note.message)
        } else {
            note.message.clone()
        };
        let key = (
            group,
            if combined {
                String::new()
            } else {
                note.message.clone()
            },
        );

        self.sequence += 1;
        let fresh_name = format!(
            "{}.{:x}",
            about.name.as_deref().unwrap_or_default(),
            // Two events of one object in one tick of the clock still differ.
            note.at.as_nanosecond() + i128::from(self.sequence % 1000),
        );
        let again = self.written.contains_key(&key);
        let written = self.written.entry(key).or_insert(Written {
            name: fresh_name,
            count: 0,
            first: note.at,
        });
        written.count = written.count.saturating_add(1);
        let namespace = about.namespace.clone().filter(|n| !n.is_empty());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(written.name.clone()),
                namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            count: Some(written.count),
            first_timestamp: Some(Time(written.first)),
            last_timestamp: Some(Time(note.at)),
            message: Some(message),
            reason: Some(note.reason),
            type_: Some(note.kind.as_str().to_owned()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            involved_object: note.about,
            ..Event::default()
        };
        Some(Write { again, event })
    }

    fn too_many_similar(&mut self, group: &GroupKey, message: &str, now: Instant) -> bool {
        let similar = self
            .similar
            .entry(group.clone())
            .or_insert_with(|| Similar {
                messages: HashSet::new(),
                since: now,
            });
        if now.duration_since(similar.since) > SIMILAR_WINDOW {
            similar.messages.clear();
            similar.since = now;
        }
        if similar.messages.len() < SIMILAR_LIMIT {
            similar.messages.insert(message.to_owned());
        }
        similar.messages.len() >= SIMILAR_LIMIT && !similar.messages.contains(message)
    }

    fn take_token(&mut self, object: String, now: Instant) -> bool {
        let bucket = self.buckets.entry(object).or_insert(Bucket {
            tokens: SPAM_BURST,
            at: now,
        });
        let refill = now.duration_since(bucket.at).as_secs_f64() * SPAM_REFILL_PER_SECOND;
        bucket.tokens = (bucket.tokens + refill).min(SPAM_BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn bound_memory(&mut self) {
        if self.written.len() >= MAX_CACHED {
            self.written.clear();
        }
        if self.similar.len() >= MAX_CACHED {
            self.similar.clear();
        }
        if self.buckets.len() >= MAX_CACHED {
            self.buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str) -> Note {
        Note {
            about: ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some("ns".to_owned()),
                name: Some("web".to_owned()),
                uid: Some("u".to_owned()),
                ..ObjectReference::default()
            },
            kind: EventKind::Warning,
            reason: "BackOff".to_owned(),
            message: message.to_owned(),
            at: Timestamp::now(),
        }
    }

    fn correlator() -> Correlator {
        Correlator::new(EventSource {
            component: Some("test".to_owned()),
            host: None,
        })
    }

    #[test]
    fn the_same_event_again_is_counted() {
        let mut c = correlator();
        let now = Instant::now();
        let first = c.observe(note("m"), now).unwrap();
        let second = c.observe(note("m"), now).unwrap();
        let other = c.observe(note("n"), now).unwrap();
        assert!(!first.again && second.again && !other.again);
        assert_eq!(second.event.count, Some(2));
        assert_eq!(first.event.metadata.name, second.event.metadata.name);
        assert_ne!(first.event.metadata.name, other.event.metadata.name);
        assert_eq!(first.event.first_timestamp, second.event.first_timestamp);
    }

    #[test]
    fn many_similar_events_become_one() {
        let mut c = correlator();
        let now = Instant::now();
        for i in 0..10 {
            assert!(!c.observe(note(&format!("m{i}")), now).unwrap().again);
        }
        let eleventh = c.observe(note("m10"), now).unwrap();
        let twelfth = c.observe(note("m11"), now).unwrap();
        assert!(!eleventh.again && twelfth.again);
        assert_eq!(
            twelfth.event.message.as_deref(),
            Some("(combined from similar events): m11")
        );
        let later = c.observe(note("m12"), now + SIMILAR_WINDOW * 2).unwrap();
        assert_eq!(later.event.message.as_deref(), Some("m12"));
    }

    #[test]
    fn an_object_that_floods_is_silenced_and_heard_again() {
        let mut c = correlator();
        let now = Instant::now();
        let written = (0..100)
            .filter(|_| c.observe(note("m"), now).is_some())
            .count();
        assert_eq!(written, 25);
        assert!(
            c.observe(note("m"), now + Duration::from_secs(301))
                .is_some()
        );
    }
}
