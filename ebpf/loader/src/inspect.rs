//! A look at the tables of a running node from another process. Reads only.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use skiff_ebpf_common::{self as abi, Plain, maps};

use crate::{
    DatapathError, bpffs,
    sys::{ArrayTable, HashTable},
    tables::{Backend, Frontend, backend_of, frontend_of, ip_of},
};

/// The tables of one node.
#[derive(Debug)]
pub struct Inspector {
    folder: PathBuf,
    sets: ArrayTable<abi::BackendSet>,
    slots: ArrayTable<abi::Slot>,
    backends: ArrayTable<abi::Backend>,
    connections: ArrayTable<u64>,
}

/// A frontend and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFrontend {
    /// Where clients go.
    pub frontend: Frontend,
    /// The backends for clients on the node.
    pub inside: Vec<Backend>,
    /// The backends for packets from outside; none: it is closed to them.
    pub outside: Option<Vec<Backend>>,
    /// `sessionAffinity: ClientIP` for so many seconds; 0 for none.
    pub affinity_seconds: u32,
    /// Which set [`Self::inside`] is. Frontends of one port of a Service share it.
    pub set: u32,
    /// Connections (TCP, and UDP by `connect`) to that set since it exists.
    pub connections: u64,
}

/// A socket that talks to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer {
    /// The socket's cookie, as `ss -e` shows it (`sk:`).
    pub cookie: u64,
    /// What it asked for.
    pub asked: SocketAddr,
    /// Where it was sent.
    pub backend: SocketAddr,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// The map's name.
    pub map: &'static str,
    /// Entries in it.
    pub used: u64,
    /// Its size.
    pub limit: u32,
    /// The kernel's memory for it.
    pub bytes: u64,
    /// Whether an entry's memory is taken when it is written; else all of it when the table is made.
    pub grows: bool,
}

impl Pressure {
    /// The memory for one entry, its share of the buckets included; none if there is nothing to measure it by.
    #[must_use]
    pub fn bytes_each(&self) -> Option<u64> {
        let entries = if self.grows {
            self.used
        } else {
            self.limit.into()
        };
        self.bytes.checked_div(entries)
    }
}

impl Inspector {
    /// Opens the tables of the node whose pins are in `bpffs_dir`.
    ///
    /// # Errors
    /// [`DatapathError::Io`] if there are none; [`DatapathError::MapShape`] if another version made them.
    pub fn open(bpffs_dir: &Path) -> Result<Self, DatapathError> {
        let folder = bpffs::maps_in_force(bpffs_dir)?;
        Ok(Self {
            sets: ArrayTable::open(&folder, maps::SETS)?,
            slots: ArrayTable::open(&folder, maps::SLOTS)?,
            backends: ArrayTable::open(&folder, maps::BACKENDS)?,
            connections: ArrayTable::open(&folder, maps::CONNECTIONS)?,
            folder,
        })
    }

    /// All frontends, in order.
    ///
    /// # Errors
    /// [`DatapathError`] if a map cannot be read.
    pub fn frontends(&self) -> Result<Vec<SeenFrontend>, DatapathError> {
        let services =
            HashTable::<abi::ServiceKey, abi::Service>::open(&self.folder, maps::SERVICES)?;
        // Frontends of one Service share their sets.
        let mut known = HashMap::new();
        let mut members = |set: u32| {
            if let Some(members) = known.get(&set) {
                return Ok::<Vec<Backend>, DatapathError>(Vec::clone(members));
            }
            let members = self.members(set)?;
            known.insert(set, members.clone());
            Ok(members)
        };
        let mut all = Vec::new();
        for (key, service) in services.entries()? {
            all.push(SeenFrontend {
                frontend: frontend_of(&key),
                inside: members(service.inside)?,
                outside: match service.outside {
                    0 => None,
                    set => Some(members(set)?),
                },
                affinity_seconds: service.affinity_seconds,
                set: service.inside,
                connections: self.connections.get(service.inside)?.unwrap_or(0),
            });
        }
        all.sort_by_key(|seen| seen.frontend);
        Ok(all)
    }

    fn members(&self, set: u32) -> Result<Vec<Backend>, DatapathError> {
        let word = self.sets.get(set)?.map_or(0, |set| set.word);
        let run = abi::SetWord::unpack(word);
        let mut members: Vec<Backend> = Vec::new();
        for index in run.base..run.base.saturating_add(run.count) {
            let Some(slot) = self.slots.get(index)? else {
                break;
            };
            let found = self.backends.get(slot.backend)?;
            let found = found
                .filter(|found| found.set == set && found.generation == slot.generation)
                .map(|found| backend_of(&found));
            // In Maglev's order each has many slots.
            members.extend(found.filter(|backend| !members.contains(backend)));
        }
        members.sort_by_key(|backend| (backend.addr, backend.port));
        Ok(members)
    }

    /// The sockets that talk to Services, as far as the table goes back: closed ones stay until it is full.
    ///
    /// # Errors
    /// [`DatapathError`] if the map cannot be read.
    pub fn sockets(&self) -> Result<Vec<SocketPeer>, DatapathError> {
        let table = HashTable::<abi::RevNatKey, abi::RevNat>::open(&self.folder, maps::REV_NAT)?;
        let entries = table.entries()?.into_iter();
        let mut all: Vec<SocketPeer> = entries
            .map(|(key, value)| SocketPeer {
                cookie: key.cookie,
                asked: socket_addr(value.addr, value.port),
                backend: socket_addr(key.addr, key.port),
            })
            .collect();
        all.sort_by_key(|socket| (socket.asked, socket.backend, socket.cookie));
        Ok(all)
    }

    /// How full the tables are that can fill up, and what they take.
    ///
    /// # Errors
    /// [`DatapathError`] if a map cannot be read.
    pub fn pressure(&self) -> Result<Vec<Pressure>, DatapathError> {
        let marks = self.sets.get(0)?.map_or(0, |zero| zero.word);
        let marks = abi::SetWord::unpack(marks);
        let mut slots = 0;
        for set in 1..marks.count {
            let word = self.sets.get(set)?.map_or(0, |set| set.word);
            slots += abi::SetWord::unpack(word).count;
        }
        Ok(vec![
            self.hash::<abi::ServiceKey, abi::Service>(maps::SERVICES)?,
            array(maps::SETS, &self.sets, marks.count)?,
            array(maps::CONNECTIONS, &self.connections, marks.count)?,
            array(maps::SLOTS, &self.slots, slots)?,
            array(maps::BACKENDS, &self.backends, marks.base)?,
            self.hash::<abi::AffinityKey, abi::Affinity>(maps::AFFINITY)?,
            self.hash::<abi::AffinityKey, abi::Affinity>(maps::FLOWS)?,
            self.hash::<abi::RevNatKey, abi::RevNat>(maps::REV_NAT)?,
            self.hash::<abi::FlowKey, abi::Flow>(maps::NAT_FLOWS)?,
            self.hash::<abi::Addr, abi::PolicyIds>(maps::POLICY_IDS)?,
            self.hash::<abi::PolicyCidrKey, abi::PolicyIds>(maps::POLICY_CIDRS)?,
            self.hash::<abi::PolicyRuleKey, u32>(maps::POLICY_RULES)?,
            self.hash::<abi::PolicyConnKey, abi::PolicyConn>(maps::POLICY_CONNS)?,
        ])
    }

    fn hash<K: Plain, V: Plain>(&self, map: &'static str) -> Result<Pressure, DatapathError> {
        let table = HashTable::<K, V>::open(&self.folder, map)?;
        Ok(Pressure {
            map,
            used: table.entries()?.len() as u64,
            limit: table.limit(),
            bytes: table.bytes()?,
            grows: table.grows(),
        })
    }
}

fn array<V: Plain>(
    map: &'static str,
    table: &ArrayTable<V>,
    used: u32,
) -> Result<Pressure, DatapathError> {
    Ok(Pressure {
        map,
        used: used.into(),
        limit: table.len(),
        bytes: table.bytes()?,
        grows: false,
    })
}

/// Address and port as the tables have them.
pub(crate) fn socket_addr(addr: abi::Addr, port: u16) -> SocketAddr {
    let ip: IpAddr = ip_of(addr);
    SocketAddr::new(ip, u16::from_be(port))
}
