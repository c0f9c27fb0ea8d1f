//! Port mappings by nftables, in the table of the reference plugin.
//!
//! ```text
//! table ip, ip6 cni_hostport
//!   chain skiff_prerouting, skiff_output   jump skiff_dnat
//!   chain skiff_dnat                       dnat to what skiff_hostip_hostports has; jump skiff_conditional;
//!                                          local destination: dnat to what skiff_hostports has
//!   map   skiff_hostports                  PROTOCOL . PORT : POD . PORT
//!   map   skiff_hostip_hostports           ADDRESS . PROTOCOL . PORT : POD . PORT
//!   chain skiff_conditional                a rule per mapping, for networks with conditions only
//!   chain skiff_postrouting                translated by us and in skiff_masquerade -> masquerade
//!   set   skiff_masquerade                 SOURCES . POD
//!   chain hostports, hostip_hostports, masquerading    the reference's: a rule per mapping
//! ```
//! A packet costs two look-ups, whatever the number of containers and ports. A port belongs to whoever had it last; what
//! is ours has the container's name as a comment, and every change happens under the lock.

use std::fmt::Write as _;

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::{
        Family, FirewallError, Owner,
        nft::{self, Element, Rule, Table},
    },
    types::{ContainerId, NetworkName},
};

use super::config::{Config, Mapping};

const NAME: &str = "cni_hostport";
const PORTS: &str = "skiff_hostports";
const ADDRESS_PORTS: &str = "skiff_hostip_hostports";
const SOURCES: &str = "skiff_masquerade";
const CONDITIONAL: &str = "skiff_conditional";
const DNAT: &str = "skiff_dnat";
/// Our chains, sets and maps begin with this.
const PREFIX: &str = "skiff_";
/// Where the reference plugin has rules, each with its container's name.
const REFERENCE_CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

/// The elements and rules of one container in one family.
#[derive(Debug)]
pub(super) struct Forwarding {
    family: Family,
    comment: String,
    elements: Vec<Element>,
    /// Those that elements cannot say, because of the network's conditions.
    rules: Vec<String>,
}

impl Forwarding {
    pub(super) fn new(
        config: &Config,
        address: IpNetwork,
        network: &NetworkName,
        container: &ContainerId,
    ) -> Self {
        let family = Family::of(address.ip());
        let mut forwarding = Self {
            family,
            comment: Owner::short_comment(network, container),
            elements: Vec::new(),
            rules: Vec::new(),
        };
        let conditions = config.conditions(family);
        for mapping in config.mappings(family) {
            if conditions.is_empty() {
                forwarding.push_mapping(mapping, address);
            } else {
                forwarding
                    .rules
                    .push(conditional(conditions, mapping, address));
            }
        }
        if !forwarding.is_empty() && config.masquerades() {
            for sources in sources(config.masq_all, address) {
                forwarding.push(
                    SOURCES,
                    format!("{sources} . {}", address.ip()),
                    String::new(),
                );
            }
        }
        forwarding
    }

    fn is_empty(&self) -> bool {
        self.elements.is_empty() && self.rules.is_empty()
    }

    fn push_mapping(&mut self, mapping: &Mapping, address: IpNetwork) {
        let key = format!("{} . {}", mapping.protocol.as_str(), mapping.host_port);
        let value = format!("{} . {}", address.ip(), mapping.container_port);
        match mapping.host_ip {
            Some(ip) => self.push(ADDRESS_PORTS, format!("{ip} . {key}"), value),
            None => self.push(PORTS, key, value),
        }
    }

    /// A later mapping of the same port replaces an earlier one.
    fn push(&mut self, set: &str, key: String, value: String) {
        self.elements
            .retain(|element| element.set != set || element.key != key);
        self.elements.push(Element {
            set: set.to_owned(),
            key,
            value,
            comment: self.comment.clone(),
        });
    }

    pub(super) fn ensure(&self) -> Result<(), FirewallError> {
        if self.is_empty() {
            return Ok(());
        }
        // For one more container; rules could be there already.
        let join = self.rules.is_empty().then(|| {
            let mut script = String::new();
            for element in &self.elements {
                self.create(&mut script, element);
            }
            script
        });
        nft::change(self.family.nft(), NAME, join.as_slice(), |table| {
            self.plan_ensure(table)
        })
        .map(drop)
    }

    pub(super) fn is_ensured(&self) -> Result<bool, FirewallError> {
        if self.is_empty() {
            return Ok(true);
        }
        let Some(table) = Table::list(self.family.nft(), NAME)? else {
            return Ok(false);
        };
        let rules = table
            .rules
            .iter()
            .filter(|rule| rule.chain == CONDITIONAL && rule.comment == self.comment);
        let is_linked = base_chains()
            .iter()
            .all(|(chain, _, _)| table.rules.iter().any(|rule| rule.chain == *chain));
        Ok(is_linked
            && rules.count() >= self.rules.len()
            && self
                .elements
                .iter()
                .all(|element| table.elements.contains(element)))
    }

    fn create(&self, script: &mut String, element: &Element) {
        let (family, set, key) = (self.family.nft(), &element.set, &element.key);
        let value = if element.value.is_empty() {
            String::new()
        } else {
            format!(" : {}", element.value)
        };
        line(
            script,
            &format!(
                "create element {family} {NAME} {set} {{ {key} comment \"{}\"{value} }}",
                element.comment
            ),
        );
    }

    fn plan_ensure(&self, table: Option<&Table>) -> String {
        let mut script = String::new();
        let family = self.family.nft();
        let none = Table::default();
        plan_base(self.family, table, &mut script);
        let table = table.unwrap_or(&none);
        for rule in &table.rules {
            if rule.chain == CONDITIONAL && rule.comment == self.comment {
                delete_rule(&mut script, family, rule);
            }
        }
        for found in &table.elements {
            let is_wanted = self.elements.contains(found);
            let is_in_the_way = self.elements.iter().any(|wanted| clash(wanted, found));
            if is_in_the_way && !is_wanted {
                delete_element(&mut script, family, found);
            }
        }
        for element in &self.elements {
            if !table.elements.contains(element) {
                self.create(&mut script, element);
            }
        }
        for rule in &self.rules {
            line(
                &mut script,
                &format!(
                    "add rule {family} {NAME} {CONDITIONAL} {rule} comment \"{}\"",
                    self.comment
                ),
            );
        }
        script
    }
}

/// Whether one element keeps another out. An address that masquerading is about has one container only.
fn clash(wanted: &Element, found: &Element) -> bool {
    let pod = |element: &Element| element.key.rsplit(" . ").next().map(str::to_owned);
    wanted.set == found.set
        && (wanted.key == found.key
            || wanted.set == SOURCES
                && wanted.comment != found.comment
                && pod(wanted) == pod(found))
}

/// Where packets come from that would not find their way back: the container's own subnet, and the host's loopback.
fn sources(all: bool, address: IpNetwork) -> Vec<String> {
    let v4 = address.is_ipv4();
    if all {
        return vec![if v4 { "0.0.0.0/0" } else { "::/0" }.to_owned()];
    }
    let subnet = IpNetwork::new(address.network(), address.prefix()).unwrap_or(address);
    let subnet = if subnet.prefix() == Family::of(address.ip()).bits() {
        subnet.ip().to_string()
    } else {
        subnet.to_string()
    };
    if v4 {
        vec![subnet, "127.0.0.1".to_owned()]
    } else {
        vec![subnet]
    }
}

fn conditional(conditions: &[String], mapping: &Mapping, address: IpNetwork) -> String {
    let family = Family::of(address.ip());
    let word = family.nft();
    let destination = match mapping.host_ip {
        Some(ip) => format!("{word} daddr {ip}"),
        None => "fib daddr type local".to_owned(),
    };
    let (ip, port) = (address.ip(), mapping.container_port);
    let pod = match family {
        Family::V4 => format!("{ip}:{port}"),
        Family::V6 => format!("[{ip}]:{port}"),
    };
    format!(
        "{} {destination} meta l4proto {} th dport {} dnat {word} to {pod}",
        conditions.join(" "),
        mapping.protocol.as_str(),
        mapping.host_port,
    )
}

/// Name, hook and priority.
fn base_chains() -> [(&'static str, &'static str, i32); 3] {
    [
        ("skiff_prerouting", "prerouting", -100),
        ("skiff_output", "output", -100),
        ("skiff_postrouting", "postrouting", 100),
    ]
}

/// What is missing of the layout.
fn plan_base(family: Family, table: Option<&Table>, script: &mut String) {
    let word = family.nft();
    let has_rules =
        |name: &str| table.is_some_and(|table| table.rules.iter().any(|rule| rule.chain == name));
    if base_chains().iter().all(|(chain, _, _)| has_rules(chain)) && has_rules(DNAT) {
        return;
    }
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    line(script, &format!("add table {word} {NAME}"));
    let value = format!("{address} . inet_service");
    for (kind, name, content) in [
        (
            "map",
            PORTS,
            format!("type inet_proto . inet_service : {value};"),
        ),
        (
            "map",
            ADDRESS_PORTS,
            format!("type {address} . inet_proto . inet_service : {value};"),
        ),
        (
            "set",
            SOURCES,
            format!("type {address} . {address}; flags interval;"),
        ),
    ] {
        line(
            script,
            &format!("add {kind} {word} {NAME} {name} {{ {content} }}"),
        );
    }
    for chain in [CONDITIONAL, DNAT] {
        line(script, &format!("add chain {word} {NAME} {chain}"));
    }
    let dnat = format!("dnat {word} to");
    let mut rules = vec![
        (
            DNAT,
            format!("{dnat} {word} daddr . meta l4proto . th dport map @{ADDRESS_PORTS}"),
        ),
        (DNAT, format!("jump {CONDITIONAL}")),
        (
            DNAT,
            format!("fib daddr type local {dnat} meta l4proto . th dport map @{PORTS}"),
        ),
    ];
    for (chain, hook, priority) in base_chains() {
        line(
            script,
            &format!(
                "add chain {word} {NAME} {chain} {{ type nat hook {hook} priority {priority}; }}"
            ),
        );
        rules.push((
            chain,
            if hook == "postrouting" {
                format!("ct status dnat {word} saddr . {word} daddr @{SOURCES} masquerade")
            } else {
                format!("jump {DNAT}")
            },
        ));
    }
    for chain in rules.iter().map(|(chain, _)| chain) {
        line(script, &format!("flush chain {word} {NAME} {chain}"));
    }
    for (chain, rule) in &rules {
        line(script, &format!("add rule {word} {NAME} {chain} {rule}"));
    }
}

/// Removes what is a container's, the reference plugin's rules too. Says whether there was anything.
pub(super) fn remove(
    family: Family,
    network: &NetworkName,
    container: &ContainerId,
) -> Result<bool, FirewallError> {
    remove_if(family, |chain, comment| match chain {
        Some(chain) if REFERENCE_CHAINS.contains(&chain) => comment == container.as_str(),
        _ => Owner::read(comment)
            .is_some_and(|owner| owner.is_network(network) && owner.is_container(container)),
    })
}

/// Removes what is of a network's containers that are not valid. The reference plugin's rules do not name theirs.
pub(super) fn sweep(
    family: Family,
    network: &NetworkName,
    is_valid: impl Fn(Owner<'_>) -> bool,
) -> Result<bool, FirewallError> {
    remove_if(family, |_, comment| {
        Owner::read(comment).is_some_and(|owner| owner.is_network(network) && !is_valid(owner))
    })
}

fn remove_if(
    family: Family,
    is_doomed: impl Fn(Option<&str>, &str) -> bool,
) -> Result<bool, FirewallError> {
    nft::change(family.nft(), NAME, &[], |table| {
        table
            .map(|table| plan_remove(family, table, &is_doomed))
            .unwrap_or_default()
    })
}

/// The table goes with its last element, unless the reference plugin uses it.
fn plan_remove(
    family: Family,
    table: &Table,
    is_doomed: impl Fn(Option<&str>, &str) -> bool,
) -> String {
    let word = family.nft();
    let mut script = String::new();
    let (elements, kept_elements): (Vec<&Element>, Vec<_>) = table
        .elements
        .iter()
        .partition(|element| is_doomed(None, &element.comment));
    let (rules, kept_rules): (Vec<&Rule>, Vec<_>) = table
        .rules
        .iter()
        .partition(|rule| is_doomed(Some(&rule.chain), &rule.comment));
    if elements.is_empty() && rules.is_empty() {
        return script;
    }
    let is_ours = |name: &String| name.starts_with(PREFIX);
    let is_needed = !kept_elements.is_empty()
        || kept_rules.iter().any(|rule| !rule.comment.is_empty())
        || !table.chains.iter().chain(&table.sets).all(is_ours);
    if !is_needed {
        line(&mut script, &format!("delete table {word} {NAME}"));
        return script;
    }
    for element in elements {
        delete_element(&mut script, word, element);
    }
    for rule in rules {
        delete_rule(&mut script, word, rule);
    }
    script
}

fn line(script: &mut String, text: &str) {
    // Writing into a String cannot fail.
    writeln!(script, "{text}").ok();
}

fn delete_element(script: &mut String, family: &str, element: &Element) {
    let (set, key) = (&element.set, &element.key);
    line(
        script,
        &format!("delete element {family} {NAME} {set} {{ {key} }}"),
    );
}

fn delete_rule(script: &mut String, family: &str, rule: &Rule) {
    let (chain, handle) = (&rule.chain, rule.handle);
    line(
        script,
        &format!("delete rule {family} {NAME} {chain} handle {handle}"),
    );
}

#[cfg(test)]
#[path = "nftables_tests.rs"]
mod tests;
