//! The tables of NetworkPolicies: values, and the order in which a change is written.
//!
//! The tables hold two identities for each address, of which `POLICY_STATE` says which holds (see
//! `skiff_ebpf_common::PolicyIds`). A change in which at most one address that carries traffic gets another identity is written
//! in place. Any other one is written beside and put in force by one store; a packet is judged by the state before or after it,
//! never by some of both. Rules are added first and removed last, so what both states allow is never denied and what both deny
//! is never allowed.
//!
//! What is guaranteed for a pod that starts: [`crate::PodPort::closed`] lets no packet in or out (but from the node itself)
//! until [`Policies::admit`] is called for its link, which whoever compiles policies does when the pod's identity is in the
//! tables. The tables are pinned: while no daemon runs, and from its start to its first change, what was in force is in force.
//! Tables of another ABI are built beside; the programs at pods' links go on with the old ones until
//! [`crate::PodPaths::attach`] exchanges them link by link.

mod look;
mod plan;
mod write;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

pub use skiff_ebpf_common::PolicyRuleKey;

pub(crate) use self::write::{Waiting, cidr_key, prefix_of};
pub use self::{
    look::{AllowedPorts, PolicyDirection, PolicyInspector, PolicyLink, PolicyVerdict, SeenRule},
    write::Policies,
};

/// A prefix of addresses; all bits behind it are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of that many bits that an address is in; `None` if the family has not so many.
    #[must_use]
    pub fn of(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(32_u32.checked_sub(len.into())?);
                IpAddr::from((addr.to_bits() & mask.unwrap_or(0)).to_be_bytes())
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128_u32.checked_sub(len.into())?);
                IpAddr::from((addr.to_bits() & mask.unwrap_or(0)).to_be_bytes())
            }
        };
        Some(Self { addr, len })
    }

    /// The first address.
    #[must_use]
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// How many bits count.
    #[must_use]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether it is all addresses of its family.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && Self::of(addr, self.len) == Some(self)
    }

    /// Whether all of another one is in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// What the tables hold, or ought to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTables {
    /// The identities of pods that policies can tell from others.
    pub ids: HashMap<IpAddr, u32>,
    /// The identities of the prefixes that policies name.
    pub cidrs: BTreeMap<Prefix, u32>,
    /// What is allowed.
    pub rules: BTreeSet<PolicyRuleKey>,
}

impl PolicyTables {
    /// The identity of whatever has this address, by the prefixes alone.
    #[must_use]
    pub fn cidr_id(&self, addr: IpAddr) -> u32 {
        let covering = self
            .cidrs
            .iter()
            .filter(|(prefix, _)| prefix.contains(addr));
        let longest = covering.max_by_key(|(prefix, _)| prefix.len);
        longest.map_or(skiff_ebpf_common::IDENTITY_NONE, |(_, id)| *id)
    }

    /// The identity of an address.
    #[must_use]
    pub fn id(&self, addr: IpAddr) -> u32 {
        let known = self.ids.get(&addr).copied();
        known.unwrap_or_else(|| self.cidr_id(addr))
    }

    fn prefix_id(&self, prefix: Prefix) -> u32 {
        let covering = self.cidrs.iter().filter(|(outer, _)| outer.covers(prefix));
        let longest = covering.max_by_key(|(outer, _)| outer.len);
        longest.map_or(skiff_ebpf_common::IDENTITY_NONE, |(_, id)| *id)
    }

    /// Makes a change.
    pub fn make(&mut self, change: &PolicyChange) {
        for (addr, id) in &change.ids {
            match id {
                Some(id) => self.ids.insert(*addr, *id),
                None => self.ids.remove(addr),
            };
        }
        for (prefix, id) in &change.cidrs {
            match id {
                Some(id) => self.cidrs.insert(*prefix, *id),
                None => self.cidrs.remove(prefix),
            };
        }
        self.rules.extend(change.add.iter().copied());
        for rule in &change.remove {
            self.rules.remove(rule);
        }
    }
}

/// A change of the tables. What is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Identities of pods' addresses; `None`: it has none of its own any more.
    pub ids: Vec<(IpAddr, Option<u32>)>,
    /// Which of `ids` carry no traffic yet: a pod that has just got them.
    pub fresh: BTreeSet<IpAddr>,
    /// Identities of prefixes; `None`: no policy names it any more.
    pub cidrs: Vec<(Prefix, Option<u32>)>,
    /// Rules to add.
    pub add: Vec<PolicyRuleKey>,
    /// Rules to remove.
    pub remove: Vec<PolicyRuleKey>,
}

impl PolicyChange {
    /// What leads from one state of the tables to another.
    #[must_use]
    pub fn between(have: &PolicyTables, want: &PolicyTables) -> Self {
        let set = want.ids.iter();
        let set = set.filter(|(addr, id)| have.ids.get(addr) != Some(id));
        let gone = have.ids.keys().filter(|addr| !want.ids.contains_key(addr));
        let set_cidrs = want.cidrs.iter();
        let set_cidrs = set_cidrs.filter(|(prefix, id)| have.cidrs.get(prefix) != Some(id));
        let gone_cidrs = have.cidrs.keys();
        let gone_cidrs = gone_cidrs.filter(|prefix| !want.cidrs.contains_key(prefix));
        Self {
            ids: (set.map(|(addr, id)| (*addr, Some(*id))))
                .chain(gone.map(|addr| (*addr, None)))
                .collect(),
            fresh: BTreeSet::new(),
            cidrs: (set_cidrs.map(|(prefix, id)| (*prefix, Some(*id))))
                .chain(gone_cidrs.map(|prefix| (*prefix, None)))
                .collect(),
            add: want.rules.difference(&have.rules).copied().collect(),
            remove: have.rules.difference(&want.rules).copied().collect(),
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.cidrs.is_empty()
            && self.add.is_empty()
            && self.remove.is_empty()
    }
}
