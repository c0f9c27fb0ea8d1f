//! namespaces/finalize: the last step of a namespace's deletion.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;

use crate::call::Call;
use crate::failure::Failure;
use crate::object::{self, at, meta};
use crate::verbs::prepare;
use crate::{negotiate, respond, write};

/// Replaces the namespace's `spec.finalizers`. With the last of them a terminating namespace goes.
pub(crate) async fn update(call: &Call, body: Body) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let (strictness, dry_run) = (call.query.strictness()?, call.query.dry_run()?);
    let body = call.body(body).await?;
    let mut warnings = Vec::new();
    let new = prepare::decode(call, &body, strictness, &mut warnings)?;
    let finalizers = at(&new, &["spec", "finalizers"]).cloned();
    let change = |old: &Value| {
        let mut changed = old.clone();
        let spec = object::section(&mut changed, "spec");
        match &finalizers {
            Some(list) => drop(spec.insert("finalizers".to_owned(), list.clone())),
            None => drop(spec.remove("finalizers")),
        }
        for field in ["uid", "resourceVersion"] {
            object::set_meta(&mut changed, field, meta(&new, field));
        }
        Ok(changed)
    };
    let written = write::update(call, dry_run, change).await?;
    let response = respond::object(call, representation, StatusCode::OK, &written)?;
    Ok(respond::with_warnings(response, &warnings))
}
