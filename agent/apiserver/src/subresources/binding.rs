//! pods/binding: the scheduler's decision.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::Binding;
use skiff_api::resource::{GroupKind, GroupResource};
use skiff_api::status::{ApiStatus, success};
use skiff_api::validation::FieldError;

use crate::call::Call;
use crate::failure::Failure;
use crate::object::{self, at, is_deleting, meta, text};
use crate::{respond, write};

const BINDINGS: GroupResource<'static> = GroupResource {
    group: "",
    resource: "pods/binding",
};

/// Binds the pod of the request to a node.
pub(crate) async fn create(call: &Call, body: Body) -> Result<Response, Failure> {
    let dry_run = call.query.dry_run()?;
    let body = call.body(body).await?;
    let binding: Binding =
        skiff_api::decode::decode_as(&body, &mut Vec::new()).map_err(|error| {
            Failure::from(ApiStatus::bad_request(error.to_message("v1", "Binding")))
        })?;
    let node = binding.target.name.unwrap_or_default();
    let name = call.request.name.as_str();
    if node.is_empty() {
        let error = FieldError::required("target.name", "");
        let kind = GroupKind {
            group: "",
            kind: "Binding",
        };
        return Err(ApiStatus::invalid(kind, name, &[error]).into());
    }
    let uid = binding.metadata.uid.unwrap_or_default();
    let bind = |old: &Value| {
        let conflict = |why: String| Err(ApiStatus::conflict(BINDINGS, name, &why).into());
        if !uid.is_empty() && uid != meta(old, "uid") {
            let found = meta(old, "uid");
            return conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
            ));
        }
        if is_deleting(old) {
            return conflict(format!(
                "pod {name} is being deleted, cannot be assigned to a host"
            ));
        }
        let current = text(old, &["spec", "nodeName"]);
        if !current.is_empty() {
            return conflict(format!(
                "pod {name} is already assigned to node {current:?}"
            ));
        }
        Ok(bound(old, &node))
    };
    write::update(call, dry_run, bind).await?;
    Ok(respond::json_value(StatusCode::CREATED, &success(201)))
}

/// The pod as it is once bound.
fn bound(pod: &Value, node: &str) -> Value {
    let mut pod = pod.clone();
    object::section(&mut pod, "spec").insert("nodeName".to_owned(), node.into());
    let list = at(&pod, &["status", "conditions"])
        .and_then(Value::as_array)
        .cloned();
    let mut conditions = list.unwrap_or_default();
    conditions.retain(|condition| text(condition, &["type"]) != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": object::now(),
    }));
    object::section(&mut pod, "status").insert("conditions".to_owned(), conditions.into());
    pod
}
