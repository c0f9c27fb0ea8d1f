//! The two versions of Event share one stored form, that of core `v1`.

use serde_json::Value;

use super::Kind;

/// (field of `events.k8s.io/v1`, field of core `v1`), at the top level.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

pub(super) fn to_storage(kind: Kind, object: &mut Value) {
    if kind == Kind::Event {
        rename(object, EVENT_FIELDS.iter().copied(), "v1");
    }
}

pub(super) fn from_storage(kind: Kind, object: &mut Value) {
    if kind == Kind::Event {
        rename(
            object,
            EVENT_FIELDS.iter().map(|(new, core)| (*core, *new)),
            "events.k8s.io/v1",
        );
    }
}

fn rename(
    object: &mut Value,
    fields: impl Iterator<Item = (&'static str, &'static str)>,
    api_version: &str,
) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for (from, to) in fields {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
}
