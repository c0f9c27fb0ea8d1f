//! Why a pull or a change of the store failed, and what a pod's status says of it.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::digest::Digest;
use crate::reference::InvalidReference;
use crate::registry::{EndpointFailures, RegistriesError};
use crate::unpack::UnpackError;

/// What kind of failure stopped a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PullErrorClass {
    /// The registry has no such image.
    NotFound,
    /// The image, its name or the configuration is not valid: trying again will not help.
    Invalid,
    /// The registry wants other credentials.
    Unauthorized,
    /// A network or server failure that may go away.
    Transient,
}

/// A pull that failed. Cheap to clone: pulls of the same image share one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("failed to pull and unpack image \"{reference}\"")]
pub struct PullError {
    reference: String,
    #[source]
    source: Arc<PullFailure>,
}

/// The step at which a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullFailure {
    /// The name cannot be parsed.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The file of mirrors and credentials cannot be used.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// No endpoint gave the manifest.
    #[error("failed to resolve reference \"{reference}\"")]
    Resolve {
        /// The reference with its defaults filled in.
        reference: String,
        /// What each endpoint answered.
        #[source]
        source: EndpointFailures,
    },
    /// No endpoint gave a blob.
    #[error("failed to fetch blob {digest}")]
    Blob {
        /// The blob.
        digest: String,
        /// What each endpoint answered.
        #[source]
        source: EndpointFailures,
    },
    /// The manifest or configuration is malformed.
    #[error("invalid image: {0}")]
    Image(String),
    /// The image is not for this machine.
    #[error("no match for platform {platform} in manifest: not found")]
    Platform {
        /// This machine's platform.
        platform: String,
    },
    /// A layer is malformed or cannot be written.
    #[error("failed to unpack layer {diff_id}")]
    Unpack {
        /// Digest of the unpacked layer.
        diff_id: Digest,
        /// What is wrong with it.
        #[source]
        source: UnpackError,
    },
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The operating system refused something in the store's directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
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
    /// A snapshot still needs the image.
    #[error("image {id} is in use by container {container}")]
    InUse {
        /// The image.
        id: Digest,
        /// The key of the snapshot.
        container: String,
    },
    /// A task of the store panicked or was cancelled at shutdown.
    #[error("background work of the image store did not finish")]
    Interrupted,
}

impl StoreError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io {
            operation,
            path,
            source,
        }
    }
}

impl PullError {
    pub(crate) fn new(reference: impl Into<String>, source: PullFailure) -> PullError {
        PullError {
            reference: reference.into(),
            source: Arc::new(source),
        }
    }

    /// The step that failed.
    #[must_use]
    pub fn failure(&self) -> &PullFailure {
        &self.source
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn class(&self) -> PullErrorClass {
        match &*self.source {
            PullFailure::Resolve { source, .. } | PullFailure::Blob { source, .. } => {
                source.class()
            }
            PullFailure::Platform { .. } => PullErrorClass::NotFound,
            PullFailure::Unpack { source, .. } => {
                if source.is_invalid() {
                    PullErrorClass::Invalid
                } else {
                    PullErrorClass::Transient
                }
            }
            PullFailure::Store(_) => PullErrorClass::Transient,
            PullFailure::Reference(_) | PullFailure::Registries(_) | PullFailure::Image(_) => {
                PullErrorClass::Invalid
            }
        }
    }

    /// Whether the same pull may succeed later without anyone's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.class() == PullErrorClass::Transient
    }

    /// The reason of a waiting container and of the `Failed` event, upstream's word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match &*self.source {
            PullFailure::Reference(_) => "InvalidImageName",
            _ => "ErrImagePull",
        }
    }

    /// The whole chain in one line, as it is shown in events and container statuses.
    #[must_use]
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let part = error.to_string();
            // A transparent layer repeats its source.
            if !text.ends_with(&part) {
                // Writing to a String cannot fail.
                let _ok = write!(text, ": {part}");
            }
            next = error.source();
        }
        text
    }
}
