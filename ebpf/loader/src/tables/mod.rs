//! What the datapath is to do, as values: frontends, backend sets, and the difference between two states.

mod encode;
mod known;
mod maglev;
mod runs;
mod sources;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

pub(crate) use encode::{addr_of, backend_of, frontend_of, ip_of, proto_of, protocol_of};
use known::Known;

use crate::policy::Prefix;
pub(crate) use writer::Writer;
pub use writer::Writes;

/// The protocols that Services are translated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The families of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of an address.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where clients go: an address and port that Services own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    /// A ClusterIP, an external IP or a load balancer's IP.
    Address {
        /// The address.
        addr: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
    },
    /// A port on every address of the node.
    NodePort {
        /// Of which addresses.
        family: IpFamily,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
    },
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                addr,
                port,
                protocol,
            } => {
                write!(f, "{}/{protocol:?}", SocketAddr::new(*addr, *port))
            }
            Self::NodePort {
                family,
                port,
                protocol,
            } => write!(f, "node-{family:?}:{port}/{protocol:?}"),
        }
    }
}

/// Names a backend set: a hash that is the same in every process, so that a set is found again after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetId(u64);

/// Marks the ids of sets for packets from outside.
const OUTSIDE: u64 = 1 << 63;

impl SetId {
    /// The id for the parts of a name. The parts must not contain a zero byte.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        // Zero means "nobody" in the map.
        Self((Self::hash(parts) & !OUTSIDE).max(1))
    }

    /// The id of a set for packets from outside: its backends are laid out in Maglev's order.
    #[must_use]
    pub fn of_outside(parts: &[&str]) -> Self {
        Self(Self::hash(parts) | OUTSIDE)
    }

    fn is_outside(self) -> bool {
        self.0 & OUTSIDE != 0
    }

    fn hash(parts: &[&str]) -> u64 {
        // FNV-1a, then the finaliser of MurmurHash3: stable by definition, unlike std's hashers.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        hash ^ (hash >> 33)
    }

    pub(crate) fn from_owner(owner: u64) -> Option<Self> {
        (owner != 0).then_some(Self(owner))
    }

    pub(crate) fn owner(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// The pod's address.
    pub addr: IpAddr,
    /// The target port.
    pub port: u16,
    /// It is on this node.
    pub local: bool,
    /// It is terminating, and used because nothing else is ready.
    pub terminating: bool,
}

impl Backend {
    /// A ready backend somewhere.
    #[must_use]
    pub fn new(addr: IpAddr, port: u16) -> Self {
        Self {
            addr,
            port,
            local: false,
            terminating: false,
        }
    }
}

/// How a frontend is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSpec {
    /// The backends for clients on this node. Connections are refused if it is empty.
    pub inside: SetId,
    /// The backends for packets from outside ([`SetId::of_outside`]); none: it is closed to them.
    pub outside: Option<SetId>,
    /// `sessionAffinity: ClientIP` for so many seconds; 0 for none.
    pub affinity_seconds: u32,
    /// `externalTrafficPolicy: Local`: while [`Self::outside`] is empty and [`Self::inside`] is not, packets from outside are
    /// dropped, not refused.
    pub local_only: bool,
    /// The clients that are served, as prefixes in order; none: all are.
    pub sources: Option<Arc<[Prefix]>>,
    /// TCP connections of the node's sockets are ended when their backend leaves [`Self::inside`].
    pub ends_streams: bool,
}

impl FrontendSpec {
    /// A frontend for clients on this node.
    #[must_use]
    pub fn to(inside: SetId) -> Self {
        Self {
            inside,
            outside: None,
            affinity_seconds: 0,
            local_only: false,
            sources: None,
            ends_streams: false,
        }
    }
}

/// The whole state that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredTables {
    /// The backend sets. Order within a set has no meaning.
    pub sets: HashMap<SetId, Vec<Backend>>,
    /// The frontends; each refers to sets above.
    pub frontends: HashMap<Frontend, FrontendSpec>,
}

/// A change. Applied in the order of the fields: nothing ever refers to what is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableDiff {
    /// Sets with their new members, each published at once.
    pub publish: Vec<(SetId, Vec<Backend>)>,
    /// Frontends that are new or served differently.
    pub upsert: Vec<(Frontend, FrontendSpec)>,
    /// Frontends that are gone.
    pub remove_frontends: Vec<Frontend>,
    /// Sets that are gone.
    pub remove_sets: Vec<SetId>,
}

impl TableDiff {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.publish.is_empty()
            && self.upsert.is_empty()
            && self.remove_frontends.is_empty()
            && self.remove_sets.is_empty()
    }

    /// Whether a client may have a backend that it would be given no longer.
    #[must_use]
    pub fn takes_away(&self, state: &TableState) -> bool {
        let served = |(frontend, _): &(Frontend, _)| state.frontends.contains_key(frontend);
        !self.remove_frontends.is_empty()
            || !self.remove_sets.is_empty()
            || self.upsert.iter().any(served)
            || self.publish.iter().any(|(id, members)| {
                let stay: HashSet<_> = members.iter().map(|b| (b.addr, b.port)).collect();
                let have = state.sets.get(id).into_iter().flat_map(|set| &set.members);
                have.map(|member| (member.backend.addr, member.backend.port))
                    .any(|backend| !stay.contains(&backend))
            })
    }

    /// The addresses where UDP is served from now on.
    #[must_use]
    pub fn new_frontends(&self, state: &TableState) -> Vec<SocketAddr> {
        let new = self
            .upsert
            .iter()
            .filter_map(|(frontend, _)| match frontend {
                Frontend::Address {
                    addr,
                    port,
                    protocol: Protocol::Udp,
                } if !state.frontends.contains_key(frontend) => Some(SocketAddr::new(*addr, *port)),
                _ => None,
            });
        new.collect()
    }

    /// What leads from `state` to `desired`.
    #[must_use]
    pub fn between(state: &TableState, desired: &DesiredTables) -> Self {
        let publish = desired
            .sets
            .iter()
            .filter(|(id, members)| !state.set_is(**id, members))
            .map(|(id, members)| (*id, members.clone()))
            .collect();
        let upsert = desired
            .frontends
            .iter()
            .filter(|(frontend, spec)| state.frontends.get(frontend) != Some(spec))
            .map(|(frontend, spec)| (*frontend, spec.clone()))
            .collect();
        let remove_frontends = state
            .frontends
            .keys()
            .filter(|f| !desired.frontends.contains_key(f))
            .copied();
        let remove_sets = state
            .sets
            .keys()
            .filter(|id| !desired.sets.contains_key(id))
            .copied();
        Self {
            publish,
            upsert,
            remove_frontends: remove_frontends.collect(),
            remove_sets: remove_sets.collect(),
        }
    }
}

/// What is in the maps: a mirror, kept with every write and read back at start.
#[derive(Debug, Default)]
pub struct TableState {
    sets: HashMap<SetId, SetState>,
    pub(crate) frontends: HashMap<Frontend, FrontendSpec>,
}

/// A set as it lies in the maps.
#[derive(Debug, Default)]
struct SetState {
    index: u32,
    run: Run,
    members: Vec<Member>,
}

/// The slots of a set.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    base: u32,
    count: u32,
}

/// A backend and its id.
#[derive(Clone, Copy, Debug)]
struct Member {
    backend: Backend,
    id: u32,
}

impl TableState {
    /// As if these had been written.
    #[cfg(test)]
    pub(crate) fn for_tests(
        sets: impl IntoIterator<Item = (SetId, Vec<Backend>)>,
        frontends: impl IntoIterator<Item = (Frontend, FrontendSpec)>,
    ) -> Self {
        let set = |(id, members): (SetId, Vec<Backend>)| {
            let members = members.into_iter();
            let members = members.map(|backend| Member { backend, id: 0 }).collect();
            let set = SetState {
                members,
                ..SetState::default()
            };
            (id, set)
        };
        Self {
            sets: sets.into_iter().map(set).collect(),
            frontends: frontends.into_iter().collect(),
        }
    }

    /// The members of a set, if it exists.
    #[must_use]
    pub fn set(&self, id: SetId) -> Option<Vec<Backend>> {
        let set = self.sets.get(&id)?;
        Some(set.members.iter().map(|member| member.backend).collect())
    }

    /// How a frontend is served.
    #[must_use]
    pub fn frontend(&self, frontend: &Frontend) -> Option<FrontendSpec> {
        self.frontends.get(frontend).cloned()
    }

    pub(crate) fn spec(&self, frontend: &Frontend) -> Option<&FrontendSpec> {
        self.frontends.get(frontend)
    }

    /// All frontends.
    pub fn frontends(&self) -> impl Iterator<Item = (&Frontend, &FrontendSpec)> {
        self.frontends.iter()
    }

    /// All sets.
    pub fn set_ids(&self) -> impl Iterator<Item = SetId> + '_ {
        self.sets.keys().copied()
    }

    /// Whether the set exists with exactly these members, in whatever order.
    #[must_use]
    pub fn set_is(&self, id: SetId, members: &[Backend]) -> bool {
        let Some(set) = self.sets.get(&id) else {
            return false;
        };
        if set.members.len() != members.len() {
            return false;
        }
        if set.members.iter().map(|member| &member.backend).eq(members) {
            return true;
        }
        let have = Known::of(&set.members);
        members
            .iter()
            .all(|member| have.get(member).is_some_and(|have| have.backend == *member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_ids_are_stable_and_depend_on_where_parts_end() {
        assert_eq!(
            SetId::of(&["dev", "web", "http"]).to_string(),
            SetId::of(&["dev", "web", "http"]).to_string()
        );
        assert_ne!(SetId::of(&["a", "bc"]), SetId::of(&["ab", "c"]));
        let outside = SetId::of_outside(&["default", "kubernetes", "https"]);
        assert!(
            outside.is_outside() && !SetId::of(&["default", "kubernetes", "https"]).is_outside()
        );
        // A constant of the ABI: a change here loses every set at the next restart.
        assert_eq!(
            SetId::of(&["default", "kubernetes", "https"]).to_string(),
            "6439213fa5648a2d"
        );
    }
}
