//! Responses: objects, lists, tables.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use skiff_api::resource::Resource;
use skiff_api::status::ApiStatus;
use skiff_api::table::{IncludeObject, table};

use crate::call::Call;
use crate::failure::Failure;
use crate::negotiate::Representation;

const WARNING: HeaderName = HeaderName::from_static("warning");
/// Lists up to this size are sent in one piece.
const ONE_PIECE: usize = 64 << 10;

/// Any JSON.
pub(crate) fn json_bytes(code: StatusCode, body: impl Into<Body>) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    (code, [(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

/// Any JSON value.
pub(crate) fn json_value(code: StatusCode, value: &Value) -> Response {
    json_bytes(code, value.to_string())
}

/// Plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Body>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    (code, [(header::CONTENT_TYPE, content_type)], text.into()).into_response()
}

/// Adds a `Warning` header for each warning.
pub(crate) fn with_warnings(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}

/// The `includeObject` parameter.
pub(crate) fn include_object(call: &Call) -> Result<IncludeObject, Failure> {
    IncludeObject::parse(call.query.get("includeObject")).ok_or_else(|| {
        ApiStatus::bad_request("invalid includeObject: must be one of None, Metadata, Object")
            .into()
    })
}

/// One object in the representation that was asked for.
pub(crate) fn object(
    call: &Call,
    representation: Representation,
    code: StatusCode,
    value: &Value,
) -> Result<Response, Failure> {
    Ok(match representation {
        Representation::Table => {
            json_value(code, &table_of(call, &[value], list_metadata(value), true)?)
        }
        Representation::Metadata => json_value(code, &partial(value)),
        _ => json_value(code, value),
    })
}

/// What a table or list says of the version it shows, taken from one object.
fn list_metadata(value: &Value) -> Value {
    json!({"resourceVersion": crate::object::meta(value, "resourceVersion")})
}

/// A table of objects.
pub(crate) fn table_of(
    call: &Call,
    objects: &[&Value],
    metadata: Value,
    columns: bool,
) -> Result<Value, Failure> {
    let include = include_object(call)?;
    let now = jiff::Timestamp::now();
    Ok(table(
        call.resource,
        objects.iter().copied(),
        metadata,
        include,
        columns,
        now,
    ))
}

/// An object's metadata alone.
pub(crate) fn partial(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get("metadata").cloned().unwrap_or_default(),
    })
}

/// A list of objects that are JSON already.
pub(crate) fn list(kind: &str, api_version: &str, metadata: &Value, items: Vec<Bytes>) -> Response {
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        json!(kind),
        json!(api_version)
    );
    let size = head.len() + items.iter().map(|item| item.len() + 1).sum::<usize>() + 2;
    let mut chunks = Vec::with_capacity(items.len() * 2 + 2);
    chunks.push(Bytes::from(head));
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            chunks.push(Bytes::from_static(b","));
        }
        chunks.push(item);
    }
    chunks.push(Bytes::from_static(b"]}"));
    if size > ONE_PIECE {
        let stream =
            futures::stream::iter(chunks.into_iter().map(Ok::<_, std::convert::Infallible>));
        return json_bytes(StatusCode::OK, Body::from_stream(stream));
    }
    let mut whole = BytesMut::with_capacity(size);
    for chunk in chunks {
        whole.extend_from_slice(&chunk);
    }
    json_bytes(StatusCode::OK, whole.freeze())
}

/// Kind and version of a list of partial metadata.
pub(crate) const PARTIAL_LIST: (&str, &str) = ("PartialObjectMetadataList", "meta.k8s.io/v1");

/// A bookmark of that resource.
pub(crate) fn bookmark(
    resource: &Resource,
    revision: skiff_storage::Revision,
    initial_end: bool,
) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})
}
