//! The scale subresource of Deployments and ReplicaSets.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use skiff_api::k8s_openapi::api::autoscaling::v1::Scale;
use skiff_api::resource::GroupKind;
use skiff_api::scale;
use skiff_api::status::ApiStatus;
use skiff_api::table;

use crate::call::Call;
use crate::failure::Failure;
use crate::negotiate::Representation;
use crate::object::meta;
use crate::verbs::patch::Patch;
use crate::verbs::prepare::{self, Part};
use crate::{negotiate, respond, write};

/// Serves the scale.
pub(crate) async fn get(call: &Call) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let existing = call.load().await?;
    if representation == Representation::Table {
        let include = respond::include_object(call)?;
        let scale = scale::from_object(&existing.value);
        let table = table::of_scale(&scale, include, jiff::Timestamp::now());
        return Ok(respond::json_value(StatusCode::OK, &table));
    }
    Ok(respond::json_value(
        StatusCode::OK,
        &scale::from_object(&existing.value),
    ))
}

/// Replaces the scale.
pub(crate) async fn update(call: &Call, body: Body) -> Result<Response, Failure> {
    let wanted = call.body(body).await?;
    check(call, &wanted)?;
    write(call, |_| Ok(wanted.clone())).await
}

/// Patches the scale.
pub(crate) async fn patch(call: &Call, body: Body) -> Result<Response, Failure> {
    let patch = Patch::read(call, body).await?;
    write(call, |scale| {
        let wanted = patch.apply(call.resource, scale)?;
        check(call, &wanted)?;
        Ok(wanted)
    })
    .await
}

/// Refuses what is no valid Scale of the object of the request.
fn check(call: &Call, wanted: &Value) -> Result<(), Failure> {
    let typed: Result<Scale, _> = skiff_api::decode::decode_as(wanted, &mut Vec::new());
    typed
        .map_err(|error| Failure::from(ApiStatus::bad_request(error.to_message("v1", "Scale"))))?;
    let name = &call.request.name;
    let given = meta(wanted, "name");
    if !given.is_empty() && given != name {
        return Err(ApiStatus::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))
        .into());
    }
    let errors = scale::validate(wanted);
    if errors.is_empty() {
        return Ok(());
    }
    let kind = GroupKind {
        group: "autoscaling",
        kind: "Scale",
    };
    Err(ApiStatus::invalid(kind, name, &errors).into())
}

async fn write(
    call: &Call,
    mut wanted: impl FnMut(&Value) -> Result<Value, Failure> + Send,
) -> Result<Response, Failure> {
    let dry_run = call.query.dry_run()?;
    let change = |old: &Value| {
        let mut new = old.clone();
        scale::apply(&wanted(&scale::from_object(old))?, &mut new);
        prepare::successor(call, Part::Main, new, old)
    };
    let written = write::update(call, dry_run, change).await?;
    Ok(respond::json_value(
        StatusCode::OK,
        &scale::from_object(&written),
    ))
}
