//! The ways from pod to pod: a program at the node's end of each pod's veth pair.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use skiff_ebpf_common::{self as abi, Addr, POD_DIRECT, PodSource, maps};

use crate::{
    DatapathError, bpffs,
    sys::{self, HashTable},
    tables::addr_of,
};

/// Where a pod is joined to its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodPort {
    /// The number of the node's end of the veth pair, in the node's network namespace.
    pub ifindex: u32,
    /// The hardware address of the pod's end.
    pub mac: [u8; 6],
    /// The pod's addresses: at most one of each family.
    pub addrs: Vec<IpAddr>,
    /// Whether packets to and from other pods may go around the bridge. Otherwise only the source is checked.
    pub direct: bool,
}

/// The ways from pod to pod on one node. They are pinned: nothing changes when this is dropped.
///
/// Methods that attach must be called on a thread in the node's network namespace: that is where the kernel looks for
/// the link.
#[derive(Debug)]
pub struct PodPaths {
    program: OwnedFd,
    ports: HashTable<Addr, abi::PodPort>,
    sources: HashTable<u32, PodSource>,
    dir: PathBuf,
}

impl PodPaths {
    /// Opens the tables and puts today's program in the place of an earlier one's wherever that is attached.
    pub(crate) fn open(bpffs_dir: &Path, maps_dir: &Path) -> Result<Self, DatapathError> {
        let dir = bpffs_dir.join(bpffs::PODS);
        fs::create_dir_all(&dir).map_err(|e| DatapathError::io("making", &dir, e))?;
        let pin = bpffs_dir.join(bpffs::POD_PROGRAM);
        let program = sys::obj_get(&pin).map_err(|e| DatapathError::io("opening", &pin, e))?;
        let paths = Self {
            program,
            ports: HashTable::open(maps_dir, maps::POD_PORTS)?,
            sources: HashTable::open(maps_dir, maps::POD_SOURCES)?,
            dir,
        };
        for pin in bpffs::children(&paths.dir) {
            let exchanged = sys::obj_get(&pin)
                .and_then(|link| sys::link_update(link.as_fd(), paths.program.as_fd()));
            if exchanged.is_err() {
                // Its link is gone.
                bpffs::remove_link(&pin)?;
            }
        }
        Ok(paths)
    }

    fn pin(&self, ifindex: u32) -> PathBuf {
        self.dir.join(ifindex.to_string())
    }

    /// Watches what this pod sends, and lets the others reach it directly. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`DatapathError::MissingFeature`] before Linux 6.6: traffic takes the bridge then. [`DatapathError`] if the link is
    /// gone or a table full.
    pub fn attach(&self, pod: &PodPort) -> Result<(), DatapathError> {
        let addrs = || pod.addrs.iter().copied().map(addr_of);
        let flags = if pod.direct { POD_DIRECT } else { 0 };
        let source = PodSource {
            mac: pod.mac,
            flags,
            v4: addrs().find(Addr::is_v4).map_or(0, |addr| addr.as_v4()),
            v6: addrs().find(|addr| !addr.is_v4()).unwrap_or(Addr::ANY_V6),
        };
        self.sources.set(pod.ifindex, source)?;
        if let Err(error) = self.attach_program(pod.ifindex) {
            self.sources.remove(&[pod.ifindex])?;
            return Err(error);
        }
        let stale: Vec<Addr> = self.addrs_at(pod.ifindex)?;
        let stale: Vec<Addr> = stale
            .into_iter()
            .filter(|have| addrs().all(|addr| addr != *have))
            .collect();
        self.ports.remove(&stale)?;
        // Last: now that it is watched itself.
        for addr in addrs() {
            let port = abi::PodPort {
                ifindex: pod.ifindex,
                mac: pod.mac,
                flags,
            };
            self.ports.set(addr, port)?;
        }
        Ok(())
    }

    fn attach_program(&self, ifindex: u32) -> Result<(), DatapathError> {
        let pin = self.pin(ifindex);
        if let Ok(link) = sys::obj_get(&pin) {
            if sys::link_update(link.as_fd(), self.program.as_fd()).is_ok() {
                return Ok(());
            }
            bpffs::remove_link(&pin)?;
        }
        let link = sys::link_create_tcx(self.program.as_fd(), ifindex, sys::Way::In)
            .map_err(DatapathError::at_link)?;
        sys::obj_pin(link.as_fd(), &pin).map_err(|e| DatapathError::io("pinning", &pin, e))
    }

    /// Undoes [`Self::attach`]; what is gone already is no error.
    ///
    /// # Errors
    /// [`DatapathError`] if a table cannot be written.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.ports.remove(&self.addrs_at(ifindex)?)?;
        bpffs::remove_link(&self.pin(ifindex))?;
        self.sources.remove(&[ifindex])
    }

    fn addrs_at(&self, ifindex: u32) -> Result<Vec<Addr>, DatapathError> {
        let entries = self.ports.entries()?.into_iter();
        let of_link = entries.filter(|(_, port)| port.ifindex == ifindex);
        Ok(of_link.map(|(addr, _)| addr).collect())
    }

    /// Undoes it for every link but these.
    ///
    /// # Errors
    /// [`DatapathError`] if a table cannot be written.
    pub fn retain(&self, keep: &[u32]) -> Result<(), DatapathError> {
        let pinned = bpffs::children(&self.dir);
        let pinned = pinned
            .iter()
            .filter_map(|pin| pin.file_name()?.to_str()?.parse().ok());
        let known = self.sources.entries()?.into_iter().map(|(port, _)| port);
        let reached = self
            .ports
            .entries()?
            .into_iter()
            .map(|(_, port)| port.ifindex);
        let all: std::collections::BTreeSet<u32> = pinned.chain(known).chain(reached).collect();
        let gone = all.into_iter().filter(|port| !keep.contains(port));
        // All are tried; the first failure is told.
        let results: Vec<_> = gone.map(|port| self.detach(port)).collect();
        results.into_iter().collect()
    }
}
