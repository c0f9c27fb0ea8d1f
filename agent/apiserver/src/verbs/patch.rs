//! patch: JSON, merge and strategic merge.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use skiff_api::patch::{PatchError, PatchType, apply};
use skiff_api::resource::Resource;
use skiff_api::status::{ApiStatus, StatusReason};

use super::prepare::{self, Part};
use crate::call::Call;
use crate::failure::Failure;
use crate::{body, negotiate, respond, write};

/// A patch as it came.
pub(crate) struct Patch {
    kind: PatchType,
    patch: Value,
}

impl Patch {
    /// Reads the media type and parses the body.
    pub(crate) async fn read(call: &Call, body: Body) -> Result<Self, Failure> {
        let media_type = body::media_type(&call.headers);
        let kind = PatchType::from_media_type(media_type).ok_or_else(|| {
            Failure::from(ApiStatus::unsupported_media_type(&PatchType::MEDIA_TYPES))
        })?;
        let bytes = body::read(body).await?;
        let patch = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::from(ApiStatus::bad_request(format!(
                "error decoding patch: {error}"
            )))
        })?;
        Ok(Self { kind, patch })
    }

    /// The object after the patch.
    pub(crate) fn apply(&self, resource: &Resource, object: &Value) -> Result<Value, Failure> {
        apply(resource, self.kind, object, &self.patch).map_err(|error| {
            match error {
                PatchError::Malformed(why) => ApiStatus::bad_request(why),
                PatchError::NotApplicable(why) => ApiStatus::new(
                    422,
                    StatusReason::Invalid,
                    format!(
                        "the server rejected our request due to an error in our request: {why}"
                    ),
                ),
            }
            .into()
        })
    }
}

/// Patches an object, or one part of it.
pub(crate) async fn patch(call: &Call, part: Part, body: Body) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let (strictness, dry_run) = (call.query.strictness()?, call.query.dry_run()?);
    let patch = Patch::read(call, body).await?;
    let mut warnings = Vec::new();
    let change = |old: &Value| {
        let patched = patch.apply(call.resource, old)?;
        let new = prepare::decode(call, &patched, strictness, &mut warnings)?;
        prepare::successor(call, part, new, old)
    };
    let written = write::update(call, dry_run, change).await?;
    let response = respond::object(call, representation, StatusCode::OK, &written)?;
    Ok(respond::with_warnings(response, &warnings))
}
