//! Connections of clients outside: a look at them, and the end of those that have ended.
//!
//! The kernel's table drops the oldest when it is full, so it needs no help to go on; sweeping keeps it from being full of
//! what nobody needs. A connection has an entry for each direction, and goes when both have been silent for long enough.

use std::{collections::HashMap, net::SocketAddr, path::Path, time::Duration};

use skiff_ebpf_common::{self as abi, Flow, FlowKey, maps};

use crate::{
    DatapathError, bpffs,
    inspect::socket_addr,
    sys::{self, HashTable},
    tables::{Protocol, protocol_of},
};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowState {
    /// Nothing but packets that open it (TCP), or from one side only (UDP).
    Opening,
    /// Both sides talk.
    Open,
    /// Both sides have ended it, or one has broken it off.
    Closing,
    /// It is being refused.
    Refused,
}

impl FlowState {
    /// How long it may be silent. As conntrack has it, but for an open TCP connection: that has the kernel's two hours of
    /// keepalive and some more, not five days.
    fn patience(self, protocol: Protocol) -> Duration {
        let seconds = match (protocol, self) {
            (Protocol::Tcp, Self::Opening) => 60,
            (Protocol::Tcp, Self::Open) => 8_000,
            (Protocol::Tcp, Self::Closing) => 120,
            (Protocol::Udp, Self::Open | Self::Closing) => 120,
            (Protocol::Udp, Self::Opening) => 30,
            (_, Self::Refused) => 10,
        };
        Duration::from_secs(seconds)
    }
}

/// A connection of a client outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatFlow {
    /// The protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// What it asked for.
    pub asked: SocketAddr,
    /// Where it was sent.
    pub backend: SocketAddr,
    /// What the backend sees as its client, if that is this node.
    pub source: Option<SocketAddr>,
    /// How far it is.
    pub state: FlowState,
    /// How long it has been silent; true to a second.
    pub idle: Duration,
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that stay.
    pub kept: usize,
    /// Entries removed.
    pub removed: usize,
    /// How many there can be.
    pub limit: u32,
    /// No room is left: the oldest go for new ones.
    pub evicts: bool,
}

/// The connections of a node.
#[derive(Debug)]
pub struct FlowTable {
    flows: HashTable<FlowKey, Flow>,
}

impl FlowTable {
    /// Opens the table of the node whose pins are in `bpffs_dir`.
    ///
    /// # Errors
    /// [`DatapathError::Io`] if there is none; [`DatapathError::MapShape`] if another version made it.
    pub fn open(bpffs_dir: &Path) -> Result<Self, DatapathError> {
        let folder = bpffs::maps_in_force(bpffs_dir)?;
        let flows = HashTable::open(&folder, maps::NAT_FLOWS)?;
        Ok(Self { flows })
    }

    /// All connections, in order.
    ///
    /// # Errors
    /// [`DatapathError`] if the table cannot be read.
    pub fn list(&self) -> Result<Vec<NatFlow>, DatapathError> {
        let entries: HashMap<FlowKey, Flow> = self.flows.entries()?.into_iter().collect();
        let now = sys::monotonic();
        let mut all: Vec<NatFlow> = entries
            .iter()
            .filter(|(_, flow)| flow.flags & abi::FLOW_REPLY == 0)
            .filter_map(|(key, flow)| describe(key, flow, entries.get(&other(key, flow)), now))
            .collect();
        all.sort_by_key(|flow| (flow.asked, flow.client, flow.protocol));
        Ok(all)
    }

    /// Removes the connections that have been silent for too long.
    ///
    /// # Errors
    /// [`DatapathError`] if the table cannot be read or written.
    pub fn sweep(&self) -> Result<Swept, DatapathError> {
        self.sweep_at(sys::monotonic())
    }

    /// As [`Self::sweep`] at another time of the monotonic clock: for tests.
    ///
    /// # Errors
    /// [`DatapathError`] if the table cannot be read or written.
    pub fn sweep_at(&self, now: Duration) -> Result<Swept, DatapathError> {
        let entries: HashMap<FlowKey, Flow> = self.flows.entries()?.into_iter().collect();
        let gone: Vec<FlowKey> = entries
            .iter()
            .filter(|(key, flow)| is_over(key, flow, entries.get(&other(key, flow)), now))
            .map(|(key, _)| *key)
            .collect();
        self.flows.remove(&gone)?;
        Ok(Swept {
            kept: entries.len() - gone.len(),
            removed: gone.len(),
            limit: self.flows.limit(),
            evicts: evicts(entries.len(), self.flows.limit()),
        })
    }
}

/// Whether a table that drops its oldest entries has begun to. Each CPU keeps free ones for itself, so it begins earlier than at
/// its last entry (`bpf_lru_list.c`: 128 a CPU, fewer of small tables).
fn evicts(entries: usize, limit: u32) -> bool {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = limit as usize;
    let kept_by_each = (limit / cpus / 2).clamp(1, 128);
    entries + cpus * kept_by_each >= limit
}

/// The key of the other direction.
fn other(key: &FlowKey, flow: &Flow) -> FlowKey {
    FlowKey {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        ..*key
    }
}

/// Both directions together.
fn state_of(flow: &Flow, answers: Option<&Flow>, protocol: Protocol) -> FlowState {
    let (one, two) = (flow.state, answers.map_or(0, |answers| answers.state));
    if flow.flags & abi::FLOW_REFUSED != 0 {
        FlowState::Refused
    } else if (one | two) & abi::FLOW_RESET != 0 || one & two & abi::FLOW_FIN != 0 {
        FlowState::Closing
    } else {
        // A client's third TCP packet shows that it was answered; of UDP both sides must be seen.
        let open = match protocol {
            Protocol::Tcp => one | two,
            Protocol::Udp => one & two,
        };
        if open & abi::FLOW_OPEN != 0 {
            FlowState::Open
        } else {
            FlowState::Opening
        }
    }
}

fn idle(flow: &Flow, answers: Option<&Flow>, now: Duration) -> Duration {
    let seen = answers.map_or(0, |answers| answers.last_seen);
    now.saturating_sub(Duration::from_nanos(flow.last_seen.max(seen)))
}

fn is_over(key: &FlowKey, flow: &Flow, answers: Option<&Flow>, now: Duration) -> bool {
    protocol_of(key.proto).is_none_or(|protocol| {
        let state = state_of(flow, answers, protocol);
        idle(flow, answers, now) > state.patience(protocol)
    })
}

fn describe(key: &FlowKey, flow: &Flow, answers: Option<&Flow>, now: Duration) -> Option<NatFlow> {
    let protocol = protocol_of(key.proto)?;
    let is_remote = flow.flags & abi::FLOW_REMOTE != 0;
    Some(NatFlow {
        protocol,
        client: socket_addr(key.src, key.sport),
        asked: socket_addr(key.dst, key.dport),
        backend: socket_addr(flow.dst, flow.dport),
        source: is_remote.then(|| socket_addr(flow.src, flow.sport)),
        state: state_of(flow, answers, protocol),
        idle: idle(flow, answers, now),
    })
}
