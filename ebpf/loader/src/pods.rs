//! The ways from pod to pod: a program at the node's end of each pod's veth pair.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use skiff_ebpf_common::{MacKey, POD_DIRECT, PodSource, maps};

use crate::{
    DatapathError, bpffs,
    sys::{self, HashTable},
};

/// Where a pod is joined to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodPort {
    /// The number of the node's end of the veth pair, in the node's network namespace.
    pub ifindex: u32,
    /// The hardware address of the pod's end.
    pub mac: [u8; 6],
    /// The pod's address.
    pub addr: Ipv4Addr,
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
    ports: HashTable<MacKey, u32>,
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
        let source = PodSource {
            mac: pod.mac,
            flags: if pod.direct { POD_DIRECT } else { 0 },
            addr: u32::from_ne_bytes(pod.addr.octets()),
        };
        self.sources.set(pod.ifindex, source)?;
        if let Err(error) = self.attach_program(pod.ifindex) {
            self.sources.remove(&[pod.ifindex])?;
            return Err(error);
        }
        if !pod.direct {
            return self.ports.remove(&[key(pod.mac)]);
        }
        // Last: now that it is watched itself.
        self.ports.set(key(pod.mac), pod.ifindex)
    }

    fn attach_program(&self, ifindex: u32) -> Result<(), DatapathError> {
        let pin = self.pin(ifindex);
        if let Ok(link) = sys::obj_get(&pin) {
            if sys::link_update(link.as_fd(), self.program.as_fd()).is_ok() {
                return Ok(());
            }
            bpffs::remove_link(&pin)?;
        }
        let link = sys::link_create_tcx_ingress(self.program.as_fd(), ifindex).map_err(explain)?;
        sys::obj_pin(link.as_fd(), &pin).map_err(|e| DatapathError::io("pinning", &pin, e))
    }

    /// Undoes [`Self::attach`]; what is gone already is no error.
    ///
    /// # Errors
    /// [`DatapathError`] if a table cannot be written.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        let entries = self.ports.entries()?;
        let keys: Vec<MacKey> = entries
            .into_iter()
            .filter(|(_, port)| *port == ifindex)
            .map(|(key, _)| key)
            .collect();
        self.ports.remove(&keys)?;
        bpffs::remove_link(&self.pin(ifindex))?;
        self.sources.remove(&[ifindex])
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
        let reached = self.ports.entries()?.into_iter().map(|(_, port)| port);
        let all: std::collections::BTreeSet<u32> = pinned.chain(known).chain(reached).collect();
        let gone = all.into_iter().filter(|port| !keep.contains(port));
        // All are tried; the first failure is told.
        let results: Vec<_> = gone.map(|port| self.detach(port)).collect();
        results.into_iter().collect()
    }
}

fn key(mac: [u8; 6]) -> MacKey {
    MacKey { mac, pad: 0 }
}

fn explain(source: io::Error) -> DatapathError {
    if source.raw_os_error() == Some(libc::EINVAL) {
        return DatapathError::MissingFeature {
            feature: "eBPF programs at links (TCX)",
            since: "6.6",
        };
    }
    DatapathError::PodLink(source)
}
