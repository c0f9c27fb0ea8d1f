//! The server as the composition sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use ipnetwork::IpNetwork;
use skiff_storage::{Revision, StorageError, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::WatchCache;
use crate::metrics::Metrics;
use crate::node_proxy::NodeDialer;
use crate::openapi::OpenApiCache;
use crate::{admission, bootstrap, maintenance, router, tls};

/// What the composition decides.
#[derive(Clone)]
pub struct ApiServerOptions {
    /// ClusterIPs are taken from here: one range, or one of each family. The first is of the family that Services have
    /// which ask for none.
    pub service_cidrs: Vec<IpNetwork>,
    /// NodePorts are taken from here.
    pub node_port_range: std::ops::RangeInclusive<u16>,
    /// Where pods reach this server: the endpoint of Service `default/kubernetes`. `None`: no such
    /// endpoint is written.
    pub advertise_address: Option<SocketAddr>,
    /// The way to the kubelets; `None`: logs, exec, attach and port-forward are unavailable.
    pub node_dialer: Option<Arc<dyn NodeDialer>>,
}

impl Default for ApiServerOptions {
    fn default() -> Self {
        Self {
            service_cidrs: vec![IpNetwork::V4(
                ipnetwork::Ipv4Network::new_checked([10, 96, 0, 0].into(), 16)
                    .unwrap_or_else(|| std::net::Ipv4Addr::UNSPECIFIED.into()),
            )],
            node_port_range: 30000..=32767,
            advertise_address: None,
            node_dialer: None,
        }
    }
}

impl std::fmt::Debug for ApiServerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServerOptions")
            .field("service_cidrs", &self.service_cidrs)
            .field("node_port_range", &self.node_port_range)
            .field("advertise_address", &self.advertise_address)
            .finish_non_exhaustive()
    }
}

/// Why the server cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    /// The objects that every cluster has could not be written.
    #[error("cannot create the initial objects: {message}")]
    Bootstrap {
        /// What the server's own API answered.
        message: String,
    },
    /// The store failed.
    #[error("cannot reach the store")]
    Storage {
        /// Its error.
        #[source]
        source: StorageError,
    },
    /// The listening socket failed.
    #[error("cannot accept connections")]
    Accept {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// What all requests share.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: WatchCache,
    pub(crate) options: ApiServerOptions,
    pub(crate) metrics: Metrics,
    pub(crate) openapi: OpenApiCache,
    pub(crate) bootstrapped: AtomicBool,
    /// Ends watches and proxied streams.
    pub(crate) shutdown: CancellationToken,
    /// Connections to kubelets, owned until they end.
    pub(crate) tasks: TaskTracker,
}

impl Core {
    /// Whether clients may count on the server.
    pub(crate) fn is_ready(&self) -> bool {
        self.cache.is_filled() && self.bootstrapped.load(Ordering::Acquire)
    }

    /// Waits until the cache shows every change that the store acknowledged before this call.
    pub(crate) async fn wait_fresh(&self) -> Result<(), crate::cache::NotFresh> {
        self.cache.wait_for(self.store.current_revision()).await
    }
}

/// The API server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
}

impl ApiServer {
    /// A server on a store. Does nothing until [`run`](Self::run) runs.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, options: ApiServerOptions) -> Self {
        Self {
            core: Arc::new(Core {
                store,
                cache: WatchCache::new(),
                options,
                metrics: Metrics::default(),
                openapi: OpenApiCache::default(),
                bootstrapped: AtomicBool::new(false),
                shutdown: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// The API as a tower service for clients in this process. They add a [`UserInfo`](crate::UserInfo) as a
    /// request extension; names that begin with `system:` may do everything.
    pub fn router(&self) -> Router {
        router::router(Arc::clone(&self.core))
    }

    /// Feeds the watch cache, creates the objects that every cluster has, expires Events and compacts the
    /// store, until `token` is cancelled. Watches end then too.
    ///
    /// # Errors
    /// [`ApiServerError::Bootstrap`] if the initial objects cannot be written.
    pub async fn run(&self, token: CancellationToken) -> Result<(), ApiServerError> {
        let core = &self.core;
        let _end_streams = core.shutdown.clone().drop_guard();
        let feed = core.cache.run(&*core.store, &token);
        let work = async {
            let start = async {
                admission::service::repair(core)
                    .await
                    .map_err(|source| ApiServerError::Storage { source })?;
                bootstrap::ensure(core, &self.router()).await
            };
            let started = token.run_until_cancelled(start).await;
            match started {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok(())) => core.bootstrapped.store(true, Ordering::Release),
            }
            maintenance::run(core, &token).await;
            Ok(())
        };
        tokio::pin!(feed, work);
        let result = tokio::select! {
            () = &mut feed => Ok(()),
            result = &mut work => result,
        };
        core.shutdown.cancel();
        core.tasks.close();
        core.tasks.wait().await;
        result
    }

    /// What requests share, for tests of its parts.
    #[cfg(test)]
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Whether the cache is filled and the initial objects exist.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.core.is_ready()
    }

    /// How far the watch cache is.
    #[must_use]
    pub fn cached_revision(&self) -> Revision {
        self.core.cache.reached()
    }

    /// Serves HTTPS (HTTP/1.1 with upgrades, and HTTP/2) until `shutdown`, then lets requests in flight end.
    /// Client certificates that the `tls` configuration verified name the user.
    ///
    /// # Errors
    /// [`ApiServerError::Accept`] if the listening socket fails for good.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), ApiServerError> {
        tls::serve(&self.core, self.router(), listener, tls, shutdown).await
    }
}
