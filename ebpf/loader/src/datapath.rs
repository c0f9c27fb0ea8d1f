//! The datapath of one node.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use skiff_ebpf_common::{ABI_VERSION, Addr, Config, Metric, RevNat, RevNatKey, maps};

use crate::{
    ClientTable, DatapathError, Limits, PodPaths, Policies, bpffs,
    policy::Waiting,
    programs::Programs,
    stale::{self, StalePeer},
    sys::{self, HashTable, PerCpuCounters},
    tables::{DesiredTables, TableDiff, TableState, Writer, Writes, addr_of},
};

/// Where a node's datapath lives.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// The cgroup2 folder whose processes (and those below) see the node's Services.
    pub cgroup_path: PathBuf,
    /// The folder for pins. If it is not on a BPF file system, one is mounted there; [`crate::teardown`] unmounts it.
    pub bpffs_dir: PathBuf,
    /// The sizes of the tables. Other sizes than last time: the tables are built anew beside the old ones, then swapped.
    pub limits: Limits,
}

/// What the programs must know of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Ports looked up as NodePorts.
    pub node_ports: RangeInclusive<u16>,
    /// The node's addresses, on which NodePorts answer. Loopback addresses need no entry. The first of each family is the
    /// source of packets to backends on other nodes.
    pub addresses: Vec<IpAddr>,
    /// [`netns_cookie`] of the node's network namespace: only there is 127.0.0.1 the node.
    pub netns_cookie: u64,
}

/// The kernel's counters, summed over all CPUs, since the tables were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections (TCP, and UDP by `connect`) sent to a backend.
    pub connects: u64,
    /// Datagrams of unconnected sockets sent to a backend.
    pub datagrams: u64,
    /// Refused because the Service has no backend.
    pub refused: u64,
    /// Backends kept by affinity.
    pub affinity_hits: u64,
    /// Replies whose source was turned back.
    pub replies: u64,
    /// Calls of `getpeername` answered with a Service.
    pub peer_names: u64,
    /// Entries that found no room.
    pub table_full: u64,
    /// Sets that could not be read consistently.
    pub inconsistent: u64,
    /// Packets that went from pod to pod around the bridge.
    pub pod_direct: u64,
    /// Packets of pods that were dropped for a source that is not theirs.
    pub pod_spoofed: u64,
    /// Packets from clients outside, towards a backend.
    pub nat_packets: u64,
    /// Their bytes.
    pub nat_bytes: u64,
    /// Packets of backends, towards a client outside.
    pub nat_reply_packets: u64,
    /// Their bytes.
    pub nat_reply_bytes: u64,
    /// Connections from outside sent to a backend.
    pub nat_flows: u64,
    /// Packets from outside refused because the Service has no backend.
    pub nat_refused: u64,
    /// Dropped: `externalTrafficPolicy: Local` and no backend on this node.
    pub nat_no_local: u64,
    /// Dropped: no free port of the node for a backend on another one, or no way there.
    pub nat_no_way: u64,
    /// Dropped: has been on its way for too long.
    pub nat_expired: u64,
    /// Dropped: the client is not in the Service's source ranges.
    pub nat_source: u64,
    /// Packets that pods' policies did not let out.
    pub policy_egress: u64,
    /// Packets that pods' policies did not let in.
    pub policy_ingress: u64,
    /// Packets of pods whose policies were not known yet.
    pub policy_unknown: u64,
}

impl Counters {
    /// Each with a name for a metric and what it counts.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut all = self.of_sockets();
        all.extend(self.of_packets());
        all
    }

    fn of_sockets(&self) -> Vec<(&'static str, &'static str, u64)> {
        vec![
            ("connects", "Connections sent to a backend.", self.connects),
            (
                "datagrams",
                "Datagrams of unconnected sockets sent to a backend.",
                self.datagrams,
            ),
            (
                "refused",
                "Refused: the Service has no backend.",
                self.refused,
            ),
            (
                "affinity_hits",
                "Backends kept by session affinity or flow.",
                self.affinity_hits,
            ),
            (
                "replies",
                "Datagrams whose source was turned back.",
                self.replies,
            ),
            (
                "peer_names",
                "Calls of getpeername answered with a Service.",
                self.peer_names,
            ),
            ("table_full", "Entries that found no room.", self.table_full),
            (
                "inconsistent",
                "Sets that could not be read consistently.",
                self.inconsistent,
            ),
        ]
    }

    fn of_packets(&self) -> Vec<(&'static str, &'static str, u64)> {
        vec![
            (
                "pod_direct_packets",
                "Packets from pod to pod around the bridge.",
                self.pod_direct,
            ),
            (
                "dropped_spoofed_packets",
                "Packets of pods dropped for a source that is not theirs.",
                self.pod_spoofed,
            ),
            (
                "outside_packets",
                "Packets from clients outside to a backend.",
                self.nat_packets,
            ),
            ("outside_bytes", "Their bytes.", self.nat_bytes),
            (
                "outside_reply_packets",
                "Packets of backends to a client outside.",
                self.nat_reply_packets,
            ),
            ("outside_reply_bytes", "Their bytes.", self.nat_reply_bytes),
            (
                "outside_flows",
                "Connections from outside sent to a backend.",
                self.nat_flows,
            ),
            (
                "outside_refused",
                "Packets from outside refused: the Service has no backend.",
                self.nat_refused,
            ),
            (
                "dropped_no_local_backend_packets",
                "Packets dropped: externalTrafficPolicy Local and no backend on this node.",
                self.nat_no_local,
            ),
            (
                "dropped_no_way_packets",
                "Packets dropped: no free port or no way to a backend on another node.",
                self.nat_no_way,
            ),
            (
                "dropped_expired_packets",
                "Packets dropped: on their way for too long.",
                self.nat_expired,
            ),
            (
                "dropped_source_packets",
                "Packets dropped: the client is not in loadBalancerSourceRanges.",
                self.nat_source,
            ),
        ]
    }
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// [`std::io::Error`] if no socket can be made, or before Linux 5.14.
pub fn netns_cookie() -> std::io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    sys::netns_cookie(socket.as_fd())
}

/// A node's programs and tables, loaded and attached. Dropping it changes nothing in the kernel: the Services go on.
pub struct Datapath {
    writer: Writer,
    config: HashTable<u32, Config>,
    node_addrs: HashTable<Addr, u32>,
    metrics: PerCpuCounters,
    rev_nat: HashTable<RevNatKey, RevNat>,
    bpffs_dir: PathBuf,
    maps_dir: PathBuf,
    cgroup: PathBuf,
    adopted: bool,
    /// Links whose pods wait for their policies: known to [`PodPaths`] and [`Policies`].
    waiting_pods: Waiting,
    /// Not yet at the cgroup: other tables are in force until these are filled.
    waiting: Option<Programs>,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("maps", &self.maps_dir)
            .finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the programs and attaches them. If this node's tables are there already they are adopted with their
    /// contents and the programs exchanged, without a gap. Tables of another ABI or of other sizes stay in force until the
    /// first [`Self::apply`] has filled the new ones.
    ///
    /// # Errors
    /// [`DatapathError`]; a missing permission or kernel feature is named.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        bpffs::check_cgroup2(&config.cgroup_path)?;
        bpffs::ensure(&config.bpffs_dir)?;
        let maps_dir = config.bpffs_dir.join(config.limits.folder());
        let others = bpffs::other_map_folders(&config.bpffs_dir, &maps_dir);
        let adopted = maps_dir.join(maps::CONFIG).exists();
        fs::create_dir_all(&maps_dir).map_err(|e| DatapathError::io("making", &maps_dir, e))?;
        let mut programs = Programs::load(&maps_dir, &config.limits)?;
        programs.pin_link_programs(&config.bpffs_dir)?;
        let waiting = if others.is_empty() {
            programs.install(&config.bpffs_dir.join(bpffs::LINKS), &config.cgroup_path)?;
            None
        } else {
            Some(programs)
        };
        Ok(Self {
            writer: Writer::open(&maps_dir)?,
            config: HashTable::open(&maps_dir, maps::CONFIG)?,
            node_addrs: HashTable::open(&maps_dir, maps::NODE_ADDRS)?,
            metrics: PerCpuCounters::open(&maps_dir, maps::METRICS)?,
            rev_nat: HashTable::open(&maps_dir, maps::REV_NAT)?,
            bpffs_dir: config.bpffs_dir.clone(),
            cgroup: config.cgroup_path.clone(),
            maps_dir,
            adopted,
            waiting_pods: Waiting::default(),
            waiting,
        })
    }

    /// Whether tables of an earlier daemon were found.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Tells the programs about the node. Writes only what differs.
    ///
    /// # Errors
    /// [`DatapathError`] if a map cannot be written.
    pub fn set_node(&mut self, node: &NodeSettings) -> Result<(), DatapathError> {
        let wanted: Vec<Addr> = node.addresses.iter().copied().map(addr_of).collect();
        let have: Vec<Addr> = self
            .node_addrs
            .entries()?
            .into_iter()
            .map(|(addr, _)| addr)
            .collect();
        for addr in wanted.iter().filter(|addr| !have.contains(addr)) {
            self.node_addrs.set(*addr, 1)?;
        }
        let gone: Vec<Addr> = have
            .into_iter()
            .filter(|addr| !wanted.contains(addr))
            .collect();
        self.node_addrs.remove(&gone)?;
        let addr_of_family = |v4| wanted.iter().copied().find(|addr| addr.is_v4() == v4);
        let value = Config {
            abi: ABI_VERSION,
            node_port_first: *node.node_ports.start(),
            node_port_last: *node.node_ports.end(),
            node_netns: node.netns_cookie,
            flags: 0,
            node_v4: addr_of_family(true).map_or(0, |addr| addr.as_v4()),
            node_v6: addr_of_family(false).unwrap_or(Addr::ANY_V6),
            pad: 0,
        };
        if self.config.get(0)? != Some(value) {
            self.config.set(0, value)?;
        }
        Ok(())
    }

    /// What is in the tables.
    #[must_use]
    pub fn state(&self) -> &TableState {
        self.writer.state()
    }

    /// How often the tables were written since [`Self::open`].
    #[must_use]
    pub fn writes(&self) -> Writes {
        self.writer.writes()
    }

    /// What leads from the state of the tables to `desired`.
    #[must_use]
    pub fn diff(&self, desired: &DesiredTables) -> TableDiff {
        TableDiff::between(self.writer.state(), desired)
    }

    /// Makes the change. Each set changes as a whole.
    ///
    /// # Errors
    /// [`DatapathError`]; what was done until then is in [`Self::state`].
    pub fn apply(&mut self, diff: &TableDiff) -> Result<(), DatapathError> {
        self.writer.apply(diff)?;
        if let Some(mut programs) = self.waiting.take() {
            let links = self.bpffs_dir.join(bpffs::LINKS);
            if let Err(error) = programs.install(&links, &self.cgroup) {
                self.waiting = Some(programs);
                return Err(error);
            }
            for folder in bpffs::other_map_folders(&self.bpffs_dir, &self.maps_dir) {
                bpffs::remove_map_folder(&folder)?;
            }
        }
        Ok(())
    }

    /// The sockets that were sent to a backend which their Service no longer has, and which does not drain either.
    ///
    /// # Errors
    /// [`DatapathError`] if the map cannot be read.
    pub fn stale_peers(
        &self,
        draining: &HashSet<SocketAddr>,
    ) -> Result<Vec<StalePeer>, DatapathError> {
        Ok(stale::find(self.state(), self.rev_nat.entries()?, draining))
    }

    /// Forgets what these sockets asked for: they exist no longer.
    ///
    /// # Errors
    /// [`DatapathError`] if the map cannot be written.
    pub fn forget_peers(&self, peers: &[StalePeer]) -> Result<(), DatapathError> {
        let keys: Vec<RevNatKey> = peers.iter().map(|peer| peer.key).collect();
        self.rev_nat.remove(&keys)
    }

    /// The kernel's counters.
    ///
    /// # Errors
    /// [`DatapathError`] if the map cannot be read.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        let get = |metric: Metric| self.metrics.sum(metric as u32);
        Ok(Counters {
            connects: get(Metric::Connects)?,
            datagrams: get(Metric::Datagrams)?,
            refused: get(Metric::Refused)?,
            affinity_hits: get(Metric::AffinityHits)?,
            replies: get(Metric::Replies)?,
            peer_names: get(Metric::PeerNames)?,
            table_full: get(Metric::TableFull)?,
            inconsistent: get(Metric::Inconsistent)?,
            pod_direct: get(Metric::PodDirect)?,
            pod_spoofed: get(Metric::PodSpoofed)?,
            nat_packets: get(Metric::NatPackets)?,
            nat_bytes: get(Metric::NatBytes)?,
            nat_reply_packets: get(Metric::NatReplyPackets)?,
            nat_reply_bytes: get(Metric::NatReplyBytes)?,
            nat_flows: get(Metric::NatFlows)?,
            nat_refused: get(Metric::NatRefused)?,
            nat_no_local: get(Metric::NatNoLocal)?,
            nat_no_way: get(Metric::NatNoWay)?,
            nat_expired: get(Metric::NatExpired)?,
            nat_source: get(Metric::NatSource)?,
            policy_egress: get(Metric::PolicyEgress)?,
            policy_ingress: get(Metric::PolicyIngress)?,
            policy_unknown: get(Metric::PolicyUnknown)?,
        })
    }

    /// The ways from pod to pod, in the tables of this datapath.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be opened.
    pub fn pods(&self) -> Result<PodPaths, DatapathError> {
        let waiting = Waiting::clone(&self.waiting_pods);
        PodPaths::open(&self.bpffs_dir, &self.maps_dir, self.adopted, waiting)
    }

    /// What the pods' policies are, in the tables of this datapath.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be opened or a table not be read.
    pub fn policies(&self) -> Result<Policies, DatapathError> {
        Policies::open(&self.maps_dir, Waiting::clone(&self.waiting_pods))
    }

    /// The addresses of network namespaces, in the tables of this datapath.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be opened.
    pub fn clients(&self) -> Result<ClientTable, DatapathError> {
        ClientTable::open(&self.maps_dir)
    }

    /// The folder with the pins.
    #[must_use]
    pub fn bpffs_dir(&self) -> &Path {
        &self.bpffs_dir
    }
}
