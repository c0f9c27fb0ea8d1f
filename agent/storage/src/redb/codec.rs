//! How values and changes are laid out in the file. All numbers little endian.
//!
//! Value: create revision (8), mod revision (8), bytes.
//! Change: key length (4), key, then for the current and the previous value each: length (4) and a value as
//! above, or length `u32::MAX` and nothing where there is none.

use bytes::Bytes;

use crate::{Change, KeyValue, Revision};

const ABSENT: u32 = u32::MAX;

/// Appends a value's encoding.
pub(super) fn encode_value(kv: &KeyValue, out: &mut Vec<u8>) {
    out.extend_from_slice(&kv.create_revision.0.to_le_bytes());
    out.extend_from_slice(&kv.mod_revision.0.to_le_bytes());
    out.extend_from_slice(&kv.value);
}

/// `None` if the bytes are not a value.
pub(super) fn decode_value(key: &str, bytes: &[u8]) -> Option<KeyValue> {
    let (create, rest) = bytes.split_first_chunk()?;
    let (modified, value) = rest.split_first_chunk()?;
    Some(KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(u64::from_le_bytes(*create)),
        mod_revision: Revision(u64::from_le_bytes(*modified)),
    })
}

/// A change without its revision, which is in the table's key.
pub(super) fn encode_change(change: &Change) -> Vec<u8> {
    let mut out = Vec::new();
    encode_part(&mut out, |out| out.extend_from_slice(change.key.as_bytes()));
    for value in [&change.current, &change.previous] {
        match value {
            Some(kv) => encode_part(&mut out, |out| encode_value(kv, out)),
            None => out.extend_from_slice(&ABSENT.to_le_bytes()),
        }
    }
    out
}

fn encode_part(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    // Requests are bounded to a few MiB, far below 4 GiB.
    let length = u32::try_from(out.len() - start - 4).unwrap_or(ABSENT);
    if let Some(header) = out.get_mut(start..start + 4) {
        header.copy_from_slice(&length.to_le_bytes());
    }
}

/// `None` if the bytes are not a change.
pub(super) fn decode_change(revision: Revision, bytes: &[u8]) -> Option<Change> {
    let (key, rest) = decode_part(bytes)?;
    let key = std::str::from_utf8(key?).ok()?;
    let (current, rest) = decode_part(rest)?;
    let (previous, _) = decode_part(rest)?;
    let value = |part: Option<&[u8]>| match part {
        Some(bytes) => decode_value(key, bytes).map(Some),
        None => Some(None),
    };
    Some(Change {
        revision,
        key: key.to_owned(),
        current: value(current)?,
        previous: value(previous)?,
    })
}

fn decode_part(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    match u32::from_le_bytes(*length) {
        ABSENT => Some((None, rest)),
        length => {
            let (part, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((Some(part), rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_value(key: String) -> impl Strategy<Value = Option<KeyValue>> {
        proptest::option::of((any::<u64>(), any::<u64>(), any::<Vec<u8>>())).prop_map(
            move |parts| {
                parts.map(|(create, modified, value)| KeyValue {
                    key: key.clone(),
                    value: value.into(),
                    create_revision: Revision(create),
                    mod_revision: Revision(modified),
                })
            },
        )
    }

    fn any_change() -> impl Strategy<Value = Change> {
        (any::<u64>(), ".{0,20}")
            .prop_flat_map(|(revision, key)| {
                (
                    Just(revision),
                    Just(key.clone()),
                    any_value(key.clone()),
                    any_value(key),
                )
            })
            .prop_map(|(revision, key, current, previous)| Change {
                revision: Revision(revision),
                key,
                current,
                previous,
            })
    }

    proptest! {
        #[test]
        fn prop_a_change_survives_the_file(change in any_change()) {
            let bytes = encode_change(&change);
            prop_assert_eq!(decode_change(change.revision, &bytes), Some(change));
        }

        #[test]
        fn prop_no_bytes_make_decoding_panic(bytes: Vec<u8>) {
            decode_change(Revision(1), &bytes);
            decode_value("k", &bytes);
        }
    }
}
