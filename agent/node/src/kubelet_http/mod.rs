//! The kubelet's HTTP endpoint, which the API server calls for logs, exec and attach.
//!
//! `/containerLogs`, `/exec`, `/attach` and `/portForward` (WebSocket), `/stats/summary`, `/pods`, `/healthz`. Who may call is decided before: the router is reachable in process or
//! behind the caller's own TLS.

mod attach;
mod channel;
mod exec;
mod logs;
mod port_forward;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use skiff_runtime::{ContainerState, ContainerStatus as Instance};

use crate::context::NodeContext;

type Context = Arc<NodeContext>;

/// All routes.
pub(crate) fn router(ctx: Context) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pods))
        .route("/stats/summary", get(stats::summary))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::container_logs),
        )
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach::attach))
        .route(
            "/portForward/{namespace}/{pod}",
            any(port_forward::port_forward),
        )
        .with_state(ctx)
}

async fn pods(State(ctx): State<Context>) -> Json<List<Pod>> {
    let items = ctx
        .pods
        .read()
        .values()
        .map(|pod| Pod::clone(pod))
        .collect();
    Json(List {
        items,
        ..List::default()
    })
}

/// An answer that is not what was asked for, as `metav1.Status`.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: message.into(),
        }
    }

    fn internal(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "InternalError",
            message: message.into(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.status.as_u16(),
        });
        (self.status, Json(body)).into_response()
    }
}

/// The pod of that name on this node.
fn find_pod(ctx: &NodeContext, namespace: &str, name: &str) -> Result<Arc<Pod>, Refusal> {
    let pods = ctx.pods.read();
    let found = pods.values().find(|pod| {
        pod.metadata.namespace.as_deref() == Some(namespace)
            && pod.metadata.name.as_deref() == Some(name)
    });
    found.cloned().ok_or_else(|| {
        Refusal::not_found(format!(
            "pod \"{name}\" in namespace \"{namespace}\" is not on this node"
        ))
    })
}

/// The instances of a container, newest first.
async fn instances(
    ctx: &NodeContext,
    pod: &Pod,
    container: &str,
) -> Result<Vec<Instance>, Refusal> {
    let spec = pod.spec.as_ref();
    let inits = spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let mains = spec.iter().flat_map(|spec| &spec.containers);
    if !inits
        .into_iter()
        .chain(mains)
        .any(|known| known.name == container)
    {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let message = format!("container {container} is not valid for pod {name}");
        return Err(Refusal::bad_request(message));
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut found = match ctx.runtime.pod(uid).await {
        Ok(record) => record.containers,
        Err(_gone) => Vec::new(),
    };
    found.retain(|instance| instance.name == container);
    found.sort_by_key(|i| std::cmp::Reverse((i.restart_count, i.created_at)));
    Ok(found)
}

/// The running instance of a container.
async fn running(ctx: &NodeContext, pod: &Pod, container: &str) -> Result<Instance, Refusal> {
    let all = instances(ctx, pod, container).await?;
    let is_running = |i: &Instance| matches!(i.state, ContainerState::Running { .. });
    all.into_iter()
        .find(is_running)
        .ok_or_else(|| Refusal::not_found(format!("container not found (\"{container}\")")))
}
