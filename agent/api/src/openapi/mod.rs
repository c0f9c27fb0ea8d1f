//! OpenAPI documents, made when asked for: nothing of them stays in memory.
//!
//! kubectl reads the v3 documents to learn whether the server validates fields (the query parameter
//! `fieldValidation` of PATCH), how lists merge (`x-kubernetes-patch-*`, from the same table as our own
//! strategic merge patch), and what fields mean (`kubectl explain`). It asks for v2 only as a fallback,
//! and then as protobuf.

use serde_json::{Map, Value, json};

use crate::resource::Registry;

mod paths;
mod schemas;

/// Path of a group and version below `/openapi/v3`: `api/v1`, `apis/apps/v1`.
fn relative_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

/// The index at `/openapi/v3`, JSON.
pub fn v3_index() -> Vec<u8> {
    let paths: Map<String, Value> = Registry::group_versions()
        .map(|(group, version)| {
            let path = relative_path(group, version);
            let url = format!("/openapi/v3/{path}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths}).to_string().into_bytes()
}

/// The document of a group and version (`/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1`), JSON;
/// `None` if that group and version is not served. Costs some milliseconds and megabytes: the
/// caller caches the (compressed) bytes.
pub fn v3_document(group: &str, version: &str) -> Option<Vec<u8>> {
    let served = || Registry::iter().filter(|r| r.group == group && r.version == version);
    served().next()?;
    let mut all = Map::new();
    for resource in served() {
        paths::of(resource, &mut all);
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": all,
        "components": {"schemas": schemas::of(served())},
    });
    Some(document.to_string().into_bytes())
}

/// The document at `/openapi/v2`, JSON. It is valid and empty: clients of today read v3, older ones fall back to
/// what they have built in.
pub fn v2_document() -> Vec<u8> {
    json!({"swagger": "2.0", "info": info(), "paths": {}, "definitions": {}})
        .to_string()
        .into_bytes()
}

/// The same as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf` (message
/// `openapi.v2.Document`), the only form that client-go reads.
pub fn v2_document_protobuf() -> Vec<u8> {
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        // Wire type 2, length-delimited; every length here is below 128.
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        [&[number << 3 | 2, length], bytes].concat()
    }
    let info = [field(1, b"Kubernetes"), field(2, b"v1.36.0")].concat();
    [field(1, b"2.0"), field(2, &info), field(8, &[])].concat()
}

#[cfg(test)]
mod tests;
