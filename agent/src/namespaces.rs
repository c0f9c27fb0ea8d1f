//! The network namespaces that have sockets of the node, and that use the node's Services.

use std::{
    collections::HashSet,
    error::Error,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use skiff_netns::{NetNs, NodeNetns};
use skiff_service_proxy::{NodeListeners, NodeNamespaces};

/// Those of the processes in the node's cgroup: they are whose sockets the datapath translates, whatever runs them.
pub(crate) struct CgroupNamespaces {
    /// The node's folder in the cgroup2 hierarchy.
    pub(crate) cgroup: PathBuf,
    /// The node's own.
    pub(crate) node: NodeNetns,
}

impl CgroupNamespaces {
    /// One of each that a process is in, but for the node's own.
    fn of_processes(&self) -> io::Result<Vec<NetNs>> {
        let own = Path::new("/proc/thread-self/ns/net");
        let own = fs::metadata(self.node.path().unwrap_or(own))?;
        let mut seen = HashSet::from([(own.dev(), own.ino())]);
        let mut all = Vec::new();
        let mut folders = vec![self.cgroup.clone()];
        while let Some(folder) = folders.pop() {
            for pid in processes(&folder) {
                let path = format!("/proc/{pid}/ns/net");
                // A process that has ended has no sockets.
                let Ok(namespace) = fs::metadata(&path) else {
                    continue;
                };
                if seen.insert((namespace.dev(), namespace.ino())) {
                    all.extend(NetNs::open(&path).ok());
                }
            }
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            let below = entries.flatten().filter(|entry| {
                let kind = entry.file_type();
                kind.is_ok_and(|kind| kind.is_dir())
            });
            folders.extend(below.map(|entry| entry.path()));
        }
        Ok(all)
    }
}

/// None if the cgroup has gone or is threaded.
fn processes(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

impl NodeNamespaces for CgroupNamespaces {
    fn run_in_each(
        &self,
        f: &mut (dyn FnMut() + Send),
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.node.run(&mut *f)?;
        for namespace in self.of_processes()? {
            namespace.run(&mut *f)?;
        }
        Ok(())
    }
}

/// Listens in the node's own namespace.
pub(crate) struct NodeSockets(pub(crate) NodeNetns);

impl NodeListeners for NodeSockets {
    fn listen(&self, port: u16) -> io::Result<TcpListener> {
        // `::` takes IPv4, too. Where there is no IPv6 there is IPv4 alone.
        let listen = || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| {
                match error.raw_os_error() {
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                    }
                    _ => Err(error),
                }
            })
        };
        self.0.run(listen).map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_line_by_line_and_a_cgroup_that_is_gone_has_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "1\n42\n").unwrap();
        assert_eq!(processes(folder.path()), [1, 42]);
        assert!(processes(&folder.path().join("gone")).is_empty());
    }

    #[test]
    fn a_namespace_with_many_processes_is_listed_once_and_the_nodes_own_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("pod");
        fs::create_dir(&below).unwrap();
        let own = std::process::id().to_string();
        fs::write(folder.path().join("cgroup.procs"), &own).unwrap();
        fs::write(below.join("cgroup.procs"), format!("{own}\n4294967295\n")).unwrap();
        let namespaces = CgroupNamespaces {
            cgroup: folder.path().to_owned(),
            node: NodeNetns::machine(),
        };
        assert!(namespaces.of_processes().unwrap().is_empty());
    }
}
