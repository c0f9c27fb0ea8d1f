//! deletecollection: every object that the selectors select.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use serde_json::json;

use super::delete::{Deleted, Options, delete_object};
use super::list::snapshot;
use crate::call::Call;
use crate::failure::Failure;
use crate::respond;
use crate::selection::Selection;

/// Deletes a collection and lists what it held.
pub(crate) async fn delete_collection(call: &Call, body: Body) -> Result<Response, Failure> {
    let options = Options::read(call, body).await?;
    let selection = Selection::of(call)?;
    let found = snapshot(call, &selection).await?;
    let mut items = Vec::with_capacity(found.items.len());
    for (key, _) in &found.items {
        let (namespace, name) = key.rsplit_once('/').unwrap_or(("", key));
        let mut request = call.request.clone();
        namespace.clone_into(&mut request.namespace);
        name.clone_into(&mut request.name);
        let one = Call {
            core: Arc::clone(&call.core),
            resource: call.resource,
            request,
            query: call.query.clone(),
            headers: call.headers.clone(),
        };
        match delete_object(&one, &options).await {
            Ok(Deleted::Gone(value) | Deleted::Pending(value)) => {
                items.push(Bytes::from(value.to_string()));
            }
            // Somebody else deleted it.
            Err(failure) if failure.code == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    let metadata = json!({"resourceVersion": call.core.store.current_revision().to_string()});
    Ok(respond::list(
        call.resource.list_kind,
        call.resource.api_version,
        &metadata,
        items,
    ))
}
