//! What sandboxes and containers are made from and what is known of them: the vocabulary of [`crate::Runtime`].

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::RuntimeError;

/// What a sandbox is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// UID of the pod; also the sandbox's id.
    pub pod_uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UTS host name.
    pub hostname: String,
    /// Share the node's network namespace instead of making one.
    pub host_network: bool,
}

/// A sandbox that exists: namespaces are pinned, the shim runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What it was made from.
    pub config: SandboxConfig,
    /// Path of the pinned network namespace.
    pub netns: PathBuf,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a container is made from. The root filesystem is mounted already.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the container in the pod.
    pub name: String,
    /// How often this container was started before in this pod.
    pub restart_count: u32,
    /// Mounted root filesystem.
    pub rootfs: PathBuf,
    /// OCI runtime spec (`skiff-spec` makes it); namespaces and cgroup path are filled in by the runtime.
    pub spec: oci_spec::runtime::Spec,
    /// CRI-format log file to append to.
    pub log_path: PathBuf,
    /// Free-form facts kept with the container, so that a later daemon can adopt it
    /// (image reference, image id, spec hash).
    pub annotations: BTreeMap<String, String>,
    /// Give the container a terminal.
    pub tty: bool,
    /// What its stdin is.
    pub stdin: Stdin,
}

/// What a container reads from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stdin {
    /// Nothing.
    #[default]
    Empty,
    /// Whoever is attached, one after the other; it has no end (`stdin`).
    Open,
    /// The first who is attached, and it ends when that one closes it (`stdinOnce`). A terminal does not end.
    Once,
}

/// Names one container instance within a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerRef {
    /// UID of the pod.
    pub pod_uid: String,
    /// Container id, unique on the node: 64 hexadecimal digits.
    pub container_id: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum ContainerState {
    /// Created, process not yet started.
    Created,
    /// Running.
    Running {
        /// When it was started.
        started_at: Timestamp,
        /// Process id in the node's pid namespace.
        pid: i32,
    },
    /// Ended.
    Exited(ExitStatus),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    /// When it was started; `None` if it never was.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Exit code; 128 + signal for a signal.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed it for memory.
    pub oom_killed: bool,
    /// Why it could not be started, if so.
    pub message: Option<String>,
}

/// What is known of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Which one.
    pub id: ContainerRef,
    /// Name of the container in the pod.
    pub name: String,
    /// How often this container was started before in this pod.
    pub restart_count: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its state now.
    pub state: ContainerState,
    /// As given in [`ContainerConfig::annotations`].
    pub annotations: BTreeMap<String, String>,
}

/// A change that the runtime noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container of this pod started or ended: look at it again.
    PodChanged {
        /// UID of the pod.
        pod_uid: String,
    },
    /// The shim of this pod is gone: its containers are dead or lost.
    ShimLost {
        /// UID of the pod.
        pod_uid: String,
    },
}

/// A sandbox and its containers, as found on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRecord {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its containers, ended ones too until they are removed, oldest first.
    pub containers: Vec<ContainerStatus>,
}

/// A command to run in a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecConfig {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Connect stdin.
    pub stdin: bool,
}

/// A command running in a container, with its streams.
pub struct ExecSession {
    /// Writes to the command's stdin (or its terminal).
    pub stdin: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    /// The command's stdout (or its terminal).
    pub stdout: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
    /// The command's stderr; `None` with a terminal.
    pub stderr: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    /// Changes the terminal's size: (columns, rows).
    pub resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    /// Resolves to the exit code.
    pub exit: futures::future::BoxFuture<'static, Result<i32, RuntimeError>>,
}

/// What of a running container a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachConfig {
    /// Write to its stdin.
    pub stdin: bool,
    /// Read its stdout.
    pub stdout: bool,
    /// Read its stderr.
    pub stderr: bool,
}

/// A client's connection to a running container. Output begins where it was when the client came, and ends with the
/// container.
pub struct AttachSession {
    /// Writes to its stdin (or its terminal), if it has one that is still open.
    pub stdin: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    /// Its stdout (or its terminal).
    pub stdout: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    /// Its stderr; ends at once with a terminal.
    pub stderr: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    /// Changes its terminal's size: (columns, rows).
    pub resize: tokio::sync::mpsc::Sender<(u16, u16)>,
}

/// Resource use of one container, read from its cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// CPU time used, nanoseconds.
    pub cpu_usage_nanos: u64,
    /// Memory in use, bytes, without inactive file cache.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}
