//! The writer.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use skiff_ebpf_common::{
    self as abi, Addr, IDENTITY_ISOLATED_EGRESS, IDENTITY_ISOLATED_INGRESS, POD_POLICIES, Plain,
    PodSource, PolicyCidrKey, PolicyIds, PolicyRuleKey, maps,
};

use super::{
    PolicyChange, PolicyTables, Prefix,
    plan::{Pair, Plan, plan},
};
use crate::{
    DatapathError,
    sys::{self, HashTable},
    tables::{addr_of, ip_of},
};

/// Links whose pods wait for their policies, and the lock of the flags that tell programs to ask for policies.
pub(crate) type Waiting = Arc<Mutex<BTreeSet<u32>>>;

/// Writes the tables of policies. They are pinned: nothing changes when this is dropped.
#[derive(Debug)]
pub struct Policies {
    ids: HashTable<Addr, PolicyIds>,
    cidrs: HashTable<PolicyCidrKey, PolicyIds>,
    rules: HashTable<PolicyRuleKey, u32>,
    state: HashTable<u32, u32>,
    flags: Flags,
    in_force: usize,
    tables: PolicyTables,
}

impl Policies {
    /// Opens the tables and reads what they hold. What an earlier daemon did not finish is as if it had not begun.
    pub(crate) fn open(maps_dir: &Path, waiting: Waiting) -> Result<Self, DatapathError> {
        let mut policies = Self {
            ids: HashTable::open(maps_dir, maps::POLICY_IDS)?,
            cidrs: HashTable::open(maps_dir, maps::POLICY_CIDRS)?,
            rules: HashTable::open(maps_dir, maps::POLICY_RULES)?,
            state: HashTable::open(maps_dir, maps::POLICY_STATE)?,
            flags: Flags::open(maps_dir, waiting)?,
            in_force: 0,
            tables: PolicyTables::default(),
        };
        policies.read_back()?;
        Ok(policies)
    }

    /// What the kernel's tables hold. A state that was not put in force is dropped.
    fn read_back(&mut self) -> Result<(), DatapathError> {
        self.in_force = self.state.get(0)?.unwrap_or_default() as usize & 1;
        let in_force = |ids: &PolicyIds| ids.ids.get(self.in_force).copied().unwrap_or_default();
        let ids = settle(&self.ids, in_force)?;
        let cidrs = settle(&self.cidrs, in_force)?;
        let rules = self.rules.entries()?.into_iter().map(|(rule, _)| rule);
        self.tables = PolicyTables {
            ids: ids
                .into_iter()
                .map(|(addr, id)| (ip_of(addr), id))
                .collect(),
            cidrs: (cidrs.into_iter())
                .filter_map(|(key, id)| Some((prefix_of(key.prefix_len, key.addr)?, id)))
                .collect(),
            rules: rules.collect(),
        };
        Ok(())
    }

    /// What is in the tables.
    #[must_use]
    pub fn tables(&self) -> &PolicyTables {
        &self.tables
    }

    /// Makes a change.
    ///
    /// # Errors
    /// [`DatapathError`]; then [`Self::tables`] is what the kernel holds, and the change must be made anew from there.
    pub fn apply(&mut self, change: &PolicyChange) -> Result<(), DatapathError> {
        if change.is_empty() {
            return Ok(());
        }
        let result = self.try_apply(change);
        if result.is_err() {
            self.read_back()?;
        }
        result
    }

    fn try_apply(&mut self, change: &PolicyChange) -> Result<(), DatapathError> {
        let plan = plan(&mut self.tables, change);
        let ones = vec![1; change.add.len()];
        self.rules
            .insert(&change.add, &ones)
            .map_err(|(_, error)| error)?;
        if plan.switch {
            self.write(&plan, false)?;
            // Whoever is isolated before or after is asked for by the programs meanwhile.
            let were = plan.addrs.iter().filter(|(_, pair)| is_isolated(pair.now));
            let were: HashSet<IpAddr> = were.map(|(addr, _)| *addr).collect();
            self.flags.set(|addr| {
                let addr = ip_of(addr);
                were.contains(&addr) || is_isolated(self.tables.id(addr))
            })?;
            self.in_force = 1 - self.in_force;
            let state = u32::from(self.in_force == 1);
            self.state.set(0, state)?;
            if let Err(error) = sys::wait_for_readers() {
                tracing::debug!(%error, "no grace period to be had");
            }
        }
        self.write(&plan, true)?;
        self.sync_flags()?;
        self.remove_gone(change)?;
        self.rules.remove(&change.remove)
    }

    /// Writes identities: of the state that is not in force only, or as they are from now on.
    fn write(&self, plan: &Plan, settled: bool) -> Result<(), DatapathError> {
        let value = |pair: &Pair| {
            let mut ids = [pair.next; 2];
            if !settled && let Some(now) = ids.get_mut(self.in_force) {
                *now = pair.now;
            }
            PolicyIds { ids }
        };
        let keys: Vec<Addr> = plan.addrs.iter().map(|(addr, _)| addr_of(*addr)).collect();
        let values: Vec<PolicyIds> = plan.addrs.iter().map(|(_, pair)| value(pair)).collect();
        let cidr_keys: Vec<_> = plan.prefixes.iter().map(|(p, _)| cidr_key(*p)).collect();
        let cidr_values: Vec<_> = plan.prefixes.iter().map(|(_, pair)| value(pair)).collect();
        self.ids
            .insert(&keys, &values)
            .map_err(|(_, error)| error)?;
        let written = self.cidrs.insert(&cidr_keys, &cidr_values);
        written.map_err(|(_, error)| error)
    }

    fn remove_gone(&self, change: &PolicyChange) -> Result<(), DatapathError> {
        let gone = change.ids.iter().filter(|(_, id)| id.is_none());
        let gone: Vec<Addr> = gone.map(|(addr, _)| addr_of(*addr)).collect();
        self.ids.remove(&gone)?;
        let gone = change.cidrs.iter().filter(|(_, id)| id.is_none());
        let gone: Vec<PolicyCidrKey> = gone.map(|(prefix, _)| cidr_key(*prefix)).collect();
        self.cidrs.remove(&gone)
    }

    /// The policies of the pod at this link are known and, if it has any, in the tables.
    ///
    /// # Errors
    /// [`DatapathError`] if a table cannot be written.
    pub fn admit(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.flags.waiting.lock().remove(&ifindex);
        self.sync_flags()
    }

    fn sync_flags(&self) -> Result<(), DatapathError> {
        self.flags
            .set(|addr| is_isolated(self.tables.id(ip_of(addr))))
    }
}

/// Reads a table of identities, and gives both states the identity that is in force.
fn settle<K: Plain>(
    table: &HashTable<K, PolicyIds>,
    in_force: impl Fn(&PolicyIds) -> u32,
) -> Result<Vec<(K, u32)>, DatapathError> {
    let mut entries = Vec::new();
    for (key, ids) in table.entries()? {
        let id = in_force(&ids);
        if ids.ids != [id; 2] {
            table.set(key, PolicyIds { ids: [id; 2] })?;
        }
        entries.push((key, id));
    }
    Ok(entries)
}

fn is_isolated(id: u32) -> bool {
    id & (IDENTITY_ISOLATED_INGRESS | IDENTITY_ISOLATED_EGRESS) != 0
}

/// Which links' programs ask for policies.
#[derive(Debug)]
struct Flags {
    ports: HashTable<Addr, abi::PodPort>,
    sources: HashTable<u32, PodSource>,
    waiting: Waiting,
}

impl Flags {
    fn open(maps_dir: &Path, waiting: Waiting) -> Result<Self, DatapathError> {
        Ok(Self {
            ports: HashTable::open(maps_dir, maps::POD_PORTS)?,
            sources: HashTable::open(maps_dir, maps::POD_SOURCES)?,
            waiting,
        })
    }

    /// Sets the flags of links with isolated addresses or waiting pods, and clears those of others. Writes what differs.
    fn set(&self, is_isolated: impl Fn(Addr) -> bool) -> Result<(), DatapathError> {
        let waiting = self.waiting.lock();
        let mut asks: HashMap<u32, bool> = HashMap::new();
        for (ifindex, source) in self.sources.entries()? {
            let addrs = [Addr::v4(source.v4), source.v6];
            let asked = waiting.contains(&ifindex)
                || addrs.into_iter().any(|a| a != a.any() && is_isolated(a));
            asks.insert(ifindex, asked);
            let flags = with_flag(source.flags, asked);
            if flags != source.flags {
                self.sources.set(ifindex, PodSource { flags, ..source })?;
            }
        }
        for (addr, port) in self.ports.entries()? {
            let asked = asks.get(&port.ifindex).copied().unwrap_or_default();
            let flags = with_flag(port.flags, asked);
            if flags != port.flags {
                self.ports.set(addr, abi::PodPort { flags, ..port })?;
            }
        }
        Ok(())
    }
}

fn with_flag(flags: u16, set: bool) -> u16 {
    if set {
        flags | POD_POLICIES
    } else {
        flags & !POD_POLICIES
    }
}

/// IPv4 prefixes lie behind `::ffff:0:0/96`.
const V4_BITS: u32 = 96;

/// A prefix as tries have it.
pub(crate) fn cidr_key(prefix: Prefix) -> PolicyCidrKey {
    let more = if prefix.addr.is_ipv4() { V4_BITS } else { 0 };
    PolicyCidrKey {
        prefix_len: more + u32::from(prefix.len),
        addr: addr_of(prefix.addr),
    }
}

/// The same backwards.
pub(crate) fn prefix_of(bits: u32, addr: Addr) -> Option<Prefix> {
    let more = if addr.is_v4() { V4_BITS } else { 0 };
    let len = bits.checked_sub(more)?;
    Prefix::of(ip_of(addr), u8::try_from(len).ok()?)
}
