//! HTTPS: connections, client certificates, graceful shutdown.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::authn::{Remote, UserInfo};
use crate::server::{ApiServerError, Core};

/// A client has so long to finish its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests in flight have so long after shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an accept error that may go away, such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts connections until `shutdown`, then drains.
pub(crate) async fn serve(
    core: &Arc<Core>,
    router: Router,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    shutdown: CancellationToken,
) -> Result<(), ApiServerError> {
    let acceptor = TlsAcceptor::from(with_alpn(config));
    let mut connections = JoinSet::new();
    let result = loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                connections.spawn(connection(stream, acceptor, router, shutdown.clone()));
            }
            Err(error) if is_transient(&error) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            Err(source) => break Err(ApiServerError::Accept { source }),
        }
    };
    core.shutdown.cancel();
    let drain = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drain).await.is_err() {
        connections.shutdown().await;
    }
    result
}

fn with_alpn(config: Arc<ServerConfig>) -> Arc<ServerConfig> {
    if !config.alpn_protocols.is_empty() {
        return config;
    }
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn is_transient(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    // EMFILE, ENFILE, ENOBUFS and ENOMEM go away; so does whatever happened to one connection.
    matches!(
        error.kind(),
        K::ConnectionAborted
            | K::ConnectionReset
            | K::ConnectionRefused
            | K::Interrupted
            | K::OutOfMemory
    ) || matches!(error.raw_os_error(), Some(23 | 24 | 105))
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "cannot set TCP_NODELAY"
        );
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "TLS handshake failed"
            );
            return;
        }
        Err(_elapsed) => return,
    };
    let user = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| UserInfo::from_certificate(chain.first()?));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Remote);
        if let Some(user) = user.clone() {
            request.extensions_mut().insert(user);
        }
        router.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection ended");
    }
}
