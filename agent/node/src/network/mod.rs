//! The node's network: what pod workers need of it, the default conflist and the routes that keep packets
//! at home.

mod capabilities;
pub(crate) mod cni;
mod conflist;
mod paths;
mod routes;
mod teardown;

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use serde_json::{Map, Value};

pub(crate) use self::capabilities::capability_args;
pub use self::conflist::MasqueradeError;
pub(crate) use self::conflist::{
    ensure_conflist, ensure_masquerade, first_node_cidr, plan_conflist,
};
pub use self::paths::{PodPaths, PodPort};
pub(crate) use self::routes::ensure_unreachable_routes;
pub use self::teardown::{TeardownError, remove_network};

/// Names a pod to the network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodAttachment {
    /// UID of the pod; the CNI container id.
    pub(crate) uid: String,
    /// Namespace of the pod.
    pub(crate) namespace: String,
    /// Name of the pod.
    pub(crate) name: String,
    /// The pod's network namespace.
    pub(crate) netns: PathBuf,
}

/// Why a pod cannot be attached or detached.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct NetworkError(pub String);

/// Attaches pods to the network.
#[async_trait]
pub(crate) trait PodNetwork: Send + Sync + 'static {
    /// Attaches the pod, with what [`capability_args`] says that it wants; its addresses.
    ///
    /// # Errors
    /// [`NetworkError`] with the plugin's message; what was made is undone.
    async fn attach(
        &self,
        pod: &PodAttachment,
        capability_args: Map<String, Value>,
    ) -> Result<Vec<IpAddr>, NetworkError>;

    /// Addresses that an earlier [`PodNetwork::attach`] gave, also before a restart of the daemon.
    async fn addresses(&self, pod: &PodAttachment) -> Option<Vec<IpAddr>>;

    /// Detaches the pod. Absent is success.
    ///
    /// # Errors
    /// [`NetworkError`] with the plugin's message.
    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError>;

    /// Undoes attachments of pods that are not among those that `uids` tells. It is asked while nothing is
    /// being attached, so that no pod that comes meanwhile is taken for a leftover.
    ///
    /// # Errors
    /// [`NetworkError`] with the plugin's message.
    async fn sweep(&self, uids: &(dyn Fn() -> Vec<String> + Sync)) -> Result<(), NetworkError>;
}
