//! Address management: what is asked for ([`HostLocalConfig`]), which addresses there are ([`range`], pure), who has
//! them ([`LeaseStore`], files), and the choice of a free one ([`allocate`]).
//!
//! The store is the directory that the reference `host-local` plugin keeps, so that a node can change from one to the
//! other with live allocations in place.

mod allocate;
mod config;
mod index;
pub mod range;
mod store;

pub use allocate::{Allocation, allocate};
pub use config::{HostLocalConfig, LeaseFolder, read_resolv_conf};
pub use range::{Range, RangeConfig, RangeSet};
pub use store::{LeaseStore, LockedStore, Owner};

use std::{io, net::IpAddr, path::PathBuf};

/// What can go wrong with addresses.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// A range makes no sense.
    #[error("range {subnet}: {reason}")]
    Range {
        /// The range's subnet.
        subnet: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No address is left.
    #[error("no IP addresses available in range set: {ranges}")]
    Exhausted {
        /// Where.
        ranges: String,
    },
    /// The requested address cannot be had.
    #[error("requested IP address {ip}: {reason}")]
    Requested {
        /// The address.
        ip: IpAddr,
        /// Why not.
        reason: String,
    },
    /// The attachment has an address already.
    #[error("{ip} has been allocated to {container}, {ifname} already")]
    AlreadyAllocated {
        /// The container.
        container: String,
        /// The link.
        ifname: String,
        /// The address.
        ip: IpAddr,
    },
    /// Another process holds the lock.
    #[error("{path} is locked by another process", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The files cannot be read or written.
    #[error("{action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
