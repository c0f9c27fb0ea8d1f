//! Short ways into a dynamic object. Absent and `null` are the same everywhere.

use serde_json::{Map, Value};

/// The value at a path of keys.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let found = path.iter().try_fold(value, |v, key| v.get(key))?;
    (!found.is_null()).then_some(found)
}

/// The string at a path.
pub(crate) fn str_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path)?.as_str()
}

/// The string at a path, empty when absent, as Go has it.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    str_at(value, path).unwrap_or_default()
}

/// The integer at a path.
pub(crate) fn int_at(value: &Value, path: &[&str]) -> Option<i64> {
    at(value, path)?.as_i64()
}

/// The elements at a path, none when absent.
pub(crate) fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The entries at a path, none when absent.
pub(crate) fn entries<'a>(
    value: &'a Value,
    path: &[&str],
) -> impl Iterator<Item = (&'a str, &'a Value)> {
    at(value, path)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v))
}

/// The map at a path, when it is there.
pub(crate) fn map_mut<'a>(
    value: &'a mut Value,
    path: &[&str],
) -> Option<&'a mut Map<String, Value>> {
    path.iter()
        .try_fold(value, |v, key| v.get_mut(key))?
        .as_object_mut()
}

/// The map at a path, made (also out of `null`) when it is not there. `None` if something else is in the way.
pub(crate) fn ensure_map<'a>(
    value: &'a mut Value,
    path: &[&str],
) -> Option<&'a mut Map<String, Value>> {
    let mut current = value.as_object_mut()?;
    for key in path {
        let next = current.entry(*key).or_insert(Value::Null);
        if next.is_null() {
            *next = Value::Object(Map::new());
        }
        current = next.as_object_mut()?;
    }
    Some(current)
}

/// Sets a key that is absent or `null`.
pub(crate) fn set_default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    match map.get_mut(key) {
        Some(Value::Null) | None => {
            map.insert(key.to_owned(), value.into());
        }
        Some(_) => {}
    }
}

/// Sets a key whose zero value (absent, `null`, "", 0) means "not given", as for Go's plain fields.
pub(crate) fn set_default_zero(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let zero = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Number(n)) => n.as_i64() == Some(0),
        Some(_) => false,
    };
    if zero {
        map.insert(key.to_owned(), value.into());
    }
}
