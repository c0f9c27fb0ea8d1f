//! What can go wrong here.

use std::{io, path::PathBuf};

use crate::tables::{Frontend, SetId};

/// Why the datapath could not be opened, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The process may not use eBPF.
    #[error("no permission to load eBPF programs: run as root")]
    Permission,
    /// The kernel has no such thing.
    #[error("the kernel lacks {feature} (Linux {since} or newer has it)")]
    MissingFeature {
        /// What.
        feature: &'static str,
        /// Since when it is there.
        since: &'static str,
    },
    /// The folder is no cgroup of version 2.
    #[error("{} is not in a cgroup2 hierarchy", path.display())]
    NotCgroup2 {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder could not be handled.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an operation on a map.
    #[error("{what} {map}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map's name.
        map: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A pinned map is not shaped as this version knows it.
    #[error("the pinned map {map} has another shape than this version expects")]
    MapShape {
        /// The map's name.
        map: &'static str,
    },
    /// A table has no room left.
    #[error("{map} is full: {limit} entries")]
    Full {
        /// The map's name.
        map: &'static str,
        /// Its size.
        limit: u32,
    },
    /// A frontend names a set that does not exist.
    #[error("frontend {frontend} refers to unknown backend set {set}")]
    UnknownSet {
        /// The frontend.
        frontend: Frontend,
        /// The set.
        set: SetId,
    },
    /// A link has gone, or the kernel refuses a program there.
    #[error("attaching to a link")]
    AtLink(#[source] io::Error),
    /// The events of a trace cannot be had.
    #[error("listening to the programs")]
    Trace(#[source] aya::maps::MapError),
    /// The object could not be read or its maps could not be made.
    #[error("loading the kernel programs")]
    Load(#[source] aya::EbpfError),
    /// The kernel refused a program.
    #[error("loading the program {program}")]
    Program {
        /// The hook.
        program: &'static str,
        /// Why.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// The object lacks a program.
    #[error("the object has no program {program}")]
    NoProgram {
        /// The hook.
        program: &'static str,
    },
    /// A program could not be attached or exchanged.
    #[error("{what} {program} at {}", cgroup.display())]
    Link {
        /// What was tried.
        what: &'static str,
        /// The hook.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DatapathError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.into(),
            source,
        }
    }

    /// Why a program could not be put at a link.
    pub(crate) fn at_link(source: io::Error) -> Self {
        if source.raw_os_error() == Some(libc::EINVAL) {
            return Self::MissingFeature {
                feature: "eBPF programs at links (TCX)",
                since: "6.6",
            };
        }
        Self::AtLink(source)
    }

    /// Whether trying again later may help without anybody doing something.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Map { .. } | Self::Full { .. })
    }
}
