//! The controllers: loops that read the API, compare what is with what is wanted, and write the
//! difference.
//!
//! Each module is one controller: handlers on the shared [`informers`](crate) put keys into a work
//! queue; workers call `reconcile(key)`, which asks a pure `plan_*` function what to do and applies
//! it. Everything is level triggered: a lost event, a restart or a failed write only delays.
//! Controllers know nothing of each other; they meet in API objects.
//!
//! | module | does |
//! | --- | --- |
//! | `deployment` | replica sets per template, rolling updates, revisions |
//! | `replicaset` | pods per replica set |
//! | `endpointslice` | EndpointSlices and Endpoints per Service |
//! | `namespace` | empties and finalizes terminating namespaces |
//! | `serviceaccount` | the `default` ServiceAccount and the root CA per namespace |
//! | `gc` | deletes dependents of deleted owners, foreground and orphan finalizers |
//! | `node` | node leases to Ready=Unknown, taints, eviction |
//! | `podgc` | pods of vanished nodes, too many finished pods |
//! | `loadbalancer` | LoadBalancer Services get the nodes' addresses |
//!
//! Entry point: [`run`].

mod deployment;
mod endpointslice;
mod errors;
mod expectations;
mod gc;
mod informers;
mod loadbalancer;
mod namespace;
mod node;
mod owner;
mod podgc;
mod pods;
mod replicaset;
mod serviceaccount;

use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use errors::ControllerError;

/// What differs between clusters.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// Published in every namespace as the ConfigMap `kube-root-ca.crt`; none, no ConfigMap.
    pub cluster_ca_pem: Option<String>,
    /// How long a node may be silent before it is called Unknown
    /// (`--node-monitor-grace-period`).
    pub node_monitor_grace_period: Duration,
    /// How many finished pods are kept (`--terminated-pod-gc-threshold`).
    pub terminated_pod_gc_threshold: usize,
    /// How often the garbage collector asks which kinds there are.
    pub discovery_interval: Duration,
    /// LoadBalancer Services get their addresses from here, each its own; empty: they have those of the nodes.
    pub load_balancer_ranges: Vec<IpNetwork>,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        ControllersConfig {
            cluster_ca_pem: None,
            node_monitor_grace_period: Duration::from_secs(40),
            terminated_pod_gc_threshold: 12_500,
            discovery_interval: Duration::from_secs(30),
            load_balancer_ranges: Vec::new(),
        }
    }
}

/// What all controllers hold.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) informers: informers::Informers,
    pub(crate) config: ControllersConfig,
}

/// Runs all controllers until `token` is cancelled.
pub async fn run(client: Client, config: ControllersConfig, token: CancellationToken) {
    let mut tasks = JoinSet::new();
    let informers = informers::Informers::start(&client, &mut tasks, &token);
    let shared = Arc::new(Shared {
        client,
        informers,
        config,
    });
    // Handlers are added before the first list arrives, so that no object is told twice.
    let mut loops = JoinSet::new();
    loops.spawn(deployment::run(Arc::clone(&shared), token.clone()));
    loops.spawn(replicaset::run(Arc::clone(&shared), token.clone()));
    loops.spawn(endpointslice::run(Arc::clone(&shared), token.clone()));
    loops.spawn(namespace::run(Arc::clone(&shared), token.clone()));
    loops.spawn(serviceaccount::run(Arc::clone(&shared), token.clone()));
    loops.spawn(gc::run(Arc::clone(&shared), token.clone()));
    loops.spawn(node::run(Arc::clone(&shared), token.clone()));
    loops.spawn(podgc::run(Arc::clone(&shared), token.clone()));
    loops.spawn(loadbalancer::run(Arc::clone(&shared), token.clone()));
    token.cancelled().await;
    while loops.join_next().await.is_some() {}
    tasks.shutdown().await;
}

/// Waits until the caches are filled; `false` when it is time to stop instead.
pub(crate) async fn synced(shared: &Shared, token: &CancellationToken) -> bool {
    tokio::select! {
        () = token.cancelled() => false,
        synced = shared.informers.synced() => synced,
    }
}
