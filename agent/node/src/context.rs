//! What all parts of one node share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use parking_lot::{Mutex, RwLock};
use skiff_client::{EventKind, EventRecorder, Informer, object_reference};
use skiff_runtime::Runtime;

use crate::NodeConfig;
use crate::admission::Admission;
use crate::engine::SpecBuilder;
use crate::env::Allocatable;
use crate::images::Images;
use crate::network::PodNetwork;

/// Shared by all tasks of a node; made once.
pub(crate) struct NodeContext {
    pub(crate) config: NodeConfig,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) specs: Arc<dyn SpecBuilder>,
    pub(crate) clock: Clock,
    pub(crate) allocatable: Allocatable,
    /// The node's addresses, the first one first.
    pub(crate) host_ips: RwLock<Vec<IpAddr>>,
    /// Set when the node runs.
    pub(crate) services: OnceLock<Informer<Service>>,
    /// Set when the node runs.
    pub(crate) recorder: OnceLock<EventRecorder>,
    /// Pods that a worker looks after, by UID.
    pub(crate) pods: RwLock<BTreeMap<String, Arc<Pod>>>,
    /// What admitted pods take.
    pub(crate) admission: Mutex<Admission>,
}

impl NodeContext {
    /// The node's addresses.
    pub(crate) fn host_ips(&self) -> Vec<IpAddr> {
        self.host_ips.read().clone()
    }

    /// Tells the user about a pod.
    pub(crate) fn pod_event(&self, pod: &Pod, kind: EventKind, reason: &str, message: String) {
        if let Some(recorder) = self.recorder.get() {
            recorder.record(object_reference(pod), kind, reason, message);
        }
    }

    /// Tells the user about a container of a pod.
    pub(crate) fn container_event(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventKind,
        reason: &str,
        message: String,
    ) {
        let Some(recorder) = self.recorder.get() else {
            return;
        };
        let mut about = object_reference(pod);
        let inits = pod
            .spec
            .iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        let is_init = inits.into_iter().any(|init| init.name == container);
        let list = if is_init {
            "initContainers"
        } else {
            "containers"
        };
        about.field_path = Some(format!("spec.{list}{{{container}}}"));
        recorder.record(about, kind, reason, message);
    }
}

/// Where the time comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    /// The system's clock.
    System,
    /// Tokio's clock from a fixed time on, which tests can pause.
    #[cfg(test)]
    Tokio(Timestamp, tokio::time::Instant),
}

impl Clock {
    /// The time now.
    pub(crate) fn now(self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            #[cfg(test)]
            Self::Tokio(base, start) => crate::backoff::add(base, start.elapsed()),
        }
    }
}
