//! The namespaces that the containers of a pod share, without a process that holds them.

use std::path::PathBuf;

use nix::sched::CloneFlags;

use crate::{NetnsError, pin};

/// Where a pod's shared namespaces are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxNamespaces {
    /// Network.
    pub net: PathBuf,
    /// System V IPC and POSIX message queues.
    pub ipc: PathBuf,
    /// Host name.
    pub uts: PathBuf,
}

/// Makes and pins all three, with the loopback up and the host name set.
///
/// # Errors
/// [`NetnsError`] if one of them cannot be made or pinned; none is left then.
pub fn create_sandbox(paths: &SandboxNamespaces, hostname: &str) -> Result<(), NetnsError> {
    pin::create(
        CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS,
        &[
            ("net", &paths.net),
            ("ipc", &paths.ipc),
            ("uts", &paths.uts),
        ],
        || {
            nix::unistd::sethostname(hostname).map_err(|errno| NetnsError::Setup {
                operation: "setting the host name",
                source: errno.into(),
            })?;
            pin::loopback_up()
        },
    )
}

/// Unpins all three; what is gone already is success.
///
/// # Errors
/// The first failure, after all three were tried.
pub fn delete_sandbox(paths: &SandboxNamespaces) -> Result<(), NetnsError> {
    let results = [&paths.net, &paths.ipc, &paths.uts].map(pin::delete_pinned);
    results.into_iter().collect()
}
