//! The programs at the node's end of each pod's veth pair: one for what the pod sends, one for what it gets.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use skiff_ebpf_common::{self as abi, Addr, POD_DIRECT, POD_POLICIES, PodSource, maps};

use crate::{
    DatapathError, bpffs,
    policy::Waiting,
    sys::{self, HashTable, Way},
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
    /// Whether nothing but the node reaches a pod that is new here, and it nobody, until [`crate::Policies::admit`] is called.
    pub closed: bool,
}

/// The ways from pod to pod on one node. They are pinned: nothing changes when this is dropped.
///
/// Methods that attach must be called on a thread in the node's network namespace: that is where the kernel looks for
/// the link.
#[derive(Debug)]
pub struct PodPaths {
    hooks: [Hook; 2],
    ports: HashTable<Addr, abi::PodPort>,
    sources: HashTable<u32, PodSource>,
    waiting: Waiting,
}

/// A program, where it is attached, and the folder with the pins of its attachments.
#[derive(Debug)]
struct Hook {
    program: OwnedFd,
    way: Way,
    dir: PathBuf,
}

impl Hook {
    fn open(bpffs_dir: &Path, name: &str, way: Way) -> Result<Self, DatapathError> {
        let dir = bpffs_dir.join(bpffs::pods_folder(name));
        fs::create_dir_all(&dir).map_err(|e| DatapathError::io("making", &dir, e))?;
        let pin = bpffs_dir.join(name);
        let program = sys::obj_get(&pin).map_err(|e| DatapathError::io("opening", &pin, e))?;
        Ok(Self { program, way, dir })
    }

    fn pin(&self, ifindex: u32) -> PathBuf {
        self.dir.join(ifindex.to_string())
    }

    /// Puts today's program in the place of an earlier one's wherever that is attached.
    fn exchange(&self) -> Result<(), DatapathError> {
        for pin in bpffs::children(&self.dir) {
            let exchanged = sys::obj_get(&pin)
                .and_then(|link| sys::link_update(link.as_fd(), self.program.as_fd()));
            if exchanged.is_err() {
                // Its link is gone.
                bpffs::remove_link(&pin)?;
            }
        }
        Ok(())
    }

    fn attach(&self, ifindex: u32) -> Result<(), DatapathError> {
        let pin = self.pin(ifindex);
        if let Ok(link) = sys::obj_get(&pin) {
            if sys::link_update(link.as_fd(), self.program.as_fd()).is_ok() {
                return Ok(());
            }
            bpffs::remove_link(&pin)?;
        }
        let link = sys::link_create_tcx(self.program.as_fd(), ifindex, self.way)
            .map_err(DatapathError::at_link)?;
        sys::obj_pin(link.as_fd(), &pin).map_err(|e| DatapathError::io("pinning", &pin, e))
    }
}

impl PodPaths {
    /// Opens the tables. If they are those of an earlier daemon, today's programs take the place of that one's wherever
    /// they are attached; else those go on with their own tables until [`Self::attach`].
    pub(crate) fn open(
        bpffs_dir: &Path,
        maps_dir: &Path,
        adopted: bool,
        waiting: Waiting,
    ) -> Result<Self, DatapathError> {
        let [egress, ingress] = bpffs::POD_PROGRAMS;
        let paths = Self {
            hooks: [
                Hook::open(bpffs_dir, egress, Way::In)?,
                Hook::open(bpffs_dir, ingress, Way::Out)?,
            ],
            ports: HashTable::open(maps_dir, maps::POD_PORTS)?,
            sources: HashTable::open(maps_dir, maps::POD_SOURCES)?,
            waiting,
        };
        if adopted {
            for hook in &paths.hooks {
                hook.exchange()?;
            }
        }
        Ok(paths)
    }

    /// Watches what this pod sends and gets, and lets the others reach it directly. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`DatapathError::MissingFeature`] before Linux 6.6: traffic takes the bridge then. [`DatapathError`] if the link is
    /// gone or a table full.
    pub fn attach(&self, pod: &PodPort) -> Result<(), DatapathError> {
        let addrs = || pod.addrs.iter().copied().map(addr_of);
        let mut waiting = self.waiting.lock();
        let mut source = PodSource {
            mac: abi::Mac::from_octets(pod.mac),
            flags: if pod.direct { POD_DIRECT } else { 0 },
            v4: addrs().find(Addr::is_v4).map_or(0, |addr| addr.as_v4()),
            v6: addrs().find(|addr| !addr.is_v4()).unwrap_or(Addr::ANY_V6),
        };
        let known = self.sources.get(pod.ifindex)?;
        let known = known
            .filter(|known| (known.mac, known.v4, known.v6) == (source.mac, source.v4, source.v6));
        source.flags |= match known {
            Some(known) => known.flags & POD_POLICIES,
            None if pod.closed => POD_POLICIES,
            None => 0,
        };
        if pod.closed && source.flags & POD_POLICIES != 0 {
            waiting.insert(pod.ifindex);
        }
        self.sources.set(pod.ifindex, source)?;
        let attached = self.hooks.iter().map(|hook| hook.attach(pod.ifindex));
        if let Some(error) = attached.filter_map(Result::err).next() {
            waiting.remove(&pod.ifindex);
            self.forget(pod.ifindex)?;
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
                mac: abi::Mac::from_octets(pod.mac),
                flags: source.flags,
            };
            self.ports.set(addr, port)?;
        }
        Ok(())
    }

    /// Undoes [`Self::attach`]; what is gone already is no error.
    ///
    /// # Errors
    /// [`DatapathError`] if a table cannot be written.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.waiting.lock().remove(&ifindex);
        self.forget(ifindex)
    }

    fn forget(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.ports.remove(&self.addrs_at(ifindex)?)?;
        for hook in &self.hooks {
            bpffs::remove_link(&hook.pin(ifindex))?;
        }
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
        let pinned = self.hooks.iter().flat_map(|h| bpffs::children(&h.dir));
        let pinned = pinned.filter_map(|pin| pin.file_name()?.to_str()?.parse().ok());
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
