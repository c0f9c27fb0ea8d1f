//! OpenAPI documents: made when first asked for, kept compressed.

use std::collections::HashMap;
use std::io::{Read, Write};

use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use skiff_api::openapi;
use skiff_api::status::ApiStatus;

use crate::failure::Failure;
use crate::{negotiate, respond};

/// Compressed documents by path.
#[derive(Debug, Default)]
pub(crate) struct OpenApiCache {
    documents: Mutex<HashMap<String, Bytes>>,
}

/// Answers an OpenAPI path; `None` if it is none.
pub(crate) async fn serve(
    cache: &OpenApiCache,
    path: &str,
    headers: &HeaderMap,
) -> Option<Result<Response, Failure>> {
    let path = path.trim_end_matches('/');
    if path != "/openapi/v2" && path != "/openapi/v3" && !path.starts_with("/openapi/v3/") {
        return None;
    }
    if path == "/openapi/v2" && asks_for_protobuf(headers) {
        return Some(Ok(v2_protobuf()));
    }
    if let Err(failure) = negotiate::objects(headers) {
        return Some(Err(failure));
    }
    let known = cache.documents.lock().get(path).cloned();
    let compressed = match known {
        Some(document) => document,
        None => {
            let owned = path.to_owned();
            let made = tokio::task::spawn_blocking(move || make(&owned)).await;
            let document = match made {
                Ok(Some(Ok(document))) => document,
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some(Err(ApiStatus::internal(error).into())),
                Err(error) => return Some(Err(ApiStatus::internal(error).into())),
            };
            cache
                .documents
                .lock()
                .insert(path.to_owned(), document.clone());
            document
        }
    };
    Some(respond_with(headers, &compressed))
}

/// The only form of v2 that client-go reads, as it asks for it and as it is called: `@` may not stand in a
/// media type.
const V2_PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

fn asks_for_protobuf(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter();
    let mut clauses = accepts
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    clauses.any(|clause| V2_PROTOBUF.contains(&clause.trim()))
}

fn v2_protobuf() -> Response {
    let mut response = respond::text(StatusCode::OK, openapi::v2_document_protobuf());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(V2_PROTOBUF[1]),
    );
    response
}

fn make(path: &str) -> Option<std::io::Result<Bytes>> {
    let document = match path {
        "/openapi/v2" => openapi::v2_document(),
        "/openapi/v3" => openapi::v3_index(),
        _ => {
            let rest = path.strip_prefix("/openapi/v3/")?;
            let segments: Vec<&str> = rest.split('/').collect();
            match segments.as_slice() {
                ["api", version] => openapi::v3_document("", version)?,
                ["apis", group, version] => openapi::v3_document(group, version)?,
                _ => return None,
            }
        }
    };
    Some(compress(&document))
}

fn compress(document: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(document)?;
    Ok(Bytes::from(encoder.finish()?))
}

fn respond_with(headers: &HeaderMap, compressed: &Bytes) -> Result<Response, Failure> {
    let accepts = headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok());
    if accepts.is_some_and(|encodings| encodings.contains("gzip")) {
        let mut response = respond::json_bytes(StatusCode::OK, compressed.clone());
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return Ok(response);
    }
    let mut plain = Vec::new();
    let read = GzDecoder::new(&**compressed).read_to_end(&mut plain);
    read.map_err(|error| Failure::from(ApiStatus::internal(error)))?;
    Ok(respond::json_bytes(StatusCode::OK, plain))
}
