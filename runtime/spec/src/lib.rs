//! From a Pod, a container of it and its image to an OCI runtime spec. Pure: no I/O, no clock, no network.
//!
//! [`build_spec`] is the entry point. What has to be looked up comes in [`SpecInput`]: the user (by
//! `skiff_image::resolve_user` on [`user_to_resolve`]), the environment (the node resolves config maps and secrets, with
//! [`expand`] for `$(NAME)`), the mounts. [`qos_class`] is the pod's class of service.
//!
//! Where nothing is said, skiff is stricter than upstream: a container without a `seccompProfile` runs under
//! [`default_profile`], as if it said `RuntimeDefault`.

mod build;
mod expand;
mod mounts;
mod qos;
mod quantity;
mod resources;
mod seccomp;
mod security;

pub use build::{ImageDefaults, SandboxPaths, SpecInput, User, build_spec};
pub use expand::expand;
pub use mounts::{MountInput, Propagation};
pub use qos::{QosClass, oom_score_adj, qos_class};
pub use quantity::{QuantityError, parse_bytes, parse_millis};
pub use resources::{cpu_quota, cpu_shares};
pub use seccomp::{Architecture, default_profile};
pub use security::{SAFE_SYSCTLS, user_to_resolve};

/// Why a container cannot be run as its pod says. The container waits with [`SpecError::reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither the container nor its image names a program.
    #[error("no command specified")]
    NoCommand,
    /// `runAsNonRoot` with a user that is root.
    #[error("container has runAsNonRoot and image will run as root (container: {container})")]
    RunAsRoot {
        /// The container.
        container: String,
    },
    /// `runAsNonRoot` with an image whose user is a name: it may be root inside.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (container: {container})"
    )]
    RunAsName {
        /// The container.
        container: String,
        /// The image's user.
        user: String,
    },
    /// A field has a value that makes no sense or is not supported.
    #[error("{field}: {message}")]
    Field {
        /// The field's path in the pod.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A sysctl that is not namespaced or not safe.
    #[error("forbidden sysctl: {0:?} not allowlisted")]
    Sysctl(String),
}

impl SpecError {
    /// The reason of the waiting container, upstream's word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            SpecError::NoCommand => "RunContainerError",
            SpecError::Sysctl(_) => "SysctlForbidden",
            _ => "CreateContainerConfigError",
        }
    }

    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> SpecError {
        SpecError::Field {
            field: field.into(),
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests;
