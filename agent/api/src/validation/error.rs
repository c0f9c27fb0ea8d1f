//! One wrong field.

use std::fmt;

use serde_json::Value;

use crate::status::StatusCause;

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    /// Refers to something that does not exist.
    NotFound,
    /// Is missing.
    Required,
    /// Must be unique.
    Duplicate,
    /// Is malformed or may not change.
    Invalid,
    /// Is not in the list of values.
    NotSupported,
    /// May not be given here.
    Forbidden,
    /// Has too many bytes.
    TooLong,
    /// Has too many elements.
    TooMany,
    /// Could not be checked.
    Internal,
    /// Has the wrong type.
    TypeInvalid,
}

impl FieldErrorKind {
    /// The cause's reason, such as `FieldValueInvalid`.
    pub fn reason(self) -> &'static str {
        match self {
            FieldErrorKind::NotFound => "FieldValueNotFound",
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::Duplicate => "FieldValueDuplicate",
            FieldErrorKind::Invalid => "FieldValueInvalid",
            FieldErrorKind::NotSupported => "FieldValueNotSupported",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooMany => "FieldValueTooMany",
            FieldErrorKind::Internal => "InternalError",
            FieldErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            FieldErrorKind::NotFound => "Not found",
            FieldErrorKind::Required => "Required value",
            FieldErrorKind::Duplicate => "Duplicate value",
            FieldErrorKind::Invalid | FieldErrorKind::TypeInvalid => "Invalid value",
            FieldErrorKind::NotSupported => "Unsupported value",
            FieldErrorKind::Forbidden => "Forbidden",
            FieldErrorKind::TooLong => "Too long",
            FieldErrorKind::TooMany => "Too many",
            FieldErrorKind::Internal => "Internal error",
        }
    }

    /// Whether the message shows the value.
    fn shows_value(self) -> bool {
        matches!(
            self,
            FieldErrorKind::NotFound
                | FieldErrorKind::Duplicate
                | FieldErrorKind::Invalid
                | FieldErrorKind::NotSupported
        )
    }
}

/// One wrong field of an object. Prints as `spec.containers[0].name: Required value`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {}", self.body())]
pub struct FieldError {
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// Path of the field.
    pub field: String,
    /// The value that it has.
    pub bad_value: Value,
    /// Explanation, may be empty.
    pub detail: String,
}

impl FieldError {
    /// An error of any kind.
    pub fn new(
        kind: FieldErrorKind,
        field: impl fmt::Display,
        bad_value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> FieldError {
        FieldError {
            kind,
            field: field.to_string(),
            bad_value: bad_value.into(),
            detail: detail.into(),
        }
    }

    /// [`FieldErrorKind::Required`].
    pub fn required(field: impl fmt::Display, detail: impl Into<String>) -> FieldError {
        FieldError::new(FieldErrorKind::Required, field, "", detail)
    }

    /// [`FieldErrorKind::Invalid`].
    pub fn invalid(
        field: impl fmt::Display,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> FieldError {
        FieldError::new(FieldErrorKind::Invalid, field, value, detail)
    }

    /// [`FieldErrorKind::Duplicate`].
    pub fn duplicate(field: impl fmt::Display, value: impl Into<Value>) -> FieldError {
        FieldError::new(FieldErrorKind::Duplicate, field, value, "")
    }

    /// [`FieldErrorKind::Forbidden`].
    pub fn forbidden(field: impl fmt::Display, detail: impl Into<String>) -> FieldError {
        FieldError::new(FieldErrorKind::Forbidden, field, "", detail)
    }

    /// [`FieldErrorKind::NotFound`].
    pub fn not_found(field: impl fmt::Display, value: impl Into<Value>) -> FieldError {
        FieldError::new(FieldErrorKind::NotFound, field, value, "")
    }

    /// [`FieldErrorKind::TooLong`].
    pub fn too_long(field: impl fmt::Display, limit: usize) -> FieldError {
        let detail = format!("may not be more than {limit} bytes");
        FieldError::new(FieldErrorKind::TooLong, field, "", detail)
    }

    /// [`FieldErrorKind::NotSupported`], listing the values that are.
    pub fn not_supported(
        field: impl fmt::Display,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> FieldError {
        let mut names: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        names.sort();
        let detail = format!("supported values: {}", names.join(", "));
        FieldError::new(FieldErrorKind::NotSupported, field, value, detail)
    }

    /// The message without the field.
    pub fn body(&self) -> String {
        let mut body = self.kind.words().to_owned();
        if self.kind.shows_value() {
            body.push_str(": ");
            body.push_str(&self.bad_value.to_string());
        }
        if !self.detail.is_empty() {
            body.push_str(": ");
            body.push_str(&self.detail);
        }
        body
    }

    /// As a cause of a Status.
    pub fn to_cause(&self) -> StatusCause {
        StatusCause {
            reason: self.kind.reason().to_owned(),
            message: self.body(),
            field: self.field.clone(),
        }
    }
}

/// All messages in one line: alone as it is, several in brackets, repeats once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut messages: Vec<String> = Vec::new();
    for error in errors {
        let message = error.to_string();
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    match messages.len() {
        1 => messages.swap_remove(0),
        _ => format!("[{}]", messages.join(", ")),
    }
}
