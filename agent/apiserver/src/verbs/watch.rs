//! watch: a stream of changes that neither misses nor repeats one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use serde_json::{Value, json};
use skiff_api::validation::FieldError;
use skiff_storage::Revision;
use tokio::time::Instant;

use crate::cache::{
    CacheEvent, CachedObject, Cursor, EventType, Range, ResourceCache, frame, frame_named,
};
use crate::call::Call;
use crate::failure::Failure;
use crate::metrics::WatchGuard;
use crate::negotiate::{self, Representation};
use crate::object::random_below;
use crate::query::invalid_options;
use crate::respond;
use crate::selection::Selection;

/// Events that a watcher takes out of the cache at once.
const BATCH: usize = 128;
/// A watcher that wants bookmarks gets one this often.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` ends after this, up to twice that.
const MIN_TIMEOUT_SECONDS: u64 = 1800;

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With the present state as `ADDED` events; `bookmark`: and a bookmark after them.
    State {
        at_least: Option<Revision>,
        bookmark: bool,
    },
    /// With what happens from now on.
    Now,
    /// With what happened after this revision.
    After(Revision),
}

fn start(call: &Call) -> Result<Start, Failure> {
    let version = call.query.resource_version()?;
    let rule = call.query.get("resourceVersionMatch");
    let initial = call.query.get("sendInitialEvents");
    let forbidden =
        |field: &str, why: &str| invalid_options("ListOptions", FieldError::forbidden(field, why));
    if initial.is_empty() {
        if !rule.is_empty() {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(forbidden("resourceVersionMatch", why));
        }
        return Ok(match version {
            None => Start::State {
                at_least: None,
                bookmark: false,
            },
            Some(Revision(0)) => Start::State {
                at_least: Some(Revision(0)),
                bookmark: false,
            },
            Some(version) => Start::After(version),
        });
    }
    if rule != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(forbidden("resourceVersionMatch", why));
    }
    if call.query.flag("sendInitialEvents") {
        return Ok(Start::State {
            at_least: version,
            bookmark: call.query.flag("allowWatchBookmarks"),
        });
    }
    Ok(match version {
        None | Some(Revision(0)) => Start::Now,
        Some(version) => Start::After(version),
    })
}

/// Turns events into frames for one client.
struct Encoder {
    call: Call,
    selection: Selection,
    representation: Representation,
    /// A table's columns are sent once.
    columns_sent: bool,
}

impl Encoder {
    /// The frame of an event, if the selection sees it.
    fn event(&mut self, event: &CacheEvent) -> Option<Bytes> {
        let kind = self.selection.transition(event)?;
        let left = kind == EventType::Deleted && event.kind != EventType::Deleted;
        match (&event.previous, left) {
            // It goes in the last state that matched, at the revision of the change.
            (Some(previous), true) => {
                self.object(kind, &previous.at_revision(kind, event.revision()))
            }
            _ => self.object(kind, &event.object),
        }
    }

    fn object(&mut self, kind: EventType, object: &CachedObject) -> Option<Bytes> {
        if self.representation == Representation::Plain && !self.call.converts() {
            return Some(object.frame(kind));
        }
        match self
            .call
            .value_of(object)
            .and_then(|value| self.represent(&value))
        {
            Ok(value) => Some(frame(kind, value.to_string().as_bytes())),
            Err(failure) => {
                tracing::error!(message = failure.message, "cannot encode a watch event");
                None
            }
        }
    }

    fn represent(&mut self, value: &Value) -> Result<Value, Failure> {
        match self.representation {
            Representation::Table => {
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                let version =
                    json!({"resourceVersion": crate::object::meta(value, "resourceVersion")});
                respond::table_of(&self.call, &[value], version, columns)
            }
            Representation::Metadata => Ok(respond::partial(value)),
            _ => Ok(value.clone()),
        }
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let plain = respond::bookmark(self.call.resource, revision, initial_end);
        let value = self.represent(&plain).unwrap_or(plain);
        frame_named("BOOKMARK", value.to_string().as_bytes())
    }
}

/// One client's watch.
struct Watcher {
    encoder: Encoder,
    cache: Arc<ResourceCache>,
    cursor: Cursor,
    progress: tokio::sync::watch::Receiver<u64>,
    ready: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
    _guard: WatchGuard,
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            self.progress.mark_unchanged();
            let Ok((events, cursor)) = self.cache.read(self.cursor, BATCH) else {
                // Too slow: the client has to list again, as its next watch will tell it.
                return None;
            };
            self.cursor = cursor;
            for event in &events {
                self.ready.extend(self.encoder.event(event));
            }
            if events.is_empty() {
                self.wait().await;
            }
        }
    }

    async fn wait(&mut self) {
        let shutdown = self.encoder.call.core.shutdown.clone();
        tokio::select! {
            changed = self.progress.changed() => self.ended = changed.is_err(),
            () = shutdown.cancelled() => self.ended = true,
            () = tokio::time::sleep_until(self.deadline) => {
                self.push_bookmark();
                self.ended = true;
            }
            () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                self.push_bookmark();
                self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
            }
        }
    }

    /// Everything up to the revision read first has been delivered once the ring is drained after it.
    fn push_bookmark(&mut self) {
        if !self.bookmarks {
            return;
        }
        let reached = self.encoder.call.core.cache.reached();
        let mut cursor = self.cursor;
        while let Ok((events, next)) = self.cache.read(cursor, BATCH) {
            if events.is_empty() {
                self.cursor = cursor;
                let bookmark = self.encoder.bookmark(reached, false);
                self.ready.push_back(bookmark);
                return;
            }
            for event in &events {
                self.ready.extend(self.encoder.event(event));
            }
            cursor = next;
            self.cursor = cursor;
        }
    }
}

/// Serves a watch.
pub(crate) async fn watch(call: Call) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    if representation == Representation::Table {
        respond::include_object(&call)?;
    }
    let selection = Selection::of(&call)?;
    let start = start(&call)?;
    let seconds = match call.query.number::<u64>("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds,
        _ => MIN_TIMEOUT_SECONDS + random_below(MIN_TIMEOUT_SECONDS),
    };
    let cache = Arc::clone(call.cache()?);
    let progress = cache.subscribe();
    let now = Instant::now();
    let guard = call.core.metrics.watch(call.resource);
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let mut encoder = Encoder {
        call,
        selection,
        representation,
        columns_sent: false,
    };
    let mut ready = VecDeque::new();
    let cursor = match begin(&mut encoder, &cache, start, &mut ready).await {
        Ok(cursor) => cursor,
        // A watch that cannot begin where it should says so in the stream, as upstream does.
        Err(failure) if failure.code == 410 => {
            let error = frame_named("ERROR", failure.to_value().to_string().as_bytes());
            return Ok(respond::json_bytes(StatusCode::OK, error));
        }
        Err(failure) => return Err(failure),
    };
    let watcher = Watcher {
        encoder,
        cache,
        cursor,
        progress,
        ready,
        bookmarks,
        next_bookmark: now + BOOKMARK_INTERVAL,
        deadline: now + Duration::from_secs(seconds),
        ended: false,
        _guard: guard,
    };
    let frames = stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), watcher))
    });
    Ok(respond::json_bytes(
        StatusCode::OK,
        Body::from_stream(frames),
    ))
}

/// Puts the initial events into `ready` and finds where to go on from.
async fn begin(
    encoder: &mut Encoder,
    cache: &ResourceCache,
    start: Start,
    ready: &mut VecDeque<Bytes>,
) -> Result<Cursor, Failure> {
    let core = Arc::clone(&encoder.call.core);
    match start {
        Start::After(revision) => {
            // Else an event up to this revision that is still on its way would count as a later one.
            core.cache.wait_for(revision).await?;
            cache
                .cursor_after(revision)
                .map_err(|too_old| too_old.to_status(revision).into())
        }
        Start::Now => {
            core.wait_fresh().await?;
            let nothing = Range::default();
            Ok(cache
                .snapshot(&nothing, core.cache.reached(), |_, _| false)
                .cursor)
        }
        Start::State { at_least, bookmark } => {
            match at_least {
                Some(revision) => core.cache.wait_for(revision).await?,
                None => core.wait_fresh().await?,
            }
            let range = Range {
                prefix: &encoder.selection.prefix.clone(),
                ..Range::default()
            };
            let selection = &encoder.selection;
            let known = core.cache.reached();
            let snapshot =
                cache.snapshot(&range, known, |key, object| selection.matches(key, object));
            for (_, object) in &snapshot.items {
                ready.extend(encoder.object(EventType::Added, object));
            }
            if bookmark {
                ready.push_back(encoder.bookmark(snapshot.revision, true));
            }
            Ok(snapshot.cursor)
        }
    }
}
