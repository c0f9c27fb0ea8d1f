//! The collections that the controllers read, each watched once for all of them.

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Config;
use kube::{Api, Client, Resource};
use skiff_client::Informer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::owner::controller_of;

/// Index: pods and replica sets by the UID of their controller; those without one by
/// [`orphans_of`] their namespace.
pub(crate) const BY_CONTROLLER: &str = "controller";
/// Index: pods by node.
pub(crate) const BY_NODE: &str = "node";
/// Index: slices by namespace and Service, as `namespace/name`.
pub(crate) const BY_SERVICE: &str = "service";

pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
pub(crate) const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// Where the index `BY_CONTROLLER` lists what nobody controls.
pub(crate) fn orphans_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

fn controller_index<K: Resource>(object: &K) -> Vec<String> {
    let meta = object.meta();
    match controller_of(meta) {
        Some(controller) => vec![controller.uid.clone()],
        None => vec![orphans_of(meta.namespace.as_deref().unwrap_or_default())],
    }
}

/// All informers.
#[derive(Clone, Debug)]
pub(crate) struct Informers {
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) replica_sets: Informer<ReplicaSet>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) services: Informer<Service>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) leases: Informer<Lease>,
    pub(crate) service_accounts: Informer<ServiceAccount>,
    pub(crate) root_cas: Informer<ConfigMap>,
}

impl Informers {
    pub(crate) fn start(
        client: &Client,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Informers {
        let all = Config::default;
        Informers {
            deployments: Informer::start(Api::all(client.clone()), all(), tasks, token),
            replica_sets: Informer::builder()
                .index(BY_CONTROLLER, controller_index)
                .start(Api::all(client.clone()), tasks, token),
            pods: Informer::builder()
                .index(BY_CONTROLLER, controller_index)
                .index(BY_NODE, |pod: &Pod| {
                    crate::pods::node_name(pod)
                        .map(str::to_owned)
                        .into_iter()
                        .collect()
                })
                .transform(shrink_pod)
                .start(Api::all(client.clone()), tasks, token),
            services: Informer::start(Api::all(client.clone()), all(), tasks, token),
            slices: Informer::builder()
                .index(BY_SERVICE, |slice: &EndpointSlice| {
                    let meta = &slice.metadata;
                    let service = meta.labels.as_ref().and_then(|l| l.get(SERVICE_NAME_LABEL));
                    let namespace = meta.namespace.as_deref().unwrap_or_default();
                    service
                        .map(|name| format!("{namespace}/{name}"))
                        .into_iter()
                        .collect()
                })
                .start(Api::all(client.clone()), tasks, token),
            endpoints: Informer::start(Api::all(client.clone()), all(), tasks, token),
            namespaces: Informer::start(Api::all(client.clone()), all(), tasks, token),
            nodes: Informer::builder()
                .transform(|node: &mut Node| {
                    if let Some(status) = &mut node.status {
                        status.images = None;
                    }
                })
                .start(Api::all(client.clone()), tasks, token),
            leases: Informer::start(
                Api::namespaced(client.clone(), "kube-node-lease"),
                all(),
                tasks,
                token,
            ),
            service_accounts: Informer::builder()
                .config(all().fields("metadata.name=default"))
                .start(Api::all(client.clone()), tasks, token),
            root_cas: Informer::builder()
                .config(all().fields(&format!("metadata.name={ROOT_CA_CONFIG_MAP}")))
                .start(Api::all(client.clone()), tasks, token),
        }
    }

    /// Waits for the first list of each; `false` when the daemon stopped before.
    pub(crate) async fn synced(&self) -> bool {
        let (a, b) = tokio::join!(
            join_all([
                boxed(self.deployments.synced()),
                boxed(self.replica_sets.synced()),
                boxed(self.pods.synced()),
                boxed(self.services.synced()),
                boxed(self.slices.synced()),
                boxed(self.endpoints.synced()),
            ]),
            join_all([
                boxed(self.namespaces.synced()),
                boxed(self.nodes.synced()),
                boxed(self.leases.synced()),
                boxed(self.service_accounts.synced()),
                boxed(self.root_cas.synced()),
            ]),
        );
        a.into_iter().chain(b).all(|synced| synced)
    }
}

fn boxed<'a>(
    future: impl Future<Output = bool> + Send + 'a,
) -> futures::future::BoxFuture<'a, bool> {
    Box::pin(future)
}

/// Drops what no controller reads. Of a container only its name and ports are of use here: a named
/// target port is looked up there. Nothing of this is ever written back.
fn shrink_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.affinity = None;
        spec.ephemeral_containers = None;
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            container.env = None;
            container.env_from = None;
            container.volume_mounts = None;
            container.command = None;
            container.args = None;
            container.liveness_probe = None;
            container.readiness_probe = None;
            container.startup_probe = None;
            container.lifecycle = None;
            container.security_context = None;
            container.resources = None;
        }
    }
}
