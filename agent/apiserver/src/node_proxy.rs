//! The way to the kubelets: one HTTP request over a connection that the composition makes, upgrades included.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use skiff_api::status::{ApiStatus, StatusReason};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::failure::Failure;
use crate::server::Core;

/// Longer error messages of a kubelet are cut off.
const ERROR_LIMIT: usize = 64 << 10;

/// A connection to a kubelet.
pub trait NodeStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> NodeStream for T {}

/// Connects to the kubelet HTTP endpoint of a node.
#[async_trait]
pub trait NodeDialer: Send + Sync + 'static {
    /// A fresh connection on which the kubelet speaks HTTP/1.1.
    ///
    /// # Errors
    /// If the node is unknown or does not answer.
    async fn dial(&self, node_name: &str) -> std::io::Result<Box<dyn NodeStream>>;
}

/// What goes to the kubelet.
pub(crate) struct NodeRequest {
    pub(crate) node: String,
    /// Path and query in the kubelet's terms.
    pub(crate) uri: Uri,
    /// The client's request: its method, headers, body and, if it wants one, its upgrade.
    pub(crate) client: Request<Body>,
}

/// Sends the request and streams the answer. An upgrade connects both sides until one closes.
pub(crate) async fn forward(core: &Arc<Core>, request: NodeRequest) -> Result<Response, Failure> {
    let dialer = core.options.node_dialer.as_ref();
    let dialer = dialer.ok_or_else(|| {
        Failure::from(ApiStatus::unavailable("no way to the nodes is configured"))
    })?;
    let unreachable =
        |why: String| Failure::from(ApiStatus::internal(format!("error dialing backend: {why}")));
    let stream = dialer
        .dial(&request.node)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let shutdown = core.shutdown.clone();
    core.tasks.spawn(async move {
        let result = tokio::select! {
            result = connection.with_upgrades() => result,
            () = shutdown.cancelled_owned() => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "connection to kubelet ended"
            );
        }
    });
    let mut client = request.client;
    let wants_upgrade = client.headers().contains_key(header::UPGRADE);
    let client_upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut client));
    let outgoing = outgoing(client, request.uri, &request.node)?;
    let mut response = sender
        .send_request(outgoing)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client_upgrade) = client_upgrade else {
            return Err(ApiStatus::internal("kubelet upgraded a connection unasked").into());
        };
        join(core, client_upgrade, hyper::upgrade::on(&mut response));
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    if response.status().is_client_error() || response.status().is_server_error() {
        return Ok(kubelet_error(response).await);
    }
    let (mut parts, body) = response.into_parts();
    remove_hop_headers(&mut parts.headers);
    Ok(Response::from_parts(parts, Body::new(body)))
}

fn outgoing(client: Request<Body>, uri: Uri, node: &str) -> Result<Request<Body>, Failure> {
    let (parts, body) = client.into_parts();
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = uri;
    *outgoing.headers_mut() = parts.headers;
    let headers = outgoing.headers_mut();
    let upgrades = headers.contains_key(header::UPGRADE);
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::COOKIE);
    if !upgrades {
        remove_hop_headers(headers);
    }
    let host = HeaderValue::from_str(node).map_err(|error| {
        Failure::from(ApiStatus::internal(format!("node name {node:?}: {error}")))
    })?;
    headers.insert(header::HOST, host);
    Ok(outgoing)
}

fn remove_hop_headers(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
    ] {
        headers.remove(name);
    }
}

/// Copies bytes both ways between two upgraded connections until one side closes.
fn join(core: &Core, client: hyper::upgrade::OnUpgrade, node: hyper::upgrade::OnUpgrade) {
    let shutdown = core.shutdown.clone();
    core.tasks.spawn(async move {
        let copy = async {
            let (client, node) = tokio::try_join!(client, node)?;
            let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
            let copied = tokio::io::copy_bidirectional(&mut client, &mut node).await;
            if let Err(error) = copied {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "proxied stream ended"
                );
            }
            Ok::<_, hyper::Error>(())
        };
        if let Some(Err(error)) = shutdown.run_until_cancelled(copy).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "upgrade failed");
        }
    });
}

/// A kubelet answers errors as plain text; clients of the API get a Status.
async fn kubelet_error(response: Response<hyper::body::Incoming>) -> Response {
    let (parts, body) = response.into_parts();
    let content_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    if content_type.is_some_and(|t| t.starts_with("application/json")) {
        return Response::from_parts(parts, Body::new(body));
    }
    let text = match Limited::new(body, ERROR_LIMIT).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes())
            .trim()
            .to_owned(),
        Err(error) => error.to_string(),
    };
    let code = parts.status.as_u16();
    let reason = match code {
        400 => StatusReason::BadRequest,
        404 => StatusReason::NotFound,
        405 => StatusReason::MethodNotAllowed,
        503 => StatusReason::ServiceUnavailable,
        _ => StatusReason::InternalError,
    };
    Failure::from(ApiStatus::new(code, reason, text)).into_response()
}
