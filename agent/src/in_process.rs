//! The contract between the parts, without a network: API clients whose requests are function calls, and the API
//! server's way to the kubelet endpoint.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use axum::Router;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use kube::Client;
use skiff_apiserver::{NodeDialer, NodeStream, UserInfo};
use tower::ServiceExt;

/// Bytes that one side may be ahead of the other.
const PIPE_BYTES: usize = 64 * 1024;

/// A client that acts as the component `user`.
pub(crate) fn client(router: &Router, user: &str) -> Client {
    let user = UserInfo::component(user);
    let service = router
        .clone()
        .map_request(move |request: http::Request<kube::client::Body>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(user.clone());
            request
        });
    Client::new(service, "default")
}

/// Reaches the one kubelet of this process. Filled in when the node is made, which itself needs a client of the
/// API server that holds this.
#[derive(Debug, Default)]
pub(crate) struct LocalKubelet {
    node_name: String,
    endpoint: OnceLock<Router>,
}

impl LocalKubelet {
    pub(crate) fn new(node_name: String) -> Arc<Self> {
        Arc::new(Self {
            node_name,
            endpoint: OnceLock::new(),
        })
    }

    /// Opens the way; later calls change nothing.
    pub(crate) fn serve(&self, endpoint: Router) {
        self.endpoint.get_or_init(|| endpoint);
    }
}

#[async_trait]
impl NodeDialer for LocalKubelet {
    async fn dial(&self, node_name: &str) -> io::Result<Box<dyn NodeStream>> {
        let endpoint = self.endpoint.get().filter(|_| node_name == self.node_name);
        let endpoint = endpoint.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("node {node_name} is not reachable"),
            )
        })?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let service = TowerToHyperService::new(endpoint.clone());
        // Ends with either side of the pipe.
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(far), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the kubelet endpoint");
            }
        });
        Ok(Box::new(near))
    }
}
