//! get.

use axum::response::Response;
use http::StatusCode;
use skiff_storage::Revision;

use crate::call::Call;
use crate::failure::Failure;
use crate::negotiate::{self, Representation};
use crate::respond;

/// Serves one object from the cache, after waiting until that is fresh enough.
pub(crate) async fn get(call: &Call) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    match call.query.resource_version()? {
        Some(Revision(0)) => call.core.cache.wait_for(Revision(0)).await?,
        Some(at_least) => call.core.cache.wait_for(at_least).await?,
        None => call.core.wait_fresh().await?,
    }
    let found = call.cache()?.get(&call.short_key(&call.request.name));
    let found = found.ok_or_else(|| call.not_found())?;
    if representation == Representation::Plain {
        return Ok(respond::json_bytes(StatusCode::OK, call.json_of(&found)?));
    }
    respond::object(
        call,
        representation,
        StatusCode::OK,
        &call.value_of(&found)?,
    )
}
