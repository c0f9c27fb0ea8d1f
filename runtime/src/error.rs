//! What can go wrong in the runtime.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why the runtime did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No such sandbox or container.
    #[error("{what} {id} not found")]
    NotFound {
        /// "sandbox" or "container".
        what: &'static str,
        /// Which one.
        id: String,
    },
    /// The shim refused or failed; its own words.
    #[error("{operation}: {message}")]
    Shim {
        /// What was asked of it.
        operation: &'static str,
        /// What it answered.
        message: String,
    },
    /// The shim does not answer.
    #[error("shim of pod {pod_uid} is gone")]
    ShimLost {
        /// UID of the pod.
        pod_uid: String,
    },
    /// The operating system refused.
    #[error("{operation} {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be made or removed.
    #[error("namespaces of sandbox {id}")]
    Namespaces {
        /// Which sandbox.
        id: String,
        /// The failure.
        #[source]
        source: skiff_netns::NetnsError,
    },
    /// The spec asks for what this runtime does not do.
    #[error("unsupported: {message}")]
    Unsupported {
        /// What is asked for.
        message: String,
    },
    /// A state file is not what it should be.
    #[error("decoding {path}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        #[source]
        source: serde_json::Error,
    },
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

impl RuntimeError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}
