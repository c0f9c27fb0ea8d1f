//! Why a reconcile failed. Every one of these is retried with back-off.

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The API server refused, or did not answer.
    #[error("cannot {action} {object}")]
    Api {
        /// What was tried, such as `create pod`.
        action: &'static str,
        /// On which object.
        object: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// A selector that validation should not have let through.
    #[error("invalid selector of {object}")]
    Selector {
        /// Whose selector.
        object: String,
        /// What is wrong with it.
        #[source]
        source: kube::core::ParseExpressionError,
    },
    /// The cache is behind our own writes; the next change wakes us.
    #[error("cache of {object} is behind")]
    Stale {
        /// Which object is awaited.
        object: String,
    },
    /// An object cannot be written as JSON.
    #[error("cannot encode {object}")]
    Encode {
        /// Which object.
        object: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A request could not even be formed.
    #[error("cannot build the request for {object}")]
    Request {
        /// For which object.
        object: String,
        /// What is wrong with it.
        #[source]
        source: http::Error,
    },
}

/// Adds what was tried, and on what, to an error of the client.
pub(crate) trait Context<T> {
    fn context(
        self,
        action: &'static str,
        object: impl std::fmt::Display,
    ) -> Result<T, ControllerError>;
}

impl<T> Context<T> for kube::Result<T> {
    fn context(
        self,
        action: &'static str,
        object: impl std::fmt::Display,
    ) -> Result<T, ControllerError> {
        self.map_err(|source| ControllerError::Api {
            action,
            object: object.to_string(),
            source,
        })
    }
}

/// A write on something that is gone meanwhile is no failure: its deletion is on the way to us.
pub(crate) fn unless_gone<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if skiff_client::is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
