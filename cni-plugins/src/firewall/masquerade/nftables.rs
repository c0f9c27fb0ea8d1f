//! Masquerading by nftables, in the table of the reference plugins.
//!
//! ```text
//! table inet cni_plugins_masquerade
//!   chain skiff_postrouting   multicast -> return; source address -> verdict of skiff_pods4 or skiff_pods6
//!   map   skiff_pods4/6       POD : goto skiff_<hash>, with the pod's name as a comment
//!   chain skiff_<hash>        to SUBNET -> return; masquerade                       one per network and subnet
//!   chain masq_checks         the reference's: a rule per pod
//! ```
//! A packet costs one look-up, whatever the number of pods and networks. An address belongs to whoever had it last; an
//! element is removed only if its comment names the container, which is why every change happens under the lock.

use std::{fmt::Write as _, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{Removal, subnet_of};
use crate::{
    fingerprint,
    firewall::{
        Family, FirewallError, Owner,
        nft::{self, Table},
    },
    types::{ContainerId, NetworkName},
};

/// Family and name of the table.
const TABLE: &str = "inet cni_plugins_masquerade";
const FAMILY: &str = "inet";
const NAME: &str = "cni_plugins_masquerade";
const BASE_CHAIN: &str = "skiff_postrouting";
/// Our chains and maps begin with this.
const PREFIX: &str = "skiff_";
/// Where the reference plugins have a rule for each container.
const REFERENCE_CHAIN: &str = "masq_checks";

struct Wanted {
    family: Family,
    ip: IpAddr,
    subnet: IpNetwork,
    chain: String,
    comment: String,
}

impl Wanted {
    fn all(network: &NetworkName, addresses: &[IpNetwork], container: &ContainerId) -> Vec<Self> {
        let wanted = addresses.iter().map(|address| {
            let subnet = subnet_of(*address);
            let hash = fingerprint(&[network.as_str(), &subnet.to_string()], 16);
            Self {
                family: Family::of(address.ip()),
                ip: address.ip(),
                subnet,
                chain: format!("{PREFIX}{hash}"),
                comment: Owner::short_comment(network, container),
            }
        });
        wanted.collect()
    }

    fn map(&self) -> &'static str {
        map_of(self.family)
    }

    fn create_element(&self) -> String {
        let Self {
            ip, chain, comment, ..
        } = self;
        let map = self.map();
        format!("create element {TABLE} {map} {{ {ip} comment \"{comment}\" : goto {chain} }}\n")
    }

    fn is_in(&self, table: &Table) -> bool {
        table
            .element(self.map(), &self.ip.to_string())
            .is_some_and(|found| {
                found.comment == self.comment && found.value == format!("goto {}", self.chain)
            })
    }
}

fn map_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "skiff_pods4",
        Family::V6 => "skiff_pods6",
    }
}

pub(super) fn ensure(
    network: &NetworkName,
    addresses: &[IpNetwork],
    container: &ContainerId,
) -> Result<(), FirewallError> {
    let wanted = Wanted::all(network, addresses, container);
    let join: String = wanted.iter().map(Wanted::create_element).collect();
    let guesses = [join, plan_ensure(None, &wanted)];
    nft::change(FAMILY, NAME, &guesses, |table| plan_ensure(table, &wanted)).map(drop)
}

pub(super) fn is_ensured(
    network: &NetworkName,
    addresses: &[IpNetwork],
    container: &ContainerId,
) -> Result<bool, FirewallError> {
    let Some(table) = Table::list(FAMILY, NAME)? else {
        return Ok(addresses.is_empty());
    };
    let has_rules = |chain: &str| table.rules.iter().any(|rule| rule.chain == chain);
    Ok(has_rules(BASE_CHAIN)
        && Wanted::all(network, addresses, container)
            .iter()
            .all(|wanted| wanted.is_in(&table) && has_rules(&wanted.chain)))
}

/// Removes what is doomed, and says whether there was anything.
pub(super) fn remove(removal: &Removal<'_>) -> Result<bool, FirewallError> {
    nft::change(FAMILY, NAME, &[], |table| {
        table
            .map(|table| plan_remove(table, removal))
            .unwrap_or_default()
    })
}

/// Removes every network's elements and chains.
pub(super) fn remove_all() -> Result<(), FirewallError> {
    nft::change(FAMILY, NAME, &[], |table| {
        table
            .filter(|table| table.chains.contains(BASE_CHAIN))
            .map(|table| plan_clean(table, |_| false))
            .unwrap_or_default()
    })
    .map(drop)
}

/// What is missing of the layout and the elements. Without a table it is refused if there is one.
fn plan_ensure(table: Option<&Table>, wanted: &[Wanted]) -> String {
    let mut script = String::new();
    if table.is_none() {
        let _infallible = writeln!(script, "create table {TABLE}");
    }
    let none = Table::default();
    let table = table.unwrap_or(&none);
    plan_base(table, &mut script);
    let mut created: Vec<&str> = Vec::new();
    for wanted in wanted {
        let chain = &*wanted.chain;
        let has_rules = table.rules.iter().any(|rule| rule.chain == chain);
        if !has_rules && !created.contains(&chain) {
            let (family, subnet) = (wanted.family.nft(), wanted.subnet);
            created.push(chain);
            add(&mut script, &format!("chain {TABLE} {chain}"));
            add(
                &mut script,
                &format!("rule {TABLE} {chain} {family} daddr {subnet} return"),
            );
            add(&mut script, &format!("rule {TABLE} {chain} masquerade"));
        }
        if wanted.is_in(table) {
            continue;
        }
        let ip = wanted.ip.to_string();
        if table.element(wanted.map(), &ip).is_some() {
            delete_element(&mut script, wanted.map(), &ip);
        }
        script.push_str(&wanted.create_element());
    }
    script
}

fn plan_base(table: &Table, script: &mut String) {
    for family in Family::BOTH {
        let map = map_of(family);
        if !table.sets.contains(map) {
            let key = match family {
                Family::V4 => "ipv4_addr",
                Family::V6 => "ipv6_addr",
            };
            add(
                script,
                &format!("map {TABLE} {map} {{ type {key} : verdict; }}"),
            );
        }
    }
    if table.rules.iter().any(|rule| rule.chain == BASE_CHAIN) {
        return;
    }
    add(
        script,
        &format!("chain {TABLE} {BASE_CHAIN} {{ type nat hook postrouting priority 100; }}"),
    );
    for family in Family::BOTH {
        let (word, multicast, map) = (family.nft(), family.multicast(), map_of(family));
        let rule = format!("rule {TABLE} {BASE_CHAIN} {word}");
        add(script, &format!("{rule} daddr {multicast} return"));
        add(script, &format!("{rule} saddr vmap @{map}"));
    }
}

fn plan_remove(table: &Table, removal: &Removal<'_>) -> String {
    let is_doomed =
        |element: &nft::Element| removal.dooms(&element.comment, element.key.parse().ok());
    let mut script = String::new();
    for rule in &table.rules {
        if rule.chain == REFERENCE_CHAIN && removal.dooms(&rule.comment, None) {
            let handle = rule.handle;
            let _infallible = writeln!(
                script,
                "delete rule {TABLE} {REFERENCE_CHAIN} handle {handle}"
            );
        }
    }
    if table.elements.iter().any(is_doomed) {
        script += &plan_clean(table, |element| !is_doomed(element));
    }
    script
}

/// Removes the elements that are not to be kept, the chains that no other element leads to, and our share of the table
/// if nothing of ours is left in it. The table goes too unless a reference plugin uses it.
fn plan_clean(table: &Table, keep: impl Fn(&nft::Element) -> bool) -> String {
    let mut script = String::new();
    let (kept, gone): (Vec<_>, Vec<_>) = table
        .elements
        .iter()
        .filter(|element| is_pods_map(&element.set))
        .partition(|element| keep(element));
    let is_ours = |name: &&String| name.starts_with(PREFIX);
    let is_foreign = |name: &String| !name.starts_with(PREFIX);
    if kept.is_empty() && !table.chains.iter().chain(&table.sets).any(is_foreign) {
        let _infallible = writeln!(script, "delete table {TABLE}");
        return script;
    }
    for element in gone {
        delete_element(&mut script, &element.set, &element.key);
    }
    let chains: Vec<&String> = table
        .chains
        .iter()
        .filter(is_ours)
        .filter(|chain| {
            let verdict = format!("goto {chain}");
            !kept.iter().any(|element| element.value == verdict)
                && (kept.is_empty() || *chain != BASE_CHAIN)
        })
        .collect();
    for verb in ["flush", "delete"] {
        for chain in &chains {
            let _infallible = writeln!(script, "{verb} chain {TABLE} {chain}");
        }
    }
    if kept.is_empty() {
        for set in table.sets.iter().filter(is_ours) {
            let _infallible = writeln!(script, "delete map {TABLE} {set}");
        }
    }
    script
}

fn is_pods_map(set: &str) -> bool {
    Family::BOTH.iter().any(|family| map_of(*family) == set)
}

fn add(script: &mut String, object: &str) {
    script.push_str("add ");
    script.push_str(object);
    script.push('\n');
}

fn delete_element(script: &mut String, map: &str, key: &str) {
    let _infallible = writeln!(script, "delete element {TABLE} {map} {{ {key} }}");
}

#[cfg(test)]
#[path = "nftables_tests.rs"]
mod tests;
