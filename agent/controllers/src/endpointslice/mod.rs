//! The EndpointSlice controller, and the Endpoints controller beside it: which pods are behind a
//! Service.
//!
//! A pod's change reaches its Services' slices without any batching period: it decides how fast a
//! dead backend is left alone.

mod endpoints;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use skiff_client::{
    Change, Key, WorkQueue, is_already_exists, is_namespace_terminating, run_workers,
};
use tokio_util::sync::CancellationToken;

use crate::errors::{Context, ControllerError, unless_gone};
use crate::informers::{BY_SERVICE, SERVICE_NAME_LABEL};
use crate::{Shared, pods};
use endpoints::{endpoints_differ, plan_endpoints};
use plan::{MANAGED_BY, MANAGED_BY_LABEL, plan_backends, plan_slices};

const WORKERS: usize = 5;
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

struct Controller {
    shared: Arc<Shared>,
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let controller = Arc::new(Controller {
        shared,
        queue: WorkQueue::new(),
    });
    controller.watch();
    if !crate::synced(&controller.shared, &token).await {
        return;
    }
    let queue = controller.queue.clone();
    run_workers("endpointslice", queue, WORKERS, token, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    })
    .await;
}

/// What of a pod shows in its endpoints.
fn visible(pod: &Pod) -> impl PartialEq + '_ {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    (
        pod.metadata.labels.as_ref(),
        pods::is_ready(pod),
        pods::is_terminating(pod),
        pods::is_finished(pod),
        pods::node_name(pod),
        status.and_then(|s| s.pod_ip.as_ref()),
        status.and_then(|s| s.pod_ips.as_ref()),
        (
            spec.and_then(|s| s.hostname.as_ref()),
            spec.and_then(|s| s.subdomain.as_ref()),
        ),
    )
}

fn matches(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()) else {
        return false;
    };
    let labels = pod.metadata.labels.as_ref();
    !selector.is_empty()
        && selector
            .iter()
            .all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

impl Controller {
    fn watch(self: &Arc<Self>) {
        let informers = &self.shared.informers;
        let queue = self.queue.clone();
        informers
            .services
            .on_change(move |change| queue.add(Key::of(&**change.object())));
        let this = Arc::clone(self);
        informers
            .pods
            .on_change(move |change| this.pod_changed(change));
        // Somebody else's write to our objects is undone.
        let queue = self.queue.clone();
        informers.slices.on_change(move |change| {
            let meta = &change.object().metadata;
            let service = meta.labels.as_ref().and_then(|l| l.get(SERVICE_NAME_LABEL));
            if let Some(service) = service {
                queue.add(Key::new(
                    meta.namespace.clone().unwrap_or_default(),
                    service,
                ));
            }
        });
        let queue = self.queue.clone();
        informers
            .endpoints
            .on_change(move |change| queue.add(Key::of(&**change.object())));
        let this = Arc::clone(self);
        informers
            .nodes
            .on_change(move |change| this.node_changed(change));
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let old = match change {
            Change::Applied {
                old: Some(old),
                new,
            } => {
                if visible(old) == visible(new) {
                    return;
                }
                Some(old)
            }
            _ => None,
        };
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for service in self.shared.informers.services.in_namespace(namespace) {
            if matches(&service, pod) || old.is_some_and(|old| matches(&service, old)) {
                self.queue.add(Key::of(&*service));
            }
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        let zone = |node: &Node| {
            node.metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(ZONE_LABEL).cloned())
        };
        let relevant = match change {
            Change::Applied {
                old: Some(old),
                new,
            } => zone(old) != zone(new),
            Change::Applied { old: None, new } => zone(new).is_some(),
            Change::Deleted(_) => false,
        };
        if relevant {
            for service in self.shared.informers.services.list() {
                self.queue.add(Key::of(&*service));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ControllerError> {
        let informers = &self.shared.informers;
        let Some(service) = informers.services.get(key) else {
            return self.service_gone(key).await;
        };
        let spec = service.spec.clone().unwrap_or_default();
        let external = spec.type_.as_deref() == Some("ExternalName");
        if external
            || spec.selector.is_none_or(|s| s.is_empty())
            || service.metadata.deletion_timestamp.is_some()
        {
            return Ok(None);
        }
        let mut pods = informers.pods.in_namespace(&key.namespace);
        pods.retain(|pod| matches(&service, pod));
        let backends = plan_backends(&service, &pods, |node| {
            let node = informers.nodes.get(&Key::new("", node))?;
            node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned()
        });
        let endpoints = plan_endpoints(&service, &backends, &pods);
        let changes = plan_slices(&service, backends, &self.our_slices(key));
        self.write_slices(key, changes).await?;
        self.write_endpoints(key, endpoints).await?;
        Ok(None)
    }

    fn our_slices(&self, key: &Key) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self
            .shared
            .informers
            .slices
            .by_index(BY_SERVICE, &key.to_string());
        slices.retain(|slice| {
            let labels = slice.metadata.labels.as_ref();
            labels
                .and_then(|l| l.get(MANAGED_BY_LABEL))
                .is_some_and(|by| by == MANAGED_BY)
        });
        slices
    }

    async fn write_slices(
        &self,
        key: &Key,
        changes: plan::SliceChanges,
    ) -> Result<(), ControllerError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let params = PostParams::default();
        for slice in &changes.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            api.replace(name, &params, slice)
                .await
                .context("update endpoint slice", name)?;
        }
        for slice in &changes.create {
            match api.create(&params, slice).await {
                Ok(_) => {}
                Err(error) if is_already_exists(&error) => {
                    return Err(ControllerError::Stale {
                        object: format!("slices of {key}"),
                    });
                }
                Err(error) if is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(error).context("create endpoint slice of", key),
            }
        }
        for slice in &changes.delete {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let result = api.delete(name, &DeleteParams::default()).await;
            unless_gone(result).context("delete endpoint slice", name)?;
        }
        Ok(())
    }

    async fn write_endpoints(
        &self,
        key: &Key,
        mut wanted: Endpoints,
    ) -> Result<(), ControllerError> {
        let api: Api<Endpoints> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        match self.shared.informers.endpoints.get(key) {
            None => match api.create(&PostParams::default(), &wanted).await {
                Err(error) if is_already_exists(&error) => {
                    return Err(ControllerError::Stale {
                        object: format!("endpoints of {key}"),
                    });
                }
                Err(error) if is_namespace_terminating(&error) => {}
                result => result.map(|_| ()).context("create endpoints", key)?,
            },
            Some(current) => {
                if !endpoints_differ(&current, &wanted) {
                    return Ok(());
                }
                wanted
                    .metadata
                    .resource_version
                    .clone_from(&current.metadata.resource_version);
                let result = api
                    .replace(&key.name, &PostParams::default(), &wanted)
                    .await;
                result.context("update endpoints", key)?;
            }
        }
        Ok(())
    }

    async fn service_gone(&self, key: &Key) -> Result<Option<Duration>, ControllerError> {
        for slice in self.our_slices(key) {
            let api: Api<EndpointSlice> =
                Api::namespaced(self.shared.client.clone(), &key.namespace);
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let result = api.delete(name, &DeleteParams::default()).await;
            unless_gone(result).context("delete endpoint slice", name)?;
        }
        // An Endpoints object of that name that we never wrote is somebody's own.
        let ours = self.shared.informers.endpoints.get(key).is_some_and(|e| {
            let labels = e.metadata.labels.as_ref();
            labels.is_some_and(|l| l.contains_key("endpoints.kubernetes.io/managed-by"))
        });
        if ours {
            let api: Api<Endpoints> = Api::namespaced(self.shared.client.clone(), &key.namespace);
            let result = api.delete(&key.name, &DeleteParams::default()).await;
            unless_gone(result).context("delete endpoints", key)?;
        }
        Ok(None)
    }
}
