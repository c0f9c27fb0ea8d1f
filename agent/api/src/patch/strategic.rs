//! Strategic merge patch, as upstream's `apimachinery/pkg/util/strategicpatch` merges on the server.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::PatchError;
use super::schema::{Field, PLAIN, Schema};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

fn malformed<T>(message: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Malformed(message.into()))
}

/// Merges `patch` into `object`.
pub(super) fn merge(object: &mut Value, patch: Value, schema: &Schema) -> Result<(), PatchError> {
    if let (Value::Object(object), Value::Object(patch)) = (object, patch) {
        merge_map(object, patch, schema)?;
    }
    Ok(())
}

fn merge_map(original: &mut Object, mut patch: Object, schema: &Schema) -> Result<(), PatchError> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => {
                *original = without_directives(patch);
                return Ok(());
            }
            "delete" => {
                original.clear();
                return Ok(());
            }
            "merge" => {}
            other => return malformed(format!("unknown patch type found: {other}")),
        },
        Some(other) => return malformed(format!("unknown patch type found: {other}")),
    }
    retain_keys(original, &mut patch)?;
    ordered_lists(original, &mut patch, schema)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(original, list, &value)?;
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        match (original.get_mut(&key), value) {
            (Some(Value::Object(current)), Value::Object(patch)) => {
                let schema = match schema.field(&key) {
                    Some(Field::Object(schema) | Field::RetainKeys(schema)) => schema,
                    _ => &PLAIN,
                };
                merge_map(current, patch, schema)?;
            }
            (Some(Value::Array(current)), Value::Array(patch)) => {
                let before = std::mem::take(current);
                *current = match schema.field(&key) {
                    None => patch,
                    Some(how) => {
                        let order = patch.clone();
                        let merged = merge_list(before.clone(), patch, how)?;
                        in_order(merged, &order, &before, how)
                    }
                };
            }
            (_, value) => {
                if let Some(value) = clean(value) {
                    original.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

/// `$retainKeys` lists all fields that may stay: what the patch sets, and what it leaves as it is.
/// Upstream obeys it wherever it stands; the schema only tells clients where to write it.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return malformed("invalid patch format of retainKeys");
    };
    let listed = |key: &str| keys.iter().any(|k| k == key);
    let fits = |(key, value): (&String, &Value)| {
        value.is_null()
            || key.starts_with(ELEMENT_ORDER)
            || key.starts_with(DELETE_FROM_LIST)
            || listed(key)
    };
    if !patch.iter().all(fits) {
        return malformed(
            "invalid patch format of retainKeys: it has to list every field of the patch",
        );
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Handles each `$setElementOrder/<list>` together with the list's own patch.
fn ordered_lists(
    original: &mut Object,
    patch: &mut Object,
    schema: &Schema,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return malformed("invalid patch format of setElementOrder list");
        };
        let name = directive.trim_start_matches(ELEMENT_ORDER);
        let Some(how) = schema.field(name) else {
            return malformed(format!(
                "{name} is not a list that merges, it has no element order"
            ));
        };
        let list_patch = match patch.get(name) {
            None => None,
            Some(Value::Array(_)) => patch.remove(name),
            // Null or of another type: the ordinary way handles it.
            Some(_) => continue,
        };
        let before = match original.get(name) {
            Some(Value::Array(list)) => Some(list.clone()),
            _ => None,
        };
        let merged = match (&before, list_patch) {
            (None, None) => continue,
            (Some(before), None) => before.clone(),
            (before, Some(Value::Array(patch))) => {
                check_order(&patch, &order, how)?;
                merge_list(before.clone().unwrap_or_default(), patch, how)?
            }
            (_, Some(_)) => continue,
        };
        let list = in_order(merged, &order, &before.unwrap_or_default(), how);
        original.insert(name.to_owned(), Value::Array(list));
    }
    Ok(())
}

/// Every element that the patch leaves in the list has to stand in the order.
fn check_order(patch: &[Value], order: &[Value], how: Field) -> Result<(), PatchError> {
    for element in patch {
        let removed = element.get(DIRECTIVE).is_some();
        if !removed && position(order, element, how).is_none() {
            return malformed(format!(
                "The order in patch list:\n{patch:?}\n doesn't match $setElementOrder list:\n{order:?}"
            ));
        }
    }
    Ok(())
}

fn merge_key(how: Field) -> Option<(&'static str, &'static Schema)> {
    match how {
        Field::Merge { key, element } | Field::MergeRetainKeys { key, element } => {
            Some((key, element))
        }
        _ => None,
    }
}

/// Where an element (of the same identity) stands in a list.
fn position(list: &[Value], element: &Value, how: Field) -> Option<usize> {
    match merge_key(how) {
        Some((key, _)) => {
            let identity = element.get(key)?;
            list.iter()
                .position(|other| other.get(key) == Some(identity))
        }
        None => list.iter().position(|other| other == element),
    }
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    how: Field,
) -> Result<Vec<Value>, PatchError> {
    match merge_key(how) {
        Some((key, element)) => merge_maps_by_key(original, patch, key, element),
        None => {
            let mut list: Vec<Value> = Vec::new();
            for value in original.into_iter().chain(patch) {
                if !list.contains(&value) {
                    list.push(value);
                }
            }
            Ok(list)
        }
    }
}

fn merge_maps_by_key(
    mut list: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    element: &Schema,
) -> Result<Vec<Value>, PatchError> {
    let directive = |e: &Value| e.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    if patch
        .iter()
        .any(|e| directive(e).as_deref() == Some("replace"))
    {
        let rest = patch.into_iter().filter(|e| directive(e).is_none());
        return Ok(rest.filter_map(clean).collect());
    }
    for change in patch {
        let Value::Object(change_map) = change else {
            return malformed("the elements of a list that merges by key have to be maps");
        };
        let Some(identity) = change_map.get(key).cloned() else {
            return malformed(format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object(change_map)
            ));
        };
        let same = |e: &Value| e.get(key) == Some(&identity);
        match change_map
            .get(DIRECTIVE)
            .map(|d| d.as_str().unwrap_or_default())
        {
            Some("delete") => list.retain(|e| !same(e)),
            None | Some("merge") => match list.iter_mut().find(|e| same(e)) {
                Some(Value::Object(current)) => merge_map(current, change_map, element)?,
                Some(other) => *other = Value::Object(without_directives(change_map)),
                None => list.push(Value::Object(without_directives(change_map))),
            },
            Some(other) => return malformed(format!("unknown patch type found: {other}")),
        }
    }
    Ok(list)
}

fn delete_from_list(original: &mut Object, name: &str, gone: &Value) -> Result<(), PatchError> {
    let Value::Array(gone) = gone else {
        return malformed("invalid patch format of primitive list");
    };
    if let Some(Value::Array(list)) = original.get_mut(name) {
        list.retain(|value| !gone.contains(value));
    }
    Ok(())
}

/// What the order names comes in that order; what only the server has keeps its place as far as possible.
fn in_order(merged: Vec<Value>, order: &[Value], before: &[Value], how: Field) -> Vec<Value> {
    let (mut ordered, mut server_only): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|element| position(order, element, how).is_some());
    let by = |list: &[Value], a: &Value, b: &Value| match (
        position(list, a, how),
        position(list, b, how),
    ) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => Ordering::Equal,
    };
    ordered.sort_by(|a, b| by(order, a, b));
    server_only.sort_by(|a, b| by(before, a, b));
    let mut result = Vec::with_capacity(ordered.len() + server_only.len());
    let (mut left, mut right) = (
        server_only.into_iter().peekable(),
        ordered.into_iter().peekable(),
    );
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return result,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => by(before, l, r) == Ordering::Less,
        };
        result.extend(if take_left { left.next() } else { right.next() });
    }
}

/// A new value without directives and nulls; nothing if it says that it is to be deleted.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                return None;
            }
            Some(Value::Object(without_directives(map)))
        }
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(clean).collect())),
        other => Some(other),
    }
}

fn without_directives(map: Object) -> Object {
    map.into_iter()
        .filter(|(key, value)| {
            let directive = key == DIRECTIVE
                || key == RETAIN_KEYS
                || key.starts_with(DELETE_FROM_LIST)
                || key.starts_with(ELEMENT_ORDER);
            !directive && !value.is_null()
        })
        .filter_map(|(key, value)| Some((key, clean(value)?)))
        .collect()
}
