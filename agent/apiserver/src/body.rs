//! Request bodies: size limit, media types, parsing.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use skiff_api::status::ApiStatus;

use crate::failure::Failure;
use crate::protobuf::{self, ProtobufError};

/// Larger bodies are refused.
pub(crate) const LIMIT: usize = 3 << 20;
/// What a body may be written in.
const ACCEPTED: [&str; 2] = ["application/json", "application/yaml"];

/// The whole body.
pub(crate) async fn read(body: Body) -> Result<Bytes, Failure> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiStatus::request_too_large(LIMIT).into())
        }
        Err(error) => {
            Err(ApiStatus::bad_request(format!("unable to read the body: {error}")).into())
        }
    }
}

/// The media type without parameters; `application/json` if none is given.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let text = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "" => ACCEPTED[0],
        media_type => media_type,
    }
}

/// Reads and parses an object.
pub(crate) async fn object(headers: &HeaderMap, body: Body) -> Result<Value, Failure> {
    let parse = match media_type(headers) {
        "application/json" => parse_json,
        "application/yaml" | "application/x-yaml" | "text/yaml" => parse_yaml,
        protobuf::MEDIA_TYPE => parse_protobuf,
        _ => return Err(ApiStatus::unsupported_media_type(&ACCEPTED).into()),
    };
    let value = parse(&read(body).await?)?;
    if value.is_object() {
        return Ok(value);
    }
    Err(ApiStatus::bad_request("the object provided is unrecognized: expected an object").into())
}

/// As [`object`], but a body may be absent.
pub(crate) async fn optional(headers: &HeaderMap, body: Body) -> Result<Option<Value>, Failure> {
    let bytes = read(body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    object(headers, Body::from(bytes)).await.map(Some)
}

/// Parses JSON.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let what = if bytes.is_empty() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
        ApiStatus::bad_request(format!(
            "the object provided is unrecognized (must be of type JSON): couldn't get version/kind; json parse error: {what}"
        ))
        .into()
    })
}

/// Parses protobuf, of the kinds that clients send so whatever they are told.
fn parse_protobuf(bytes: &[u8]) -> Result<Value, Failure> {
    protobuf::decode(bytes).map_err(|error| {
        match error {
            ProtobufError::Malformed(_) => ApiStatus::bad_request(error.to_string()),
            _ => {
                let mut status = ApiStatus::unsupported_media_type(&ACCEPTED);
                status.message = format!("{}: {error}", status.message);
                status
            }
        }
        .into()
    })
}

/// Parses YAML.
pub(crate) fn parse_yaml(bytes: &[u8]) -> Result<Value, Failure> {
    let bad = |why: String| {
        Failure::from(ApiStatus::bad_request(format!(
            "error converting YAML to JSON: {why}"
        )))
    };
    let text = str::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
    serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))
}
