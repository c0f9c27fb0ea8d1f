//! Decoding objects into their k8s-openapi types: unknown fields, wrong types, canonical form.

use std::fmt;

use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;
use serde_path_to_error::{Segment, Track};

use crate::resource::Resource;

mod normalise;

/// What to do with unknown fields: the `fieldValidation` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// Drop them and report nothing.
    Ignore,
    /// Drop them and report them (upstream's default).
    #[default]
    Warn,
    /// Refuse the object.
    Strict,
}

impl Strictness {
    /// Reads the query parameter; the empty string means the default.
    pub fn parse(text: &str) -> Option<Strictness> {
        match text {
            "" | "Warn" => Some(Strictness::Warn),
            "Ignore" => Some(Strictness::Ignore),
            "Strict" => Some(Strictness::Strict),
            _ => None,
        }
    }
}

/// A decoded object in canonical form.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object, without unknown fields and nulls, with `apiVersion` and `kind`.
    pub value: Value,
    /// Warnings for the client, each such as `unknown field "spec.foo"`; empty unless
    /// [`Strictness::Warn`] was asked for.
    pub warnings: Vec<String>,
}

/// Why an object does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field has the wrong type or an unparsable value.
    #[error("{}{reason}", field_prefix(field))]
    WrongType {
        /// Path such as `spec.replicas`, empty for the object itself.
        field: String,
        /// What is wrong there.
        reason: String,
    },
    /// Unknown fields under strict validation.
    #[error("strict decoding error: {}", unknown_list(fields))]
    UnknownFields {
        /// Their paths.
        fields: Vec<String>,
    },
    /// `apiVersion` or `kind` name another type.
    #[error("the object provided is unrecognized (must be of type {expected}): got {found}")]
    WrongKind {
        /// Such as `apps/v1, Kind=Deployment`.
        expected: String,
        /// What the object says.
        found: String,
    },
}

impl DecodeError {
    /// The path of the (first) field that is wrong; empty if it is the object as a whole.
    pub fn field(&self) -> &str {
        match self {
            DecodeError::WrongType { field, .. } => field,
            DecodeError::UnknownFields { fields } => fields.first().map_or("", String::as_str),
            DecodeError::WrongKind { .. } => "",
        }
    }

    /// Upstream's sentence for a request body: `Pod in version "v1" cannot be handled as a Pod: ...`.
    pub fn to_message(&self, version: &str, kind: &str) -> String {
        match self {
            DecodeError::WrongKind { .. } => self.to_string(),
            _ => format!("{kind} in version {version:?} cannot be handled as a {kind}: {self}"),
        }
    }
}

fn field_prefix(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!("{field}: ")
    }
}

fn unknown_field(path: &str) -> String {
    format!("unknown field {path:?}")
}

fn unknown_list(fields: &[String]) -> String {
    fields
        .iter()
        .map(|f| unknown_field(f))
        .collect::<Vec<_>>()
        .join(", ")
}

pub(crate) fn decode_resource(
    resource: &Resource,
    object: &Value,
    strictness: Strictness,
) -> Result<Decoded, DecodeError> {
    check_kind(resource, object)?;
    let mut unknown = Vec::new();
    let mut value = (resource.decode)(object, &mut unknown)?;
    normalise::metadata(&mut value);
    if let Some(map) = value.as_object_mut() {
        map.insert("apiVersion".to_owned(), resource.api_version.into());
        map.insert("kind".to_owned(), resource.kind.into());
    }
    let warnings = match strictness {
        Strictness::Ignore => Vec::new(),
        Strictness::Warn => unknown.iter().map(|f| unknown_field(f)).collect(),
        Strictness::Strict if unknown.is_empty() => Vec::new(),
        Strictness::Strict => return Err(DecodeError::UnknownFields { fields: unknown }),
    };
    Ok(Decoded { value, warnings })
}

fn check_kind(resource: &Resource, object: &Value) -> Result<(), DecodeError> {
    let field = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(DecodeError::WrongType {
            field: name.to_owned(),
            reason: format!("expected a string, got {other}"),
        }),
    };
    if !object.is_object() {
        return Err(DecodeError::WrongType {
            field: String::new(),
            reason: "expected an object".to_owned(),
        });
    }
    let (api_version, kind) = (field("apiVersion")?, field("kind")?);
    if (api_version.is_empty() || api_version == resource.api_version)
        && (kind.is_empty() || kind == resource.kind)
    {
        return Ok(());
    }
    Err(DecodeError::WrongKind {
        expected: format!("{}, Kind={}", resource.api_version, resource.kind),
        found: format!("{api_version}, Kind={kind}"),
    })
}

/// Decodes any k8s-openapi type (such as `DeleteOptions` or `Binding`), collecting the paths of unknown
/// fields.
///
/// # Errors
/// [`DecodeError::WrongType`] with the path of the field that does not fit.
pub fn decode_as<T: DeserializeOwned>(
    object: &Value,
    unknown: &mut Vec<String>,
) -> Result<T, DecodeError> {
    let mut track = Track::new();
    let mut on_unknown = |path: Path<'_>| unknown.push(ignored_path(&path));
    let tracked = serde_path_to_error::Deserializer::new(object, &mut track);
    let result = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut on_unknown));
    result.map_err(|error: serde_json::Error| DecodeError::WrongType {
        field: error_path(&track.path()),
        reason: error.to_string(),
    })
}

/// Decodes as `T` and brings it back as a dynamic object: unknown fields and nulls are gone,
/// quantities and times are canonical.
pub(crate) fn decode_as_value<T: DeserializeOwned + Serialize>(
    object: &Value,
    unknown: &mut Vec<String>,
) -> Result<Value, DecodeError> {
    let typed: T = decode_as(object, unknown)?;
    let mut value = serde_json::to_value(typed).map_err(|error| DecodeError::WrongType {
        field: String::new(),
        reason: error.to_string(),
    })?;
    normalise::quantities(&mut value)?;
    Ok(value)
}

/// `spec.containers[0].name`, as upstream writes paths.
fn ignored_path(path: &Path<'_>) -> String {
    fn write(path: &Path<'_>, out: &mut String) {
        match path {
            Path::Root => {}
            Path::Seq { parent, index } => {
                write(parent, out);
                out.push_str(&format!("[{index}]"));
            }
            Path::Map { parent, key } => {
                write(parent, out);
                push_key(out, key);
            }
            Path::Some { parent }
            | Path::NewtypeStruct { parent }
            | Path::NewtypeVariant { parent } => write(parent, out),
        }
    }
    let mut out = String::new();
    write(path, &mut out);
    out
}

fn error_path(path: &serde_path_to_error::Path) -> String {
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("[{index}]")),
            Segment::Map { key } => push_key(&mut out, key),
            Segment::Enum { variant } => push_key(&mut out, variant),
            Segment::Unknown => {}
        }
    }
    out
}

fn push_key(out: &mut String, key: &str) {
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(key);
}

impl fmt::Display for Strictness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strictness::Ignore => "Ignore",
            Strictness::Warn => "Warn",
            Strictness::Strict => "Strict",
        })
    }
}

#[cfg(test)]
mod tests;
