//! Pod sandboxes and containers: the [`Runtime`] trait and its implementation over the per-pod shim.
//!
//! The daemon never forks a container itself: [`ShimRuntime`] talks to one `skiff-shim` process per pod,
//! which outlives the daemon. After a restart [`Runtime::list`] finds every sandbox again from its directory.
//!
//! ```text
//! daemon (tokio)                        shim (one thread, one per pod)          helper (fork of the shim, short)
//! ShimRuntime ── client ── seqpacket ── poll loop ── signalfd, stdio ── socketpair ── libcontainer / exec
//!      │                                    │
//!      └── container.json                   └── state.json, exit.json, CRI log
//! ```
//!
//! Files are the truth: the shim writes `state.json` and `exit.json` before it announces them, so that
//! status needs no answer from anyone, and is the same for this daemon and the next one.

mod capabilities;
pub mod cgroup;
mod client;
mod container_spec;
mod error;
pub mod files;
pub mod layout;
pub mod protocol;
mod shim_runtime;
mod spawn;
mod types;

use std::time::Duration;

use async_trait::async_trait;

pub use crate::{
    error::RuntimeError,
    shim_runtime::{RuntimeConfig, ShimRuntime},
    types::{
        AttachConfig, AttachSession, ContainerConfig, ContainerRef, ContainerState, ContainerStats,
        ContainerStatus, ExecConfig, ExecSession, ExitStatus, PodRecord, RuntimeEvent, Sandbox,
        SandboxConfig, Stdin,
    },
};

/// Runs pod sandboxes and containers. All calls are idempotent where Kubernetes needs them to be: creating
/// what exists returns it, stopping or removing what is gone succeeds.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes the namespaces and starts the shim. Networking (CNI) is the caller's.
    ///
    /// # Errors
    /// [`RuntimeError`] if a namespace or the shim cannot be made; what was made is undone.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError>;

    /// Kills what still runs, ends the shim, unpins the namespaces, removes cgroups and directories.
    ///
    /// # Errors
    /// [`RuntimeError`] naming what could not be removed; the rest is removed all the same.
    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError>;

    /// Creates and starts a container.
    ///
    /// # Errors
    /// [`RuntimeError::Shim`] with the engine's message, e.g. for a command that does not exist.
    async fn start_container(&self, config: ContainerConfig) -> Result<ContainerRef, RuntimeError>;

    /// Sends `signal`, waits up to `grace` for the end, then kills. Returns when it has ended.
    ///
    /// # Errors
    /// [`RuntimeError`] if it cannot be signalled.
    async fn stop_container(
        &self,
        id: &ContainerRef,
        signal: i32,
        grace: Duration,
    ) -> Result<(), RuntimeError>;

    /// Removes an ended container's cgroup and state. The root filesystem is the caller's.
    ///
    /// # Errors
    /// [`RuntimeError`] if it still runs or something cannot be removed.
    async fn remove_container(&self, id: &ContainerRef) -> Result<(), RuntimeError>;

    /// Every sandbox on this node with its containers, also those that an earlier daemon made.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if the state directory cannot be read.
    async fn list(&self) -> Result<Vec<PodRecord>, RuntimeError>;

    /// One sandbox with its containers.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if there is none.
    async fn pod(&self, pod_uid: &str) -> Result<PodRecord, RuntimeError>;

    /// Runs a command in a running container, in all its namespaces, cgroup, capabilities and under its
    /// seccomp profile.
    ///
    /// # Errors
    /// [`RuntimeError`] if the container does not run or the command cannot be started.
    async fn exec(
        &self,
        id: &ContainerRef,
        config: ExecConfig,
    ) -> Result<ExecSession, RuntimeError>;

    /// Connects a client to a running container's streams.
    ///
    /// # Errors
    /// [`RuntimeError`] if the container does not run.
    async fn attach(
        &self,
        id: &ContainerRef,
        config: AttachConfig,
    ) -> Result<AttachSession, RuntimeError>;

    /// Resource use now.
    ///
    /// # Errors
    /// [`RuntimeError`] if the container does not run.
    async fn stats(&self, id: &ContainerRef) -> Result<ContainerStats, RuntimeError>;

    /// Changes as they happen. A receiver that lags must look at everything again.
    fn events(&self) -> tokio::sync::broadcast::Receiver<RuntimeEvent>;
}
