//! The node as a whole.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::Router;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use skiff_client::{EventRecorder, Informer, chain};
use skiff_cni::libcni::CniRunner;
use skiff_image::ImageStore;
use skiff_runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::NodeConfig;
use crate::context::{Clock, NodeContext};
use crate::engine::oci::OciSpecs;
use crate::images::store::StoreImages;
use crate::manager::Manager;
use crate::network::PodPaths;
use crate::network::cni::CniNetwork;
use crate::{kubelet_http, lease, network, register};

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A directory or file of the node cannot be made.
    #[error("making {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The rules that masquerade pods cannot be made.
    #[error("masquerading what pods send out of the cluster")]
    Masquerade {
        /// What is wrong.
        #[source]
        source: network::MasqueradeError,
    },
    /// The routes that keep packets at home cannot be made.
    #[error("routing the cluster's ranges")]
    Routes {
        /// The kernel's answer.
        #[source]
        source: skiff_cni::netlink::NetlinkError,
    },
}

/// A node: pod workers, Node object, Lease, kubelet endpoint.
pub struct Node {
    ctx: Arc<NodeContext>,
}

impl Node {
    /// A node that does nothing yet. `cni` runs the plugins of the node's conflist in the node's namespace,
    /// `paths` is told where they have joined pods to it.
    #[must_use]
    pub fn new(
        config: NodeConfig,
        client: Client,
        runtime: Arc<dyn Runtime>,
        images: Arc<ImageStore>,
        cni: CniRunner,
        paths: Arc<dyn PodPaths>,
    ) -> Self {
        let allocatable = register::allocatable(&config);
        let memory = u64::try_from(allocatable.memory).unwrap_or(0);
        let ctx = NodeContext {
            client,
            runtime,
            images: Arc::new(StoreImages::new(images)),
            network: Arc::new(CniNetwork::new(cni, config.clone(), paths)),
            specs: Arc::new(OciSpecs::new(memory)),
            clock: Clock::System,
            allocatable,
            host_ips: RwLock::default(),
            services: OnceLock::new(),
            recorder: OnceLock::new(),
            pods: RwLock::default(),
            admission: Mutex::default(),
            config,
        };
        Self { ctx: Arc::new(ctx) }
    }

    /// The kubelet's HTTP endpoint, for the API server.
    pub fn kubelet_service(&self) -> Router {
        kubelet_http::router(Arc::clone(&self.ctx))
    }

    /// Registers the node and looks after its pods until `token` is cancelled. Containers then go on; the next
    /// call adopts them.
    ///
    /// # Errors
    /// [`NodeError`] if what the node needs on this machine cannot be made. The API being away is no error: the
    /// node tries again.
    pub async fn run(&self, token: CancellationToken) -> Result<(), NodeError> {
        let ctx = &self.ctx;
        let config = &ctx.config;
        for directory in [config.data_dir.join("pods"), config.logs_root()] {
            tokio::fs::create_dir_all(&directory)
                .await
                .map_err(|source| NodeError::Io {
                    path: directory,
                    source,
                })?;
        }
        *ctx.host_ips.write() = register::find_host_ips(config).await;
        let mut tasks = JoinSet::new();
        start_shared(ctx, &mut tasks, &token);
        let Some(pod_cidrs) = register::register(ctx, &token).await else {
            return Ok(());
        };
        ensure_network(ctx, &pod_cidrs).await?;
        tracing::info!(node = config.node_name, ?pod_cidrs, "node registered");
        tasks.spawn(lease::lease_loop(Arc::clone(ctx), token.clone()));
        tasks.spawn(register::status_loop(Arc::clone(ctx), token.clone()));
        Manager::new(Arc::clone(ctx), token.clone()).run().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(error = %chain(&error), "a task of the node panicked");
            }
        }
        Ok(())
    }
}

/// Starts what workers use: the event recorder and the copy of all Services.
pub(crate) fn start_shared(
    ctx: &Arc<NodeContext>,
    tasks: &mut JoinSet<()>,
    token: &CancellationToken,
) {
    let client = &ctx.client;
    ctx.recorder.get_or_init(|| {
        EventRecorder::start(
            client.clone(),
            "kubelet",
            &ctx.config.node_name,
            tasks,
            token,
        )
    });
    ctx.services.get_or_init(|| {
        Informer::start(
            Api::<Service>::all(client.clone()),
            watcher::Config::default(),
            tasks,
            token,
        )
    });
}

/// The conflist, if the node has none, and the routes that keep packets at home.
async fn ensure_network(
    ctx: &Arc<NodeContext>,
    pod_cidrs: &[ipnetwork::IpNetwork],
) -> Result<(), NodeError> {
    let config = &ctx.config;
    let ipam = config.data_dir.join("cni").join("networks");
    let content = network::plan_conflist(pod_cidrs, &ipam);
    let written = network::ensure_conflist(&config.cni_conf_dir, &content).map_err(|source| {
        NodeError::Io {
            path: config.cni_conf_dir.clone(),
            source,
        }
    })?;
    if let Some(path) = written {
        tracing::info!(path = %path.display(), "wrote the default CNI configuration");
    }
    network::ensure_masquerade(config, pod_cidrs)
        .await
        .map_err(|source| NodeError::Masquerade { source })?;
    let ranges = [&config.cluster_cidrs[..], &config.service_cidrs].concat();
    network::ensure_unreachable_routes(&config.node_netns, &ranges)
        .await
        .map_err(|source| NodeError::Routes { source })
}
