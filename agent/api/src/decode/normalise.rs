//! Canonical form of what k8s-openapi leaves as it came.

use serde_json::{Map, Value};

use super::DecodeError;
use crate::quantity::Quantity;

/// Drops `metadata.creationTimestamp` when it is null and makes sure that `metadata` is there.
pub(super) fn metadata(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    let metadata = map
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
}

/// Maps whose values are quantities, wherever they stand in the kinds that we serve.
const QUANTITY_MAPS: &[&str] = &[
    "limits",
    "requests",
    "capacity",
    "allocatable",
    "overhead",
    "allocatedResources",
];
/// Single quantities.
const QUANTITIES: &[&str] = &["sizeLimit", "divisor"];
/// Maps with free keys: nothing below them is ours to interpret.
const FREE_MAPS: &[&str] = &[
    "labels",
    "annotations",
    "data",
    "stringData",
    "matchLabels",
    "nodeSelector",
    "selector",
];

/// Checks every quantity and rewrites it canonically.
pub(super) fn quantities(object: &mut Value) -> Result<(), DecodeError> {
    walk(object, &mut String::new())
}

fn walk(value: &mut Value, path: &mut String) -> Result<(), DecodeError> {
    match value {
        Value::Object(map) => {
            for (key, child) in map.iter_mut() {
                let length = path.len();
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                if QUANTITY_MAPS.contains(&key.as_str()) {
                    if let Some(map) = child.as_object_mut() {
                        for (name, quantity) in map {
                            canonical(quantity, &format!("{path}.{name}"))?;
                        }
                    }
                } else if QUANTITIES.contains(&key.as_str()) {
                    canonical(child, path)?;
                } else if key == "selector" && child.get("matchLabels").is_some()
                    || !FREE_MAPS.contains(&key.as_str())
                {
                    walk(child, path)?;
                }
                path.truncate(length);
            }
        }
        Value::Array(list) => {
            for (index, child) in list.iter_mut().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{index}]"));
                walk(child, path)?;
                path.truncate(length);
            }
        }
        _ => {}
    }
    Ok(())
}

fn canonical(value: &mut Value, path: &str) -> Result<(), DecodeError> {
    let Some(text) = value.as_str() else {
        return Ok(());
    };
    match Quantity::parse(text) {
        Ok(quantity) => {
            let canonical = quantity.to_string();
            if canonical != text {
                *value = Value::String(canonical);
            }
            Ok(())
        }
        Err(error) => Err(DecodeError::WrongType {
            field: path.to_owned(),
            reason: error.to_string(),
        }),
    }
}
