//! Metadata of dynamic objects, and the names and ids that the server hands out.

use rustls::crypto::CryptoProvider;
use serde_json::{Map, Value};
use skiff_storage::Revision;

/// Letters of generated names: no vowels, no digits that look like letters.
const SUFFIX_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LEN: usize = 5;
/// Generated names are cut to leave room for the suffix.
const MAX_GENERATED: usize = 63 - SUFFIX_LEN;

/// The string at a path, empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The value at a path.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter()
        .try_fold(value, |v, key| v.get(key))
        .filter(|v| !v.is_null())
}

/// A string field of the metadata.
pub(crate) fn meta<'a>(value: &'a Value, field: &str) -> &'a str {
    text(value, &["metadata", field])
}

/// The map below a key of the object, made if need be.
pub(crate) fn section<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(root) = value else {
        unreachable!("made an object above")
    };
    let section = root.entry(key).or_insert(Value::Null);
    if !section.is_object() {
        *section = Value::Object(Map::new());
    }
    let Value::Object(section) = section else {
        unreachable!("made an object above")
    };
    section
}

/// Sets a field of the metadata.
pub(crate) fn set_meta(value: &mut Value, field: &str, to: impl Into<Value>) {
    section(value, "metadata").insert(field.to_owned(), to.into());
}

/// Removes a field of the metadata.
pub(crate) fn remove_meta(value: &mut Value, field: &str) {
    section(value, "metadata").remove(field);
}

/// Sets `resourceVersion`.
pub(crate) fn set_version(value: &mut Value, revision: Revision) {
    set_meta(value, "resourceVersion", revision.to_string());
}

/// The finalizers.
pub(crate) fn finalizers(value: &Value) -> Vec<&str> {
    let list = at(value, &["metadata", "finalizers"]).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether deletion has begun.
pub(crate) fn is_deleting(value: &Value) -> bool {
    at(value, &["metadata", "deletionTimestamp"]).is_some()
}

/// Now, as objects carry it: whole seconds.
pub(crate) fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

/// A time as objects carry it: whole seconds.
pub(crate) fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Random bytes from the TLS library's source.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = match CryptoProvider::get_default() {
        Some(provider) => provider.secure_random.fill(&mut bytes),
        None => rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut bytes),
    };
    if filled.is_err() {
        // Hash keys are random too, if less so.
        use std::hash::{BuildHasher, RandomState};
        for chunk in bytes.chunks_mut(8) {
            let number = RandomState::new().hash_one(0).to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
    bytes
}

/// A random number below `bound`.
pub(crate) fn random_below(bound: u64) -> u64 {
    u64::from_le_bytes(random()) % bound.max(1)
}

/// A new UID (a version 4 UUID).
pub(crate) fn new_uid() -> String {
    let mut b: [u8; 16] = random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// A name made from `generateName`.
pub(crate) fn generate_name(base: &str) -> String {
    let end = (0..=base.len().min(MAX_GENERATED))
        .rev()
        .find(|end| base.is_char_boundary(*end));
    let mut name = base[..end.unwrap_or_default()].to_owned();
    for byte in random::<SUFFIX_LEN>() {
        name.push(char::from(
            SUFFIX_LETTERS[usize::from(byte) % SUFFIX_LETTERS.len()],
        ));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_4_and_differ() {
        let (a, b) = (new_uid(), new_uid());
        assert_ne!(a, b);
        assert_eq!((a.len(), a.as_bytes()[14]), (36, b'4'));
    }

    #[test]
    fn generated_names_fit_a_label() {
        let name = generate_name(&"a".repeat(100));
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
        assert_eq!(generate_name("web-").len(), 9);
        assert!(generate_name(&"ä".repeat(40)).len() <= 63);
    }

    #[test]
    fn times_have_whole_seconds() {
        let time: jiff::Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        assert_eq!(timestamp(time), "2026-01-02T03:04:05Z");
    }
}
