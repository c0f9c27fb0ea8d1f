//! The scheduler's writes: bindings and the condition PodScheduled.

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::pod_info::PodInfo;

/// Why a binding failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("the API server refused the binding")]
    Refused(#[source] kube::Error),
    #[error("cannot encode the binding")]
    Encode(#[source] serde_json::Error),
    #[error("cannot build the request")]
    Request(#[source] http::Error),
}

impl BindError {
    /// The pod is gone.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, BindError::Refused(error) if skiff_client::is_not_found(error))
    }
}

pub(crate) async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), BindError> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let body = serde_json::to_vec(&binding).map_err(BindError::Encode)?;
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/binding",
        pod.key.namespace, pod.key.name
    );
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(BindError::Request)?;
    client
        .request_text(request)
        .await
        .map(|_| ())
        .map_err(BindError::Refused)
}

/// Writes PodScheduled=False.
pub(crate) async fn report_unschedulable(
    client: &Client,
    pod: &PodInfo,
    message: &str,
) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let patch = json!({
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": Time(jiff::Timestamp::now()),
        }]},
    });
    api.patch_status(
        &pod.key.name,
        &PatchParams::default(),
        &Patch::Strategic(patch),
    )
    .await
    .map(|_| ())
}

pub(crate) fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.clone()),
        name: Some(pod.key.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}
