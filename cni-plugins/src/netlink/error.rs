//! What can go wrong with netlink.

use std::io;

use nix::errno::Errno;

/// A failed netlink call.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made.
    #[error("connecting to netlink")]
    Connect {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] skiff_netns::NetnsError),
    /// The kernel refused.
    #[error("{action}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No answer.
    #[error("{action}: no answer from the kernel")]
    Unanswered {
        /// What was tried.
        action: &'static str,
    },
    /// Interrupted time and again.
    #[error("{action}: interrupted too often")]
    Interrupted {
        /// What was tried.
        action: &'static str,
    },
    /// A destination and its gateway, or an address and its link, do not fit each other.
    #[error("{action}: {reason}")]
    Invalid {
        /// What was tried.
        action: &'static str,
        /// What does not fit.
        reason: String,
    },
}

impl NetlinkError {
    /// Whether the kernel answered with `errno`.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(errno as i32))
    }

    /// Whether what was asked for is not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.is(Errno::ENODEV) || self.is(Errno::ESRCH) || self.is(Errno::EADDRNOTAVAIL)
    }

    /// Whether no route leads there.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.is(Errno::ENETUNREACH) || self.is(Errno::EHOSTUNREACH)
    }

    /// Whether it exists already.
    #[must_use]
    pub fn is_existing(&self) -> bool {
        self.is(Errno::EEXIST)
    }

    /// Whether the kernel does not know what was asked for.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.is(Errno::EOPNOTSUPP)
    }
}
