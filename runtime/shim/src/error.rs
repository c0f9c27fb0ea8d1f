//! What can go wrong in the shim.

use std::{error::Error, fmt, io, path::PathBuf};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// The system refused.
    #[error("{operation}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The system refused something on a path.
    #[error("{operation} {path}")]
    Path {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A state file.
    #[error(transparent)]
    Files(#[from] skiff_runtime::RuntimeError),
    /// The engine's error.
    #[error("creating container")]
    Engine(#[from] libcontainer::error::LibcontainerError),
    /// A capability set, an id or a profile could not be put in force.
    #[error("{operation}: {message}")]
    Confinement {
        /// What was being done.
        operation: &'static str,
        /// The engine's words.
        message: String,
    },
    /// The command could not be executed; in the words that users know.
    #[error("unable to start container process: {0}")]
    Command(String),
    /// The request makes no sense now.
    #[error("{0}")]
    Refused(String),
}

/// For `map_err`: an error of the system with what was being done.
pub(crate) fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> ShimError {
    move |source| ShimError::System {
        operation,
        source: source.into(),
    }
}

/// Shows an error with all its sources, leaving out those whose words the one before has said already.
pub(crate) fn chain(error: &dyn Error) -> Chain<'_> {
    Chain(error)
}

/// See [`chain`].
pub(crate) struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let words = error.to_string();
            if !said.contains(&words) {
                write!(f, ": {words}")?;
                said.push_str(&words);
            }
            source = error.source();
        }
        Ok(())
    }
}
