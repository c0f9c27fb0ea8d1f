//! Why a list could not be run to its end.

use std::io;

use skiff_netns::NetnsError;

use super::exec::ExecError;
use crate::types::{CniError, code};

/// A list that could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] ExecError),
    /// A plugin's answer is not a result.
    #[error("invalid result of {plugin_type}")]
    Result {
        /// The plugin.
        plugin_type: String,
        /// What is wrong with it.
        #[source]
        source: CniError,
    },
    /// The node's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The result cache cannot be written or read.
    #[error("result cache of {network}")]
    Cache {
        /// The network.
        network: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An ADD waited in vain for a GC, or a GC for an ADD.
    #[error("others work on {network}")]
    Busy {
        /// The network.
        network: String,
    },
    /// CHECK of what was never attached.
    #[error("no result of an ADD is cached for {container}, {ifname}")]
    NotCached {
        /// The container.
        container: String,
        /// The link.
        ifname: String,
    },
    /// More than one plugin failed to clean up.
    #[error("{first}; {more} more")]
    Several {
        /// The first failure.
        #[source]
        first: Box<Self>,
        /// How many came after it.
        more: usize,
    },
}

impl RunnerError {
    /// The plugin's own error, if it was a plugin that failed.
    #[must_use]
    pub fn cni(&self) -> Option<&CniError> {
        match self {
            Self::Plugin(ExecError::Failed { source, .. }) | Self::Result { source, .. } => {
                Some(source)
            }
            Self::Several { first, .. } => first.cni(),
            _ => None,
        }
    }

    /// As the specification words it, for whoever is told in JSON.
    #[must_use]
    pub fn to_cni(&self) -> CniError {
        match self {
            Self::Plugin(ExecError::Failed {
                plugin_type,
                source,
            }) => CniError {
                msg: format!("{plugin_type}: {}", source.msg),
                ..source.clone()
            },
            Self::Several { first, more } => {
                let mut error = first.to_cni();
                error.msg = format!("{} ({more} more errors)", error.msg);
                error
            }
            Self::Cache { .. } => CniError::from_error(code::IO, "the result cache", self),
            Self::Busy { .. } => CniError::new(code::TRY_AGAIN, self.to_string()),
            Self::NotCached { .. } => CniError::new(code::UNKNOWN_CONTAINER, self.to_string()),
            Self::Netns(_) => CniError::from_error(code::ENVIRONMENT, "the node's namespace", self),
            Self::Plugin(_) | Self::Result { .. } => {
                CniError::from_error(code::DELEGATE, "a plugin could not be run", self)
            }
        }
    }

    pub(super) fn join(errors: Vec<Self>) -> Result<(), Self> {
        let more = errors.len().saturating_sub(1);
        match errors.into_iter().next() {
            None => Ok(()),
            Some(only) if more == 0 => Err(only),
            Some(first) => Err(Self::Several {
                first: Box::new(first),
                more,
            }),
        }
    }
}
