//! What can go wrong with a namespace.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The system refused an operation on a path.
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
    /// The path does not refer to a network namespace.
    #[error("{path} is not a network namespace")]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// A namespace could not be set up after it was made.
    #[error("{operation} in a new namespace")]
    Setup {
        /// What was being done.
        operation: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// No thread to be had.
    #[error("starting a thread to enter a namespace")]
    Thread {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The async runtime is going down.
    #[error("shutting down")]
    ShuttingDown,
}

impl NetnsError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}
