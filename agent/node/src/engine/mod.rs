//! What pod workers need to turn a pod's container into an OCI runtime spec.

pub(crate) mod oci;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::Spec;

use crate::images::ImageDefaults;

/// A file or directory of the node that the container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindMount {
    /// On the node.
    pub(crate) source: PathBuf,
    /// In the container.
    pub(crate) target: String,
    /// Not writable.
    pub(crate) read_only: bool,
    /// `None`, `HostToContainer` or `Bidirectional`.
    pub(crate) propagation: Option<String>,
}

/// All that a spec is made from.
#[derive(Debug, Clone)]
pub(crate) struct SpecRequest<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// The container in it.
    pub(crate) container: &'a Container,
    /// The image's wishes.
    pub(crate) image: &'a ImageDefaults,
    /// The environment, resolved; the image's is not in it.
    pub(crate) env: Vec<(String, String)>,
    /// What is mounted.
    pub(crate) mounts: Vec<BindMount>,
    /// The mounted root filesystem, to look users up in.
    pub(crate) rootfs: &'a Path,
    /// Host name of the pod.
    pub(crate) hostname: String,
}

/// Why no spec can be made.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub(crate) struct SpecRefused {
    /// Waiting reason, such as `CreateContainerConfigError`.
    pub(crate) reason: &'static str,
    /// What the user must change.
    pub(crate) message: String,
}

/// Makes runtime specs. May read the root filesystem, so it blocks.
pub(crate) trait SpecBuilder: Send + Sync + 'static {
    /// The spec of this container.
    ///
    /// # Errors
    /// [`SpecRefused`] with what the user must change.
    fn build(&self, request: &SpecRequest<'_>) -> Result<Spec, SpecRefused>;
}
