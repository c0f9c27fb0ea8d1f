//! Where everything of a pod lies below the run directory.
//!
//! ```text
//! <run>/pods/<uid>/
//!   sandbox.json  shim.sock  shim.pid  shim.log
//!   ns/{ipc,uts}
//!   containers/<id>/
//!     config.json      OCI bundle
//!     container.json   name, restart count, annotations (daemon)
//!     state.json       pid and start time (shim)
//!     exit.json        how it ended (shim)
//!     engine/          libcontainer's own state
//! ```

use std::path::{Path, PathBuf};

/// File with the [`crate::Sandbox`].
pub const SANDBOX_FILE: &str = "sandbox.json";
/// The shim's socket.
pub const SOCKET_FILE: &str = "shim.sock";
/// The shim's process id, decimal.
pub const PID_FILE: &str = "shim.pid";
/// What the shim says on its standard error.
pub const SHIM_LOG_FILE: &str = "shim.log";
/// Directory of the containers.
pub const CONTAINERS_DIR: &str = "containers";
/// File with the [`crate::files::ContainerRecord`].
pub const CONTAINER_FILE: &str = "container.json";
/// File with the [`crate::files::RunState`].
pub const STATE_FILE: &str = "state.json";
/// File with the [`crate::ExitStatus`].
pub const EXIT_FILE: &str = "exit.json";
/// The OCI runtime spec.
pub const SPEC_FILE: &str = "config.json";
/// Directory of libcontainer's own state.
pub const ENGINE_DIR: &str = "engine";

/// The directory of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// The directory of pod `uid` below run directory `run`.
    #[must_use]
    pub fn new(run: &Path, uid: &str) -> Self {
        Self(run.join("pods").join(uid))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where a namespace of the sandbox is pinned.
    #[must_use]
    pub fn namespace(&self, kind: &str) -> PathBuf {
        self.0.join("ns").join(kind)
    }

    /// The directory of all containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.0.join(CONTAINERS_DIR)
    }

    /// The directory of one container.
    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
}
