//! list: from the cache, consistent, in pages if asked for.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;
use skiff_storage::Revision;

use crate::cache::{Range, Snapshot};
use crate::call::Call;
use crate::failure::Failure;
use crate::negotiate::{self, Representation};
use crate::query::invalid_options;
use crate::respond;
use crate::selection::Selection;

/// Where the next page begins.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    #[serde(rename = "rv")]
    revision: u64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!(self).to_string())
    }

    fn decode(token: &str) -> Result<Self, Failure> {
        let bad = |why: String| {
            Failure::from(ApiStatus::bad_request(format!(
                "continue key is not valid: {why}"
            )))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
    }
}

/// What state of the collection is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The newest.
    Newest,
    /// Whatever the cache has, if it is not older than this.
    NotOlderThan(Revision),
    /// Exactly this.
    Exactly(Revision),
}

fn forbidden(why: &str) -> Failure {
    invalid_options(
        "ListOptions",
        FieldError::forbidden("resourceVersionMatch", why),
    )
}

fn requested_state(call: &Call, token: Option<&Continue>) -> Result<At, Failure> {
    let version = call.query.resource_version()?;
    let rule = call.query.get("resourceVersionMatch");
    if let Some(token) = token {
        if !rule.is_empty() {
            return Err(forbidden(
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if version.is_some_and(|version| version != Revision(0)) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(ApiStatus::bad_request(why).into());
        }
        return Ok(At::Exactly(Revision(token.revision)));
    }
    match (rule, version) {
        ("", None) => Ok(At::Newest),
        ("", Some(version)) => Ok(At::NotOlderThan(version)),
        (_, None) => Err(forbidden(
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        ("NotOlderThan", Some(version)) => Ok(At::NotOlderThan(version)),
        ("Exact", Some(Revision(0))) => Err(forbidden(
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        )),
        ("Exact", Some(version)) => Ok(At::Exactly(version)),
        (other, Some(_)) => {
            let supported = ["Exact", "NotOlderThan", ""];
            let error = FieldError::not_supported("resourceVersionMatch", other, &supported);
            Err(invalid_options("ListOptions", error))
        }
    }
}

/// Takes the snapshot that a request asks for.
pub(crate) async fn snapshot(call: &Call, selection: &Selection) -> Result<Snapshot, Failure> {
    let token = call.query.get("continue");
    let token = if token.is_empty() {
        None
    } else {
        Some(Continue::decode(token)?)
    };
    let state = requested_state(call, token.as_ref())?;
    let limit = call.query.number::<i64>("limit")?.unwrap_or_default();
    let range = Range {
        prefix: &selection.prefix,
        after: token.as_ref().map(|token| token.after.as_str()),
        limit: usize::try_from(limit).unwrap_or_default(),
    };
    let core = &call.core;
    match state {
        At::Newest => core.wait_fresh().await?,
        At::NotOlderThan(revision) | At::Exactly(revision) => core.cache.wait_for(revision).await?,
    }
    let known = core.cache.reached();
    let keep = |key: &str, object: &crate::cache::CachedObject| selection.matches(key, object);
    let cache = call.cache()?;
    match state {
        At::Exactly(revision) => cache
            .snapshot_at(&range, revision, keep)
            .map_err(|too_old| {
                match token {
                    Some(_) => ApiStatus::continue_expired(),
                    None => too_old.to_status(revision),
                }
                .into()
            }),
        _ => Ok(cache.snapshot(&range, known, keep)),
    }
}

fn metadata(snapshot: &Snapshot, selection: &Selection) -> Value {
    let mut metadata = json!({"resourceVersion": snapshot.revision.to_string()});
    if snapshot.remaining > 0
        && let Some((key, _)) = snapshot.items.last()
    {
        let token = Continue {
            revision: snapshot.revision.0,
            after: key.to_string(),
        };
        metadata["continue"] = token.encode().into();
        if !selection.has_selectors() {
            metadata["remainingItemCount"] = snapshot.remaining.into();
        }
    }
    metadata
}

/// Serves a collection.
pub(crate) async fn list(call: &Call) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let selection = Selection::of(call)?;
    let snapshot = snapshot(call, &selection).await?;
    let metadata = metadata(&snapshot, &selection);
    let objects = snapshot.items.iter().map(|(_, object)| object);
    if representation == Representation::Plain {
        let items: Vec<Bytes> = objects.map(|o| call.json_of(o)).collect::<Result<_, _>>()?;
        let resource = call.resource;
        return Ok(respond::list(
            resource.list_kind,
            resource.api_version,
            &metadata,
            items,
        ));
    }
    let values: Vec<Value> = objects
        .map(|o| call.value_of(o))
        .collect::<Result<_, _>>()?;
    if representation == Representation::Table {
        let values: Vec<&Value> = values.iter().collect();
        let table = respond::table_of(call, &values, metadata, true)?;
        return Ok(respond::json_value(StatusCode::OK, &table));
    }
    let items = values
        .iter()
        .map(|value| Bytes::from(respond::partial(value).to_string()))
        .collect();
    let (kind, api_version) = respond::PARTIAL_LIST;
    Ok(respond::list(kind, api_version, &metadata, items))
}
