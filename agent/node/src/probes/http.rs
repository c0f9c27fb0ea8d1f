//! HTTP GET from the node, for probes and lifecycle hooks.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use skiff_netns::NodeNetns;

use super::run::{ProbeOutcome, connect, port_number};

const MAX_BODY: usize = 10 * 1024;

/// A request to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpTarget {
    address: SocketAddr,
    path: String,
    headers: Vec<(String, String)>,
    url: String,
}

impl HttpTarget {
    /// The request that the action describes, to `ip` unless it names a host.
    pub(crate) fn new(
        action: &HTTPGetAction,
        container: &Container,
        ip: Option<IpAddr>,
    ) -> Result<Self, String> {
        if action
            .scheme
            .as_deref()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
        {
            return Err("HTTPS is not supported in probes and hooks yet".to_owned());
        }
        let port = port_number(&action.port, container)
            .ok_or_else(|| format!("couldn't find port: {:?}", action.port))?;
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        let ip = match host {
            Some(host) => host.parse().ok(),
            None => ip,
        };
        let address = SocketAddr::new(ip.ok_or("no address to connect to")?, port);
        let path = action.path.as_deref().unwrap_or_default();
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let headers = action.http_headers.iter().flatten();
        Ok(Self {
            url: format!("http://{address}{path}"),
            address,
            path,
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }

    fn request(&self) -> Result<http::Request<Empty<Bytes>>, http::Error> {
        let mut request = http::Request::get(&self.path);
        let has = |name: &str| {
            self.headers
                .iter()
                .any(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        if !has("host") {
            request = request.header("host", self.address.to_string());
        }
        if !has("user-agent") {
            request = request.header("user-agent", "kube-probe/1.36");
        }
        if !has("accept") {
            request = request.header("accept", "*/*");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.header("connection", "close").body(Empty::new())
    }
}

pub(super) async fn probe(
    netns: &NodeNetns,
    target: &HttpTarget,
    timeout: Duration,
) -> ProbeOutcome {
    match http_get(netns, target, timeout).await {
        Ok((200..400, _)) => ProbeOutcome::Success,
        Ok((status, _)) => {
            ProbeOutcome::Failure(format!("HTTP probe failed with statuscode: {status}"))
        }
        Err(message) => ProbeOutcome::Failure(message),
    }
}

/// Status and the beginning of the body.
pub(crate) async fn http_get(
    netns: &NodeNetns,
    target: &HttpTarget,
    timeout: Duration,
) -> Result<(u16, Bytes), String> {
    let describe = |message: String| format!("Get \"{}\": {message}", target.url);
    let request = target
        .request()
        .map_err(|error| describe(error.to_string()))?;
    let exchange = async {
        let stream = connect(netns, target.address, timeout).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let response = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            // A body that is too long or breaks off does not change the answer.
            let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
            Ok((
                status,
                body.map(http_body_util::Collected::to_bytes)
                    .unwrap_or_default(),
            ))
        };
        let connection = async {
            drop(connection.await);
            // Whatever ended the connection, the response tells.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            response = response => response,
            () = connection => Err("connection lost".to_owned()),
        }
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(result) => result.map_err(describe),
        Err(_elapsed) => Err(describe(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
        )),
    }
}
