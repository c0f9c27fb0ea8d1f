//! One object as the cache holds it: its JSON as served, and the little that selectors ask for.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;
use skiff_storage::Revision;

/// Why a stored value cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// It is not a JSON object with metadata.
    #[error("stored value is not an object with metadata")]
    Malformed {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Its metadata is not where the parser said.
    #[error("stored value has no metadata object")]
    NoMetadata,
}

/// The type of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventType {
    /// The object came to be, or began to match.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or no longer matches.
    Deleted,
}

impl EventType {
    /// As the wire spells it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }

    fn prefix_len(self) -> usize {
        FRAME_START.len() + self.as_str().len() + FRAME_MIDDLE.len()
    }
}

const FRAME_START: &[u8] = b"{\"type\":\"";
const FRAME_MIDDLE: &[u8] = b"\",\"object\":";
const FRAME_END: &[u8] = b"}\n";
const VERSION_FIELD: &[u8] = b"\"resourceVersion\":\"";

/// One version of an object. The watch frame that announced it and the object in it share one
/// allocation.
#[derive(Debug)]
pub(crate) struct CachedObject {
    frame: Bytes,
    frame_type: EventType,
    /// Where `resourceVersion`'s digits lie in the object.
    version_digits: std::ops::Range<usize>,
    /// Labels, sorted by key.
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// What field selectors may ask for beyond name and namespace.
    pub(crate) fields: Box<[(&'static str, Box<str>)]>,
    /// The revision it was written at.
    pub(crate) revision: Revision,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

/// Where `resourceVersion` goes in a stored value.
struct Splice {
    at: usize,
    comma: bool,
}

fn find_metadata(value: &[u8]) -> Result<(Splice, &str), ObjectError> {
    let head: Head<'_> =
        serde_json::from_slice(value).map_err(|source| ObjectError::Malformed { source })?;
    let raw = head.metadata.get();
    let start = (raw.as_ptr() as usize)
        .checked_sub(value.as_ptr() as usize)
        .filter(|start| value.get(*start) == Some(&b'{'))
        .ok_or(ObjectError::NoMetadata)?;
    let comma = raw.bytes().skip(1).find(|b| !b.is_ascii_whitespace()) != Some(b'}');
    Ok((
        Splice {
            at: start + 1,
            comma,
        },
        raw,
    ))
}

fn write_frame(
    kind: EventType,
    before: &[u8],
    revision: Revision,
    after: &[u8],
    comma: bool,
) -> (Bytes, std::ops::Range<usize>) {
    let digits = revision.to_string();
    let mut frame = BytesMut::with_capacity(
        kind.prefix_len()
            + before.len()
            + VERSION_FIELD.len()
            + digits.len()
            + 2
            + after.len()
            + FRAME_END.len(),
    );
    frame.put_slice(FRAME_START);
    frame.put_slice(kind.as_str().as_bytes());
    frame.put_slice(FRAME_MIDDLE);
    let object_start = frame.len();
    frame.put_slice(before);
    frame.put_slice(VERSION_FIELD);
    let digits_start = frame.len() - object_start;
    frame.put_slice(digits.as_bytes());
    frame.put_slice(if comma { b"\"," } else { b"\"" });
    frame.put_slice(after);
    frame.put_slice(FRAME_END);
    (frame.freeze(), digits_start..digits_start + digits.len())
}

impl CachedObject {
    /// Takes in a stored value, giving it the `resourceVersion` that its revision says.
    pub(crate) fn new(
        kind: EventType,
        value: &[u8],
        revision: Revision,
        extract: impl FnOnce(&[u8]) -> Box<[(&'static str, Box<str>)]>,
    ) -> Result<Self, ObjectError> {
        let (splice, metadata) = find_metadata(value)?;
        let labels: Labels<'_> =
            serde_json::from_str(metadata).map_err(|source| ObjectError::Malformed { source })?;
        let labels = labels
            .labels
            .unwrap_or_default()
            .into_iter()
            .map(|(k, v)| (Box::from(&*k), Box::from(&*v)))
            .collect();
        let (before, after) = value.split_at(splice.at);
        let (frame, version_digits) = write_frame(kind, before, revision, after, splice.comma);
        Ok(Self {
            frame,
            frame_type: kind,
            version_digits,
            labels,
            fields: extract(value),
            revision,
        })
    }

    /// The object's JSON, `resourceVersion` included.
    pub(crate) fn json(&self) -> Bytes {
        self.frame
            .slice(self.frame_type.prefix_len()..self.frame.len() - FRAME_END.len())
    }

    /// Size for accounting.
    pub(crate) fn len(&self) -> usize {
        self.frame.len()
    }

    /// A watch frame of that type; shared if it is the one the object came with.
    pub(crate) fn frame(&self, kind: EventType) -> Bytes {
        if kind == self.frame_type {
            self.frame.clone()
        } else {
            frame(kind, &self.json())
        }
    }

    /// The same state as of another revision: the last state of what was deleted there.
    pub(crate) fn at_revision(&self, kind: EventType, revision: Revision) -> Self {
        let json = self.json();
        let before = &json[..self.version_digits.start - VERSION_FIELD.len()];
        let after = &json[self.version_digits.end + 1..];
        let (frame, version_digits) = write_frame(kind, before, revision, after, false);
        Self {
            frame,
            frame_type: kind,
            version_digits,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            revision,
        }
    }
}

/// A watch frame around some JSON.
pub(crate) fn frame(kind: EventType, object: &[u8]) -> Bytes {
    frame_named(kind.as_str(), object)
}

/// A watch frame of any type, `BOOKMARK` and `ERROR` too.
pub(crate) fn frame_named(kind: &str, object: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(
        FRAME_START.len() + kind.len() + FRAME_MIDDLE.len() + object.len() + FRAME_END.len(),
    );
    for part in [
        FRAME_START,
        kind.as_bytes(),
        FRAME_MIDDLE,
        object,
        FRAME_END,
    ] {
        frame.put_slice(part);
    }
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: &str) -> CachedObject {
        CachedObject::new(EventType::Added, value.as_bytes(), Revision(7), |_| {
            Box::default()
        })
        .unwrap()
    }

    #[test]
    fn injects_the_resource_version_wherever_metadata_stands() {
        for value in [
            r#"{"metadata":{"name":"a","labels":{"x":"y"}},"kind":"Pod"}"#,
            r#"{"kind":"Pod","spec":{"metadata":{}},"metadata": {"name":"a","labels":{"x":"y"}}}"#,
        ] {
            let object = object(value);
            let json: serde_json::Value = serde_json::from_slice(&object.json()).unwrap();
            assert_eq!(json["metadata"]["resourceVersion"], "7");
            assert_eq!(json["metadata"]["name"], "a");
            assert_eq!(&*object.labels[0].0, "x");
        }
        assert_eq!(
            &*object(r#"{"metadata":{ }}"#).json(),
            br#"{"metadata":{"resourceVersion":"7" }}"#
        );
    }

    #[test]
    fn a_later_revision_replaces_the_number_only() {
        let first = object(r#"{"kind":"Pod","metadata":{"name":"a"}}"#);
        let deleted = first.at_revision(EventType::Deleted, Revision(12345));
        assert_eq!(
            &*deleted.frame(EventType::Deleted),
            b"{\"type\":\"DELETED\",\"object\":{\"kind\":\"Pod\",\"metadata\":{\"resourceVersion\":\"12345\",\"name\":\"a\"}}}\n"
        );
        let again = deleted.at_revision(EventType::Modified, Revision(1));
        assert_eq!(
            &*again.json(),
            br#"{"kind":"Pod","metadata":{"resourceVersion":"1","name":"a"}}"#
        );
    }

    #[test]
    fn the_announcing_frame_is_shared() {
        let object = object(r#"{"metadata":{"name":"a"}}"#);
        assert_eq!(
            object.frame(EventType::Added).as_ptr(),
            object.frame(EventType::Added).as_ptr()
        );
        assert!(
            object
                .frame(EventType::Modified)
                .starts_with(b"{\"type\":\"MODIFIED\",")
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in ["", "[]", "{}", r#"{"metadata":3}"#, r#"{"metadata":"x"}"#] {
            let result = CachedObject::new(EventType::Added, bad.as_bytes(), Revision(1), |_| {
                Box::default()
            });
            assert!(result.is_err(), "{bad}");
        }
    }
}
