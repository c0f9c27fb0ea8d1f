//! From what a client sent to what is stored: decoding, defaults, names, validation.

use serde_json::Value;
use skiff_api::decode::Strictness;
use skiff_api::status::ApiStatus;

use crate::call::Call;
use crate::failure::Failure;
use crate::object::{self, meta};

/// Which part of an object an update may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but status.
    Main,
    /// Status alone.
    Status,
}

/// Decodes a body; unknown fields go to `warnings`.
pub(crate) fn decode(
    call: &Call,
    body: &Value,
    strictness: Strictness,
    warnings: &mut Vec<String>,
) -> Result<Value, Failure> {
    let decoded = call
        .resource
        .decode(body, strictness)
        .map_err(|error| Failure::from(ApiStatus::undecodable(call.resource, &error)))?;
    *warnings = decoded.warnings;
    Ok(decoded.value)
}

/// The object's namespace is that of the path; it may say so itself, nothing else.
pub(crate) fn settle_namespace(call: &Call, value: &mut Value) -> Result<(), Failure> {
    let given = meta(value, "namespace");
    if !call.resource.namespaced {
        if given.is_empty() {
            return Ok(());
        }
        let why =
            "the namespace of the provided object does not match the namespace sent on the request";
        return Err(ApiStatus::bad_request(why).into());
    }
    let namespace = call.request.namespace.as_str();
    if namespace.is_empty() {
        let why = "an empty namespace may not be set during creation";
        return Err(ApiStatus::bad_request(why).into());
    }
    if !given.is_empty() && given != namespace {
        let why =
            "the namespace of the provided object does not match the namespace sent on the request";
        return Err(ApiStatus::bad_request(why).into());
    }
    object::set_meta(value, "namespace", namespace);
    Ok(())
}

/// The object's name is that of the path; it may be left out.
fn settle_name(call: &Call, value: &mut Value) -> Result<(), Failure> {
    let (given, name) = (meta(value, "name"), call.request.name.as_str());
    if !given.is_empty() && given != name {
        return Err(ApiStatus::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))
        .into());
    }
    object::set_meta(value, "name", name);
    Ok(())
}

/// Makes a decoded body a successor of `old`.
pub(crate) fn successor(
    call: &Call,
    part: Part,
    mut new: Value,
    old: &Value,
) -> Result<Value, Failure> {
    let resource = call.resource;
    settle_name(call, &mut new)?;
    settle_namespace(call, &mut new)?;
    // Before anything else: who works on an old object shall hear that, not what else is wrong.
    crate::write::check_optimistic_lock(call, &new, old)?;
    for field in ["resourceVersion", "uid"] {
        object::set_meta(&mut new, field, meta(old, field));
    }
    resource.default(&mut new);
    match part {
        Part::Main => resource.prepare_for_update(&mut new, old),
        Part::Status => resource.prepare_for_status_update(&mut new, old),
    }
    let errors = match part {
        Part::Main => resource.validate_update(&new, old),
        Part::Status => resource.validate_status_update(&new, old),
    };
    if !errors.is_empty() {
        return Err(ApiStatus::invalid(resource.group_kind(), &call.request.name, &errors).into());
    }
    Ok(new)
}
