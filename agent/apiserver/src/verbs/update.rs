//! update: PUT of an object or of its status.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;

use super::prepare::{self, Part};
use crate::call::Call;
use crate::failure::Failure;
use crate::{negotiate, respond, write};

/// Replaces an object, or one part of it.
pub(crate) async fn update(call: &Call, part: Part, body: Body) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let (strictness, dry_run) = (call.query.strictness()?, call.query.dry_run()?);
    let body = call.body(body).await?;
    let mut warnings = Vec::new();
    let new = prepare::decode(call, &body, strictness, &mut warnings)?;
    let change = |old: &Value| prepare::successor(call, part, new.clone(), old);
    let written = write::update(call, dry_run, change).await?;
    let response = respond::object(call, representation, StatusCode::OK, &written)?;
    Ok(respond::with_warnings(response, &warnings))
}
