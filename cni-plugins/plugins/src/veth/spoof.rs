//! `macspoofchk`: frames that leave a container must carry its link's hardware address.
//!
//! ```text
//! table bridge skiff-cni
//!   prerouting       iifname vmap @ports                       one rule, however many containers
//!   ports            VETH : jump spoof-NETWORK-ATTACHMENT      one element per container
//!   spoof-...        ether saddr MAC return; drop
//! ```
//! The chain has a name that follows from the attachment: DEL needs neither the link nor its address.

use std::collections::HashSet;

use skiff_cni::{
    fingerprint,
    firewall::{FirewallError, nft},
    types::{AttachmentKey, ContainerId, IfName, NetworkName},
};

const FAMILY: &str = "bridge";
const TABLE: &str = "skiff-cni";
/// Where the reference plugin has its rules.
const REFERENCE_TABLE: &str = "nat";
const MAP: &str = "ports";

/// The rules of one network.
#[derive(Debug, Clone)]
pub(crate) struct SpoofCheck {
    network: NetworkName,
}

impl SpoofCheck {
    pub(crate) fn new(network: NetworkName) -> Self {
        Self { network }
    }

    fn prefix(&self) -> String {
        format!("spoof-{}-", fingerprint(&[self.network.as_str()], 12))
    }

    fn chain(&self, container: &ContainerId, ifname: &IfName) -> String {
        let attachment = fingerprint(&[container.as_str(), ifname.as_str()], 24);
        format!("{}{attachment}", self.prefix())
    }

    /// Lets only frames from `mac` in by `veth`. Again is success.
    pub(crate) fn ensure(
        &self,
        veth: &str,
        mac: &str,
        container: &ContainerId,
        ifname: &IfName,
    ) -> Result<(), FirewallError> {
        nft::apply(&plan_ensure(veth, mac, &self.chain(container, ifname)))
    }

    /// Whether the rules are there.
    pub(crate) fn is_ensured(
        &self,
        veth: &str,
        container: &ContainerId,
        ifname: &IfName,
    ) -> Result<bool, FirewallError> {
        let Some(table) = nft::Table::list(FAMILY, TABLE)? else {
            return Ok(false);
        };
        let chain = self.chain(container, ifname);
        let has_rules = |name: &str, count| {
            let rules = table.rules.iter().filter(|rule| rule.chain == name);
            rules.count() >= count
        };
        let jump = format!("jump {chain}");
        let jumps = table
            .element(MAP, veth)
            .is_some_and(|element| element.value == jump);
        Ok(jumps && has_rules(&chain, 2) && has_rules("prerouting", 1))
    }

    /// Removes an attachment's rules, also those that the reference plugin made. Absent is success.
    pub(crate) fn delete(
        &self,
        container: &ContainerId,
        ifname: &IfName,
    ) -> Result<(), FirewallError> {
        let chain = self.chain(container, ifname);
        let ours = Self::delete_ours(|name| name == chain);
        let id = format!("{container}-{ifname}");
        ours.and(Self::delete_references(&id))
    }

    /// Removes the rules of all attachments but `valid` ones.
    pub(crate) fn sweep(&self, valid: &[AttachmentKey]) -> Result<(), FirewallError> {
        let prefix = self.prefix();
        let valid: HashSet<String> = valid
            .iter()
            .map(|key| self.chain(&key.container_id, &key.ifname))
            .collect();
        Self::delete_ours(|name| name.starts_with(&prefix) && !valid.contains(name))
    }

    fn delete_ours(is_doomed: impl Fn(&str) -> bool) -> Result<(), FirewallError> {
        match nft::Table::list(FAMILY, TABLE)? {
            Some(table) => apply(&plan_delete(&table, is_doomed)),
            None => Ok(()),
        }
    }

    fn delete_references(id: &str) -> Result<(), FirewallError> {
        match nft::Table::list(FAMILY, REFERENCE_TABLE)? {
            Some(table) => apply(&plan_delete_references(&table, id)),
            None => Ok(()),
        }
    }
}

fn apply(script: &str) -> Result<(), FirewallError> {
    if script.is_empty() {
        return Ok(());
    }
    nft::apply(script)
}

fn plan_ensure(veth: &str, mac: &str, chain: &str) -> String {
    let table = format!("{FAMILY} {TABLE}");
    [
        format!("add table {table}"),
        format!("add map {table} {MAP} {{ type ifname : verdict; }}"),
        format!(
            "add chain {table} prerouting {{ type filter hook prerouting priority -300; policy accept; }}"
        ),
        // Once, whatever was there.
        format!("flush chain {table} prerouting"),
        format!("add rule {table} prerouting iifname vmap @{MAP}"),
        format!("add chain {table} {chain}"),
        format!("flush chain {table} {chain}"),
        format!("add rule {table} {chain} ether saddr {mac} return"),
        format!("add rule {table} {chain} drop"),
        format!("add element {table} {MAP} {{ \"{veth}\" : jump {chain} }}"),
        String::new(),
    ]
    .join("\n")
}

fn plan_delete(table: &nft::Table, is_doomed: impl Fn(&str) -> bool) -> String {
    let mut script = String::new();
    for element in &table.elements {
        let is_doomed = element.value.strip_prefix("jump ").is_some_and(&is_doomed);
        if element.set == MAP && is_doomed {
            script += &format!(
                "delete element {FAMILY} {TABLE} {MAP} {{ \"{}\" }}\n",
                element.key
            );
        }
    }
    for chain in table.chains.iter().filter(|chain| is_doomed(chain)) {
        script += &format!("flush chain {FAMILY} {TABLE} {chain}\n");
        script += &format!("delete chain {FAMILY} {TABLE} {chain}\n");
    }
    script
}

/// The reference plugin has a rule in `PREROUTING` that leads to a chain, which leads to another.
fn plan_delete_references(table: &nft::Table, id: &str) -> String {
    let mut script = String::new();
    let comment = format!("macspoofchk-{id}");
    for rule in &table.rules {
        if rule.comment == comment {
            script += &format!(
                "delete rule {FAMILY} {REFERENCE_TABLE} {} handle {}\n",
                rule.chain, rule.handle
            );
        }
    }
    for suffix in ["", "-mac"] {
        let chain = format!("cni-br-iface-{id}{suffix}");
        if table.chains.contains(&chain) {
            script += &format!("delete chain {FAMILY} {REFERENCE_TABLE} {chain}\n");
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_doomed_go() {
        let objects = json!([
            {"chain": {"name": "prerouting"}}, {"chain": {"name": "spoof-a"}}, {"chain": {"name": "spoof-b"}},
            {"map": {"name": "ports", "elem": [
                ["veth1", {"jump": {"target": "spoof-a"}}], ["veth2", {"jump": {"target": "spoof-b"}}],
            ]}},
        ]);
        let table = nft::Table::from_objects(objects.as_array().unwrap());
        let script = plan_delete(&table, |chain| chain == "spoof-b");
        assert_eq!(
            script,
            "delete element bridge skiff-cni ports { \"veth2\" }\nflush chain bridge skiff-cni spoof-b\n\
             delete chain bridge skiff-cni spoof-b\n"
        );
        assert_eq!(plan_delete(&table, |_| false), "");
    }

    #[test]
    fn the_references_rules_are_known_by_their_comment() {
        let objects = json!([
            {"chain": {"name": "PREROUTING"}}, {"chain": {"name": "cni-br-iface-c1-eth0"}},
            {"chain": {"name": "cni-br-iface-c1-eth0-mac"}},
            {"rule": {"chain": "PREROUTING", "handle": 4, "comment": "macspoofchk-c1-eth0"}},
            {"rule": {"chain": "PREROUTING", "handle": 5, "comment": "macspoofchk-c11-eth0"}},
        ]);
        let table = nft::Table::from_objects(objects.as_array().unwrap());
        let script = plan_delete_references(&table, "c1-eth0");
        assert_eq!(
            script,
            "delete rule bridge nat PREROUTING handle 4\ndelete chain bridge nat cni-br-iface-c1-eth0\n\
             delete chain bridge nat cni-br-iface-c1-eth0-mac\n"
        );
    }
}
