//! `metav1.Status`: errors of the API in upstream's words.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::decode::DecodeError;
use crate::resource::{GroupKind, GroupResource, Resource};
use crate::validation::FieldError;

/// Machine-readable reason of a [`ApiStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each variant is upstream's reason of that name"
)]
pub enum StatusReason {
    AlreadyExists,
    BadRequest,
    Conflict,
    Expired,
    Forbidden,
    Gone,
    InternalError,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    RequestEntityTooLarge,
    ServerTimeout,
    ServiceUnavailable,
    Timeout,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
}

/// One reason more, usually one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusCause {
    /// Such as `FieldValueInvalid`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For humans.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Path of the field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What the error is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusDetails {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Plural resource name (or kind, where upstream has that).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Uid of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Single reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<i32>,
}

/// An API error: HTTP code, reason, message, details.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiStatus {
    /// HTTP status code.
    pub code: u16,
    /// Reason.
    pub reason: StatusReason,
    /// For humans.
    pub message: String,
    /// What it is about.
    pub details: Option<StatusDetails>,
}

impl ApiStatus {
    /// Any error without details.
    pub fn new(code: u16, reason: StatusReason, message: impl Into<String>) -> ApiStatus {
        ApiStatus {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, resource: GroupResource<'_>, name: &str) -> ApiStatus {
        self.details = Some(StatusDetails {
            name: name.to_owned(),
            group: resource.group.to_owned(),
            kind: resource.resource.to_owned(),
            ..StatusDetails::default()
        });
        self
    }

    fn retry_after(mut self, seconds: i32) -> ApiStatus {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds);
        self
    }

    /// 404 for an object.
    pub fn not_found(resource: GroupResource<'_>, name: &str) -> ApiStatus {
        let message = format!("{resource} {name:?} not found");
        ApiStatus::new(404, StatusReason::NotFound, message).about(resource, name)
    }

    /// 404 for a path that nothing serves.
    pub fn unknown_path() -> ApiStatus {
        let message = "the server could not find the requested resource";
        let mut status = ApiStatus::new(404, StatusReason::NotFound, message);
        status.details = Some(StatusDetails::default());
        status
    }

    /// 409 on creation.
    pub fn already_exists(resource: GroupResource<'_>, name: &str) -> ApiStatus {
        let message = format!("{resource} {name:?} already exists");
        ApiStatus::new(409, StatusReason::AlreadyExists, message).about(resource, name)
    }

    /// 409 with a reason of its own.
    pub fn conflict(resource: GroupResource<'_>, name: &str, why: &str) -> ApiStatus {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        ApiStatus::new(409, StatusReason::Conflict, message).about(resource, name)
    }

    /// 409 because `resourceVersion` is not the latest.
    pub fn modified(resource: GroupResource<'_>, name: &str) -> ApiStatus {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        ApiStatus::conflict(resource, name, why)
    }

    /// 422 with one cause per field.
    pub fn invalid(kind: GroupKind<'_>, name: &str, errors: &[FieldError]) -> ApiStatus {
        let message = format!(
            "{kind} {name:?} is invalid: {}",
            crate::validation::aggregate(errors)
        );
        let mut status = ApiStatus::new(422, StatusReason::Invalid, message);
        status.details = Some(StatusDetails {
            name: name.to_owned(),
            group: kind.group.to_owned(),
            kind: kind.kind.to_owned(),
            causes: errors.iter().map(FieldError::to_cause).collect(),
            ..StatusDetails::default()
        });
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> ApiStatus {
        ApiStatus::new(400, StatusReason::BadRequest, message)
    }

    /// 400 for a body that does not decode.
    pub fn undecodable(resource: &Resource, error: &DecodeError) -> ApiStatus {
        ApiStatus::bad_request(error.to_message(resource.version, resource.kind))
    }

    /// 403.
    pub fn forbidden(resource: GroupResource<'_>, name: &str, why: &str) -> ApiStatus {
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        ApiStatus::new(403, StatusReason::Forbidden, message).about(resource, name)
    }

    /// 401.
    pub fn unauthorized() -> ApiStatus {
        ApiStatus::new(401, StatusReason::Unauthorized, "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed(resource: GroupResource<'_>, verb: &str) -> ApiStatus {
        let message = format!("{verb} is not supported on resources of kind \"{resource}\"");
        ApiStatus::new(405, StatusReason::MethodNotAllowed, message).about(resource, "")
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> ApiStatus {
        let message = format!("only the following media types are accepted: {accepted}");
        ApiStatus::new(406, StatusReason::NotAcceptable, message)
    }

    /// 410: the resource version is older than the history that is kept.
    pub fn too_old(requested: u64, oldest: u64) -> ApiStatus {
        ApiStatus::new(
            410,
            StatusReason::Expired,
            format!("too old resource version: {requested} ({oldest})"),
        )
    }

    /// 410: a `continue` token outlived its history.
    pub fn continue_expired() -> ApiStatus {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";
        ApiStatus::new(410, StatusReason::Expired, message)
    }

    /// 504: the resource version lies in the future.
    pub fn too_large_resource_version(requested: u64, current: u64) -> ApiStatus {
        let message = format!("Too large resource version: {requested}, current: {current}");
        let mut status = ApiStatus::new(504, StatusReason::Timeout, message).retry_after(1);
        status
            .details
            .get_or_insert_default()
            .causes
            .push(StatusCause {
                reason: "ResourceVersionTooLarge".to_owned(),
                message: "Too large resource version".to_owned(),
                field: String::new(),
            });
        status
    }

    /// 413.
    pub fn request_too_large(limit: usize) -> ApiStatus {
        let message = format!("Request entity too large: limit is {limit}");
        ApiStatus::new(413, StatusReason::RequestEntityTooLarge, message)
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &[&str]) -> ApiStatus {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        ApiStatus::new(415, StatusReason::UnsupportedMediaType, message)
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> ApiStatus {
        ApiStatus::new(429, StatusReason::TooManyRequests, message).retry_after(retry_after_seconds)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> ApiStatus {
        let mut status = ApiStatus::new(
            500,
            StatusReason::InternalError,
            format!("Internal error occurred: {message}"),
        );
        status.details = Some(StatusDetails {
            causes: vec![StatusCause {
                reason: String::new(),
                message: message.to_string(),
                field: String::new(),
            }],
            ..StatusDetails::default()
        });
        status
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> ApiStatus {
        ApiStatus::new(503, StatusReason::ServiceUnavailable, message)
    }

    /// 504: it may or may not have been done.
    pub fn timeout(message: impl std::fmt::Display, retry_after_seconds: i32) -> ApiStatus {
        ApiStatus::new(504, StatusReason::Timeout, format!("Timeout: {message}"))
            .retry_after(retry_after_seconds)
    }

    /// The Status object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let (Some(details), Some(map)) = (&self.details, status.as_object_mut()) {
            map.insert("details".to_owned(), json!(details));
        }
        status
    }

    /// Reads a Status object of kind `Failure`, as a client gets it.
    pub fn from_value(value: &Value) -> Option<ApiStatus> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            kind: Cow<'a, str>,
            #[serde(default)]
            message: String,
            reason: StatusReason,
            code: u16,
            details: Option<StatusDetails>,
        }
        let wire = Wire::deserialize(value).ok()?;
        (wire.kind == "Status").then_some(ApiStatus {
            code: wire.code,
            reason: wire.reason,
            message: wire.message,
            details: wire.details,
        })
    }
}

impl Serialize for ApiStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

/// The Status of a successful deletion that returns no object.
pub fn deleted(resource: GroupResource<'_>, name: &str, uid: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": StatusDetails {
            name: name.to_owned(),
            group: resource.group.to_owned(),
            kind: resource.resource.to_owned(),
            uid: uid.to_owned(),
            ..StatusDetails::default()
        },
    })
}

/// The Status of a success about nothing in particular.
pub fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

#[cfg(test)]
mod tests;
