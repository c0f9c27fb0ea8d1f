//! Port mappings by iptables, with the chains and names of the reference plugin.
//!
//! ```text
//! PREROUTING, OUTPUT   -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
//! POSTROUTING          -j CNI-HOSTPORT-MASQ                                    (first)
//! CNI-HOSTPORT-DNAT    -m multiport --dports 8080,8081 -j CNI-DN-<hash>        newest container first
//! CNI-DN-<hash>        -p tcp --dport 8080 -s SUBNET -j CNI-HOSTPORT-SETMARK   what would not find its way back
//!                      -p tcp --dport 8080 -j DNAT --to-destination POD:80
//! CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
//! CNI-HOSTPORT-MASQ    -m mark --mark 0x2000/0x2000 -j MASQUERADE
//! ```
//! The shared chains come with the first container, in the same transaction, and go right after the last one.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::{
        Batch, Family, FirewallError, Owner, Release, Table, change, quote, reference_chain,
        release, restore,
    },
    types::{ContainerId, NetworkName},
};

use super::config::{Config, Mapping, Masquerading};

const TABLE: &str = "nat";
const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// A container's chain begins with this.
const CONTAINER_PREFIX: &str = "CNI-DN-";
const LOCAL: &str = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT";
const TO_MASQUERADE: &str =
    "-m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ";
/// As many ports does one multiport rule take.
const MULTIPORT: usize = 15;
/// iptables keeps this much of a comment.
const COMMENT: usize = 255;

/// The rules of one container in one family.
#[derive(Debug)]
pub(super) struct Forwarding {
    family: Family,
    chain: String,
    /// What leads to the chain.
    entries: Vec<String>,
    rules: Vec<String>,
    /// The rules that mark and masquerade, if the shared chains are used for it.
    marking: Option<(String, String)>,
}

impl Forwarding {
    pub(super) fn new(
        config: &Config,
        address: IpNetwork,
        network: &NetworkName,
        container: &ContainerId,
    ) -> Self {
        let family = Family::of(address.ip());
        let chain = reference_chain("DN-", network, container);
        Self {
            family,
            entries: entries(config, family, &chain, &comment(network, container)),
            rules: config
                .mappings(family)
                .flat_map(|mapping| rules(config, mapping, address))
                .collect(),
            marking: match config.masquerade {
                Masquerading::Bit(bit) => Some(marking(bit)),
                Masquerading::Off | Masquerading::External(_) => None,
            },
            chain,
        }
    }

    /// Whether there is nothing to forward in this family.
    fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Adds the rules: beside those of other containers, or else with the shared chains, or else to what is there.
    pub(super) fn ensure(&self) -> Result<(), FirewallError> {
        if self.is_empty() {
            return Ok(());
        }
        let guesses = [self.plan_join(), self.plan_ensure(&Table::default())];
        change(self.family, TABLE, &guesses, |table| {
            self.plan_ensure(table)
        })
        .map(drop)
    }

    /// Whether all rules and the way to them are there.
    pub(super) fn is_ensured(&self) -> Result<bool, FirewallError> {
        if self.is_empty() {
            return Ok(true);
        }
        let mut batch = Batch::new(TABLE);
        self.expect_shared(&mut batch);
        for rule in &self.rules {
            batch.expect(&self.chain, rule);
        }
        for entry in &self.entries {
            batch.expect(DNAT, entry);
        }
        match restore(self.family, &batch) {
            Ok(()) => Ok(true),
            Err(error) if error.is_refusal() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the rules, with the shared chains if they are the last. Says whether there was any.
    pub(super) fn remove(&self) -> Result<bool, FirewallError> {
        let plan = |table: &Table| plan_remove(table, |found| found == self.chain);
        match self.plan_release() {
            Some(guess) => release(self.family, TABLE, &guess, plan),
            None => change(self.family, TABLE, &[], plan),
        }
    }

    fn expect_shared(&self, batch: &mut Batch) {
        for parent in ["PREROUTING", "OUTPUT"] {
            batch.expect(parent, LOCAL);
        }
        if let Some((mark, masquerade)) = &self.marking {
            batch.expect(SET_MARK, mark);
            batch.expect(MASQUERADE, masquerade);
            batch.expect("POSTROUTING", TO_MASQUERADE);
        }
    }

    fn fill(&self, batch: &mut Batch) {
        for rule in &self.rules {
            batch.append(&self.chain, rule);
        }
        for entry in &self.entries {
            batch.insert(DNAT, entry);
        }
    }

    /// For one more container.
    fn plan_join(&self) -> Batch {
        let mut batch = Batch::new(TABLE);
        self.expect_shared(&mut batch);
        batch.create(&self.chain);
        self.fill(&mut batch);
        batch
    }

    fn plan_ensure(&self, table: &Table) -> Batch {
        let mut batch = Batch::new(TABLE);
        let chain = |batch: &mut Batch, chain: &str, rule: &str| {
            if !table.has_chain(chain) {
                batch.create(chain);
            }
            if !table.has(chain, rule) {
                batch.append(chain, rule);
            }
        };
        if let Some((mark, masquerade)) = &self.marking {
            chain(&mut batch, SET_MARK, mark);
            chain(&mut batch, MASQUERADE, masquerade);
            if !table.has("POSTROUTING", TO_MASQUERADE) {
                // Before the rules of bridge and ptp, which accept what stays in their subnets.
                batch.insert("POSTROUTING", TO_MASQUERADE);
            }
        }
        if !table.has_chain(DNAT) {
            batch.create(DNAT);
        }
        for parent in ["PREROUTING", "OUTPUT"] {
            if !table.has(parent, LOCAL) {
                batch.append(parent, LOCAL);
            }
        }
        if table.has_chain(&self.chain) {
            batch.remove_whole(table, &[&self.chain]);
        }
        batch.create(&self.chain);
        self.fill(&mut batch);
        batch
    }

    /// `None` if nothing is known of the rules, or of the shared chains: those that masquerade may be there for others.
    fn plan_release(&self) -> Option<Release> {
        if self.is_empty() || self.marking.is_none() {
            return None;
        }
        let mut own = Batch::new(TABLE);
        for entry in &self.entries {
            own.delete(DNAT, entry);
        }
        own.flush(&self.chain);
        own.remove(&self.chain);
        let mut shared = Batch::new(TABLE);
        for parent in ["PREROUTING", "OUTPUT"] {
            shared.delete(parent, LOCAL);
        }
        shared.remove(DNAT);
        shared.delete("POSTROUTING", TO_MASQUERADE);
        for chain in [MASQUERADE, SET_MARK] {
            shared.flush(chain);
            shared.remove(chain);
        }
        Some(Release { own, shared })
    }
}

/// Removes a container's chain. Says whether there was one.
pub(super) fn remove(
    family: Family,
    network: &NetworkName,
    container: &ContainerId,
) -> Result<bool, FirewallError> {
    let chain = reference_chain("DN-", network, container);
    change(family, TABLE, &[], |table| {
        plan_remove(table, |found| found == chain)
    })
}

/// Removes the chains of a network's containers that are not valid.
pub(super) fn sweep(
    family: Family,
    network: &NetworkName,
    is_valid: impl Fn(Owner<'_>) -> bool,
) -> Result<bool, FirewallError> {
    change(family, TABLE, &[], |table| {
        plan_remove(table, |chain| {
            let mut comments = table.jumps_to(chain).filter_map(|(_, rule)| rule.comment());
            comments.any(|comment| {
                Owner::read(comment)
                    .is_some_and(|owner| owner.is_network(network) && !is_valid(owner))
            })
        })
    })
}

/// Removes the containers' chains for which `is_doomed` holds; the shared ones go when nobody needs them any more.
fn plan_remove(table: &Table, is_doomed: impl Fn(&str) -> bool) -> Batch {
    let mut batch = Batch::new(TABLE);
    let (doomed, kept): (Vec<&str>, Vec<&str>) = table
        .chains()
        .filter(|chain| chain.starts_with(CONTAINER_PREFIX))
        .partition(|chain| is_doomed(chain));
    if doomed.is_empty() {
        return batch;
    }
    let is_left = |target: &str| !doomed.contains(&target);
    let is_used = table
        .rules(DNAT)
        .iter()
        .any(|rule| rule.target().is_none_or(is_left));
    let mut removed = doomed.clone();
    if kept.is_empty() && !is_used {
        removed.extend([DNAT, MASQUERADE, SET_MARK].into_iter().filter(|chain| {
            // Another plugin may mark packets by it.
            let mut jumps = table.jumps_to(chain);
            table.has_chain(chain)
                && !jumps.any(|(parent, _)| parent.starts_with("CNI-") && is_left(parent))
        }));
    }
    batch.remove_whole(table, &removed);
    batch
}

/// The reference's words; ours where they would be cut off.
fn comment(network: &NetworkName, container: &ContainerId) -> String {
    let comment = format!("dnat name: \"{network}\" id: \"{container}\"");
    if comment.len() <= COMMENT {
        comment
    } else {
        Owner::comment(network, container)
    }
}

fn entries(config: &Config, family: Family, chain: &str, comment: &str) -> Vec<String> {
    let mut ports: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for mapping in config.mappings(family) {
        let ports = ports.entry(mapping.protocol).or_default();
        let port = mapping.host_port.to_string();
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let mut conditions = String::new();
    for word in config.conditions(family) {
        conditions.push_str(&quote(word));
        conditions.push(' ');
    }
    let comment = quote(comment);
    let mut entries = Vec::new();
    for (protocol, ports) in ports {
        for ports in ports.chunks(MULTIPORT) {
            entries.push(format!(
                "-p {} -m comment --comment {comment} -m multiport --dports {} {conditions}-j {chain}",
                protocol.as_str(),
                ports.join(","),
            ));
        }
    }
    entries
}

fn rules(config: &Config, mapping: &Mapping, address: IpNetwork) -> Vec<String> {
    let family = Family::of(address.ip());
    let protocol = mapping.protocol.as_str();
    let mut matched = format!("-p {protocol} --dport {}", mapping.host_port);
    if let Some(ip) = mapping.host_ip {
        matched = format!("-d {ip} {matched}");
    }
    let mut rules = Vec::new();
    let set_mark = match &config.masquerade {
        Masquerading::Off => None,
        Masquerading::Bit(_) => Some(SET_MARK.to_owned()),
        Masquerading::External(chain) => Some(quote(chain)),
    };
    if let Some(chain) = set_mark {
        if config.masq_all {
            rules.push(format!("{matched} -j {chain}"));
        } else {
            rules.push(format!("-s {address} {matched} -j {chain}"));
            if family == Family::V4 {
                rules.push(format!("-s 127.0.0.1 {matched} -j {chain}"));
            }
        }
    }
    let (ip, port) = (address.ip(), mapping.container_port);
    let destination = match family {
        Family::V4 => format!("{ip}:{port}"),
        Family::V6 => format!("[{ip}]:{port}"),
    };
    rules.push(format!("{matched} -j DNAT --to-destination {destination}"));
    rules
}

fn marking(bit: u8) -> (String, String) {
    let mark = 1_u32 << bit;
    (
        format!(
            "-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark {mark:#x}/{mark:#x}"
        ),
        format!("-m mark --mark {mark:#x}/{mark:#x} -j MASQUERADE"),
    )
}

#[cfg(test)]
#[path = "iptables_tests.rs"]
mod tests;
