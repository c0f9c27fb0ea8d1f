//! Masquerading by iptables.
//!
//! ```text
//! POSTROUTING  -s SUBNET -j SKIFF-MASQ-<hash>                     one per network and subnet
//! SKIFF-MASQ-  -d SUBNET -j ACCEPT                                what stays inside keeps its source
//!              -s POD ! -d MULTICAST -j MASQUERADE                one per pod, with its name as a comment
//! ```
//! A connection that is not from a pod meets one rule per network, whatever the number of pods. The chain comes with
//! its first pod, in the same transaction, and goes right after its last one.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use iptables::IPTables;

use super::{Removal, subnet_of};
use crate::{
    fingerprint,
    firewall::{
        Batch, Family, FirewallError, Owner, Release, Rule, Table, change, quote, reference_chain,
        release,
    },
    types::{ContainerId, NetworkName},
};

const TABLE: &str = "nat";
const PARENT: &str = "POSTROUTING";
const CHAIN_PREFIX: &str = "SKIFF-MASQ-";
/// The chains that reference plugins make for a container.
const REFERENCE_PREFIX: &str = "CNI-";

/// The rules of one network in one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'a> {
    family: Family,
    network: &'a NetworkName,
}

/// The rules that one address needs.
struct Wanted {
    chain: String,
    jump: String,
    inside: String,
    pod: String,
    source: String,
}

impl<'a> Layout<'a> {
    pub(super) fn new(family: Family, network: &'a NetworkName) -> Self {
        Self { family, network }
    }

    /// The network's part comes first, so that its chains are found without knowing their subnets.
    fn chain_prefix(&self) -> String {
        format!("{CHAIN_PREFIX}{}", fingerprint(&[self.network.as_str()], 4))
    }

    fn wanted(&self, address: IpNetwork, container: &ContainerId) -> Wanted {
        let subnet = subnet_of(address);
        let hash = fingerprint(&[self.network.as_str(), &subnet.to_string()], 12);
        let chain = format!("{}{hash}", self.chain_prefix());
        let source = format!("{}/{}", address.ip(), self.family.bits());
        Wanted {
            jump: format!("-s {subnet} -j {chain}"),
            inside: format!("-d {subnet} -j ACCEPT"),
            pod: format!(
                "-s {source} ! -d {} -m comment --comment {} -j MASQUERADE",
                self.family.multicast(),
                quote(&Owner::comment(self.network, container)),
            ),
            chain,
            source,
        }
    }

    fn all_wanted(&self, addresses: &[IpNetwork], container: &ContainerId) -> Vec<Wanted> {
        addresses
            .iter()
            .map(|address| self.wanted(*address, container))
            .collect()
    }

    /// Adds an address' rules: to a chain that other pods have made already, or else to a new one, or else to whatever
    /// is there.
    pub(super) fn ensure(
        &self,
        addresses: &[IpNetwork],
        container: &ContainerId,
    ) -> Result<(), FirewallError> {
        let wanted = self.all_wanted(addresses, container);
        let guesses = [
            plan_join(&wanted),
            self.plan_ensure(&Table::default(), &wanted),
        ];
        change(self.family, TABLE, &guesses, |table| {
            self.plan_ensure(table, &wanted)
        })
        .map(drop)
    }

    pub(super) fn is_ensured(
        &self,
        address: IpNetwork,
        container: &ContainerId,
    ) -> Result<bool, FirewallError> {
        let wanted = self.wanted(address, container);
        let tables = commands(self.family);
        for (chain, rule) in [
            (PARENT, &wanted.jump),
            (&wanted.chain, &wanted.inside),
            (&wanted.chain, &wanted.pod),
        ] {
            let exists = tables.exists(TABLE, chain, rule);
            if !exists.map_err(|error| refused(self.family, &*error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes a container's rules, with the chains that they are in if they are the last. Says whether there was any.
    pub(super) fn delete(
        &self,
        addresses: &[IpNetwork],
        container: &ContainerId,
        removal: &Removal<'_>,
    ) -> Result<bool, FirewallError> {
        if !self.family.is_installed() {
            return Ok(false);
        }
        match plan_release(&self.all_wanted(addresses, container)) {
            Some(guess) => release(self.family, TABLE, &guess, |table| {
                self.plan_remove(table, removal)
            }),
            None => self.remove(removal),
        }
    }

    /// Removes what is doomed after a look at the table. Says whether there was anything.
    pub(super) fn remove(&self, removal: &Removal<'_>) -> Result<bool, FirewallError> {
        change(self.family, TABLE, &[], |table| {
            self.plan_remove(table, removal)
        })
    }

    fn plan_ensure(&self, table: &Table, wanted: &[Wanted]) -> Batch {
        let mut batch = Batch::new(TABLE);
        let mut created: Vec<&str> = Vec::new();
        for Wanted {
            chain,
            jump,
            inside,
            pod,
            source,
        } in wanted
        {
            let is_new = !table.has_chain(chain) && !created.contains(&&**chain);
            if is_new {
                batch.create(chain);
                created.push(chain);
            }
            if is_new || table.has_chain(chain) && !table.has(chain, inside) {
                batch.insert(chain, inside);
            }
            let others = pods_in(table, chain)
                .filter(|rule| rule.value("-s") == Some(source) && !rule.is(pod));
            // Whoever had the address before is gone.
            for rule in others {
                batch.delete(chain, rule.text());
            }
            if !table.has(chain, pod) {
                batch.append(chain, pod);
            }
            if is_new || table.has_chain(chain) && !table.has(PARENT, jump) {
                batch.append(PARENT, jump);
            }
        }
        batch
    }

    fn plan_remove(&self, table: &Table, removal: &Removal<'_>) -> Batch {
        let mut batch = Batch::new(TABLE);
        let prefix = self.chain_prefix();
        let mut empty: Vec<&str> = reference_chains(table, removal).collect();
        for chain in table.chains().filter(|chain| chain.starts_with(&prefix)) {
            let (gone, kept): (Vec<_>, Vec<_>) =
                pods_in(table, chain).partition(|rule| is_doomed(rule, removal));
            if kept.is_empty() {
                empty.push(chain);
            } else {
                for rule in gone {
                    batch.delete(chain, rule.text());
                }
            }
        }
        batch.remove_whole(table, &empty);
        batch
    }
}

/// For one more pod of a subnet.
fn plan_join(wanted: &[Wanted]) -> Batch {
    let mut batch = Batch::new(TABLE);
    for wanted in wanted {
        batch.expect(PARENT, &wanted.jump);
        batch.expect(&wanted.chain, &wanted.inside);
        batch.append(&wanted.chain, &wanted.pod);
    }
    batch
}

/// For a pod of one subnet. Chains of several are in use or not each for itself, which takes a look. So does finding a
/// rule that is there twice, after two ADDs: the second one goes with a further DEL or GC.
fn plan_release(wanted: &[Wanted]) -> Option<Release> {
    let (first, others) = wanted.split_first()?;
    if others.iter().any(|other| other.chain != first.chain) {
        return None;
    }
    let mut own = Batch::new(TABLE);
    for wanted in wanted {
        own.delete(&wanted.chain, &wanted.pod);
    }
    let mut shared = Batch::new(TABLE);
    shared.delete(&first.chain, &first.inside);
    shared.delete(PARENT, &first.jump);
    shared.remove(&first.chain);
    Some(Release { own, shared })
}

/// A chain's rules that masquerade one pod.
fn pods_in<'t>(table: &'t Table, chain: &str) -> impl Iterator<Item = &'t Rule> {
    let rules = table.rules(chain).iter();
    rules.filter(|rule| rule.target() == Some("MASQUERADE"))
}

fn is_doomed(rule: &Rule, removal: &Removal<'_>) -> bool {
    rule.comment()
        .is_some_and(|comment| removal.dooms(comment, source_of(rule)))
}

fn source_of(rule: &Rule) -> Option<IpAddr> {
    rule.value("-s")?.split('/').next()?.parse().ok()
}

/// The chains that a reference plugin made for containers that are doomed. The jump to a chain names its container.
fn reference_chains<'t>(
    table: &'t Table,
    removal: &'t Removal<'_>,
) -> impl Iterator<Item = &'t str> {
    let named = removal
        .container
        .map(|container| reference_chain("", removal.network, container));
    table
        .chains()
        .filter(|chain| chain.starts_with(REFERENCE_PREFIX))
        .filter(move |chain| {
            named.as_deref() == Some(*chain)
                || table
                    .jumps_to(chain)
                    .any(|(parent, rule)| parent == PARENT && is_doomed(rule, removal))
        })
}

/// Removes every network's chains of a family.
pub(super) fn remove_all(family: Family) -> Result<bool, FirewallError> {
    change(family, TABLE, &[], |table| {
        let mut batch = Batch::new(TABLE);
        let ours = table
            .chains()
            .filter(|chain| chain.starts_with(CHAIN_PREFIX));
        batch.remove_whole(table, &ours.collect::<Vec<_>>());
        batch
    })
}

/// Without asking iptables for its version: `-C` and `-w` are older than any kernel that we run on.
fn commands(family: Family) -> IPTables {
    IPTables {
        cmd: family.command(),
        has_check: true,
        has_wait: true,
        is_numeric: false,
    }
}

fn refused(family: Family, error: &dyn std::error::Error) -> FirewallError {
    FirewallError::Refused {
        program: family.command(),
        reason: error.to_string().trim().to_owned(),
    }
}

#[cfg(test)]
#[path = "iptables_tests.rs"]
mod tests;
