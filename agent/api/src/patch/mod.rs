//! JSON patch, merge patch and strategic merge patch.

use json_patch::{PatchErrorKind, PatchOperation};
use serde::Deserialize;
use serde_json::Value;

use crate::resource::Resource;

pub(crate) mod schema;
mod strategic;

/// Operations in one JSON patch, as upstream limits them.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that the copies of one JSON patch may add: without a limit, a short patch doubles an object until memory ends.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Which patch, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' own, with merge keys per list.
    StrategicMerge,
}

impl PatchType {
    /// Media types, as a 415 lists them.
    pub const MEDIA_TYPES: [&'static str; 3] = [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];

    /// Reads the media type (parameters such as a charset are ignored).
    pub fn from_media_type(text: &str) -> Option<PatchType> {
        match text.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::StrategicMerge),
            _ => None,
        }
    }
}

/// Why a patch does not apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit this object, such as a failed JSON patch test (422).
    #[error("{0}")]
    NotApplicable(String),
}

/// The object after the patch. It still has to be decoded, defaulted and validated.
///
/// # Errors
/// [`PatchError`], for which 400 or 422 is due.
pub fn apply(
    resource: &Resource,
    patch_type: PatchType,
    object: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    let mut result = object.clone();
    match patch_type {
        PatchType::Json => json_patch(&mut result, patch)?,
        PatchType::Merge => {
            expect_object(patch)?;
            json_patch::merge(&mut result, patch);
        }
        PatchType::StrategicMerge => {
            expect_object(patch)?;
            strategic::merge(&mut result, patch.clone(), schema::of(resource.id))?;
        }
    }
    if result.is_object() {
        Ok(result)
    } else {
        Err(PatchError::NotApplicable(
            "the patch does not leave an object".to_owned(),
        ))
    }
}

fn expect_object(patch: &Value) -> Result<(), PatchError> {
    if patch.is_object() {
        Ok(())
    } else {
        Err(PatchError::Malformed(
            "error decoding patch: the patch must be a JSON object".to_owned(),
        ))
    }
}

fn json_patch(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = Vec::<PatchOperation>::deserialize(patch)
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    for operation in &operations {
        if let PatchOperation::Copy(copy) = operation {
            copied += object.pointer(copy.from.as_str()).map_or(0, size);
            if copied > MAX_COPIED {
                return Err(PatchError::NotApplicable(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                )));
            }
        }
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|error| {
            let path = operation.path().to_string();
            PatchError::NotApplicable(match error.kind {
                PatchErrorKind::TestFailed => format!("testing value {path} failed: test failed"),
                kind => format!(
                    "{} operation does not apply: {path}: {kind}",
                    name(operation)
                ),
            })
        })?;
    }
    Ok(())
}

fn name(operation: &PatchOperation) -> &'static str {
    match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    }
}

/// About as many bytes as the value has in JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(list) => list.iter().map(|v| size(v) + 1).sum::<usize>() + 2,
        Value::Object(map) => {
            map.iter()
                .map(|(k, v)| k.len() + 4 + size(v))
                .sum::<usize>()
                + 2
        }
        _ => 8,
    }
}

#[cfg(test)]
mod tests;
