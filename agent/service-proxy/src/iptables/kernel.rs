//! What of ours is in the kernel's tables, and how it is changed: one `iptables-restore` that names only the chains
//! that differ.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use skiff_cni::firewall::{Batch, Family, FirewallError, Table, restore_all, save};
use skiff_ebpf_loader::IpFamily;

use super::{
    base::missing_jumps,
    chain::{ChainId, Chains, FAMILIES, TableName, family_of, ours},
};

/// Our chains as they are in the kernel, each with the hash of its rules.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    chains: HashMap<ChainId, u64>,
    jumps: Vec<(Family, TableName, &'static str, String)>,
    families: Vec<IpFamily>,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleWrites {
    /// Chains made or given other rules.
    pub chains: u64,
    /// Chains removed.
    pub removed: u64,
    /// Rules in the chains that were written.
    pub rules: u64,
    /// Runs of `iptables-restore`, each of one family.
    pub runs: u64,
}

impl Kernel {
    /// Reads the tables of the calling thread's network namespace.
    pub(super) fn read() -> Result<Self, FirewallError> {
        let mut kernel = Self::default();
        for family in FAMILIES {
            let iptables = family_of(family);
            if iptables == Family::V6 && !iptables.is_installed() {
                continue;
            }
            let tables: Result<Vec<_>, FirewallError> = TableName::ALL
                .iter()
                .map(|table| Ok((*table, save(iptables, table.as_str())?)))
                .collect();
            match tables {
                // A kernel without IPv6.
                Err(error) if iptables == Family::V6 && error.is_refusal() => {}
                Err(error) => return Err(error),
                Ok(tables) => {
                    kernel.families.push(family);
                    for (table, found) in tables {
                        kernel.note(iptables, table, &found);
                    }
                }
            }
        }
        Ok(kernel)
    }

    fn note(&mut self, family: Family, table: TableName, found: &Table) {
        for name in ours(found) {
            let rules = found.rules(name).iter().map(|rule| rule.text());
            let id = ChainId::new(family, table, name);
            self.chains.insert(id, fingerprint(rules));
        }
        for (parent, rule) in missing_jumps(family, table, found) {
            self.jumps.push((family, table, parent, rule));
        }
    }

    /// The families that there are rules for.
    pub(super) fn families(&self) -> &[IpFamily] {
        &self.families
    }

    /// Our chains that are not among these.
    pub(super) fn others(&self, wanted: &Chains) -> Vec<ChainId> {
        let others = self.chains.keys().filter(|id| !wanted.contains_key(*id));
        others.cloned().collect()
    }

    /// Makes these chains so, as far as they are not.
    pub(super) fn write(&mut self, wanted: Chains) -> Result<RuleWrites, FirewallError> {
        let mut changed = Chains::new();
        for (id, rules) in wanted {
            let family_is_there = self.families.iter().any(|f| family_of(*f) == id.family);
            let have = self.chains.get(&id).copied();
            let want = rules.as_ref().map(|rules| fingerprint(rules.iter()));
            if family_is_there && have != want {
                changed.insert(id, rules);
            }
        }
        let mut writes = RuleWrites::default();
        for family in Family::BOTH {
            let batches: Vec<Batch> = TableName::ALL
                .iter()
                .map(|table| self.batch(family, *table, &changed))
                .filter(|batch| !batch.is_empty())
                .collect();
            if !batches.is_empty() {
                restore_all(family, &batches)?;
                writes.runs += 1;
                self.jumps.retain(|(of, ..)| *of != family);
            }
        }
        for (id, rules) in changed {
            if let Some(rules) = rules {
                writes.chains += 1;
                writes.rules += rules.len() as u64;
                self.chains.insert(id, fingerprint(rules.iter()));
            } else {
                writes.removed += 1;
                self.chains.remove(&id);
            }
        }
        Ok(writes)
    }

    fn batch(&self, family: Family, table: TableName, changed: &Chains) -> Batch {
        let mut batch = Batch::new(table.as_str());
        let of_table = || {
            let all = changed.iter();
            all.filter(|(id, _)| id.family == family && id.table == table)
        };
        // All of them before the first rule: rules lead from one to the other.
        for (id, _) in of_table() {
            batch.declare(&id.name);
        }
        for (id, rules) in of_table() {
            for rule in rules.iter().flatten() {
                batch.append(&id.name, rule);
            }
        }
        for (of, within, parent, rule) in &self.jumps {
            if *of == family && *within == table {
                batch.insert(parent, rule);
            }
        }
        for (id, rules) in of_table() {
            if rules.is_none() {
                batch.remove(&id.name);
            }
        }
        batch
    }
}

fn fingerprint<R: AsRef<str>>(rules: impl Iterator<Item = R>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for rule in rules {
        rule.as_ref().hash(&mut hasher);
    }
    hasher.finish()
}
