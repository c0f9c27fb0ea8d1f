//! pods/eviction: a deletion that a disruption budget may refuse (there are no budgets yet).

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use skiff_api::k8s_openapi::api::policy::v1::Eviction;
use skiff_api::status::{ApiStatus, success};

use crate::call::Call;
use crate::failure::Failure;
use crate::respond;
use crate::verbs::delete::{Options, delete_object};

/// Evicts the pod of the request.
pub(crate) async fn create(call: &Call, body: Body) -> Result<Response, Failure> {
    let body = call.body(body).await?;
    let eviction: Eviction =
        skiff_api::decode::decode_as(&body, &mut Vec::new()).map_err(|error| {
            Failure::from(ApiStatus::bad_request(error.to_message("v1", "Eviction")))
        })?;
    let name = eviction.metadata.name.unwrap_or_default();
    if !name.is_empty() && name != call.request.name {
        return Err(
            ApiStatus::bad_request("name in URL does not match name in Eviction object").into(),
        );
    }
    let options = Options::of(call, eviction.delete_options.unwrap_or_default())?;
    delete_object(call, &options).await?;
    Ok(respond::json_value(StatusCode::CREATED, &success(201)))
}
