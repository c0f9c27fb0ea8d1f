//! What can go wrong with an overlay.

use std::{io, path::PathBuf};

use ipnetwork::IpNetwork;

use crate::netlink::NetlinkError;

/// An overlay that cannot be, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A VNI that there is not.
    #[error("vni {0} is not between 1 and 16777215")]
    Vni(u32),
    /// Port 0.
    #[error("port 0 is not a UDP port")]
    Port,
    /// Packets would be too large for the underlay, or too small for the pods.
    #[error("mtu {mtu} is not between {least} and {most}")]
    Mtu {
        /// What is configured, or what the underlay leaves.
        mtu: u32,
        /// What the pods' families need.
        least: u32,
        /// What the underlay's MTU leaves.
        most: u32,
    },
    /// A node's entry makes no sense by itself.
    #[error("node {node:?}: {reason}")]
    Node {
        /// Its name.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// Two nodes have what only one can have.
    #[error("nodes {first:?} and {second:?} both have {what}")]
    Conflict {
        /// One of them.
        first: String,
        /// The other one.
        second: String,
        /// What both have.
        what: String,
    },
    /// The table does not know this node.
    #[error("this node is not in the node table: {reason}")]
    NotInTable {
        /// What was looked for.
        reason: String,
    },
    /// The table knows this node twice.
    #[error("this node is both {first:?} and {second:?} in the node table")]
    Ambiguous {
        /// One of the entries.
        first: String,
        /// Another one.
        second: String,
    },
    /// The link that carries the overlay is not there.
    #[error("there is no underlay link {name:?}")]
    NoUnderlay {
        /// Its name.
        name: String,
    },
    /// Somebody else's route leads to a node's pods.
    #[error("another route to {dst} is in the way")]
    RouteTaken {
        /// The podCIDR.
        dst: IpNetwork,
    },
    /// Somebody else has been changing this overlay for too long.
    #[error("{} is held by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state file holds something else.
    #[error("{} is not a node table", path.display())]
    StateFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The state file is larger than any table.
    #[error("{} has more than {most} bytes", path.display())]
    StateFileSize {
        /// The file.
        path: PathBuf,
        /// What is read at most.
        most: u64,
    },
    /// The state file is of another version.
    #[error("{} has version {version}, which is not known", path.display())]
    StateFileVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The node's network namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] skiff_netns::NetnsError),
}

impl OverlayError {
    /// Whether settings, table and node do not fit each other: nothing was changed, and trying again does not help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Vni(_)
                | Self::Port
                | Self::Mtu { .. }
                | Self::Node { .. }
                | Self::Conflict { .. }
                | Self::NotInTable { .. }
                | Self::Ambiguous { .. }
                | Self::NoUnderlay { .. }
                | Self::StateFile { .. }
                | Self::StateFileSize { .. }
                | Self::StateFileVersion { .. }
        )
    }

    /// Whether the same call may succeed later: the table is not written yet, or somebody is at work on it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Locked { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}
