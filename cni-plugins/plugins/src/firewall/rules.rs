//! The rules in the `filter` table: what they must be, and what has to change. Pure.

use std::net::IpAddr;

use skiff_cni::{
    firewall::{Batch, Family, Owner, Rule, Table, quote},
    types::{CniError, CniResult, IfName},
};

use super::config::{Config, Policy};

pub(super) const TABLE: &str = "filter";
/// Where containers' packets are let through.
pub(super) const FORWARD_CHAIN: &str = "CNI-FORWARD";
/// Says whose an address is.
pub(super) const OWNERS_CHAIN: &str = "SKIFF-FW-OWNERS";
pub(super) const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
pub(super) const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
const PARENT: &str = "FORWARD";

const COMMENT: &str = "-m comment --comment \"CNI firewall plugin rules\"";
const ADMIN_COMMENT: &str = "-m comment --comment \"CNI firewall plugin admin overrides\"";
const SHARED_COMMENT: &str =
    "-m comment --comment \"CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)\"";

/// What a network wants in the table beside the rules of its containers.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// The administrator's chain; none if it is not iptables that lets packets through.
    admin_chain: Option<String>,
    /// The bridge that is kept apart from others, and whether also its containers are from each other.
    isolation: Option<(IfName, bool)>,
}

impl Layout {
    /// # Errors
    /// Code 7 for a policy about a bridge where no plugin before this one has made one.
    pub(super) fn new(config: &Config, result: &CniResult) -> Result<Self, CniError> {
        let isolated = match config.policy {
            Policy::Open => None,
            Policy::SameBridge => Some(false),
            Policy::Isolated => Some(true),
        };
        let isolation = isolated
            .map(|isolated| {
                let bridge = result.interfaces.first().map(|first| first.name.as_str());
                let bridge = bridge.unwrap_or_default().parse().map_err(|error| {
                    CniError::config(format!(
                        "ingressPolicy: the first interface in \"prevResult\" is no bridge: {error}"
                    ))
                })?;
                Ok::<_, CniError>((bridge, isolated))
            })
            .transpose()?;
        Ok(Self {
            admin_chain: Some(config.admin_chain.clone()),
            isolation,
        })
    }

    /// Without what lets packets through.
    pub(super) fn policy_only(&self) -> Self {
        Self {
            admin_chain: None,
            isolation: self.isolation.clone(),
        }
    }

    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.admin_chain.is_none() && self.isolation.is_none()
    }

    fn jump() -> String {
        format!("{COMMENT} -j {FORWARD_CHAIN}")
    }

    fn isolation_jump() -> String {
        format!("{SHARED_COMMENT} -j {STAGE_1}")
    }

    fn admin_jump(admin_chain: &str) -> String {
        format!("{ADMIN_COMMENT} -j {admin_chain}")
    }

    /// Rules of a bridge, which come before the others of their chain; the first one is the first.
    fn bridge_rules(bridge: &IfName, isolated: bool) -> Vec<(&'static str, String)> {
        let bridge = quote(bridge.as_str());
        let policy = if isolated { "isolated" } else { "same-bridge" };
        let comment =
            format!("-m comment --comment \"CNI firewall plugin rules (ingressPolicy: {policy})\"");
        let mut rules = Vec::new();
        if isolated {
            rules.push((
                STAGE_1,
                format!("-i {bridge} -o {bridge} {comment} -j DROP"),
            ));
        }
        rules.push((
            STAGE_1,
            format!("-i {bridge} ! -o {bridge} {comment} -j {STAGE_2}"),
        ));
        rules.push((STAGE_2, format!("-o {bridge} {SHARED_COMMENT} -j DROP")));
        rules
    }

    fn last_rules() -> [(&'static str, String); 2] {
        let last = format!("{SHARED_COMMENT} -j RETURN");
        [(STAGE_1, last.clone()), (STAGE_2, last)]
    }

    /// Every rule that is there for more than one container.
    fn shared_rules(&self) -> Vec<(&'static str, String)> {
        let mut rules = Vec::new();
        if let Some(admin_chain) = &self.admin_chain {
            rules.push((PARENT, Self::jump()));
            rules.push((FORWARD_CHAIN, Self::admin_jump(admin_chain)));
        }
        if let Some((bridge, isolated)) = &self.isolation {
            rules.push((PARENT, Self::isolation_jump()));
            rules.extend(Self::bridge_rules(bridge, *isolated));
            rules.extend(Self::last_rules());
        }
        rules
    }

    /// Right if everything that containers share is there, and refused otherwise.
    pub(super) fn expect_and_append(&self, addresses: &[IpAddr], owner: &str) -> Batch {
        let mut batch = Batch::new(TABLE);
        for (chain, rule) in self.shared_rules() {
            batch.expect(chain, &rule);
        }
        if self.admin_chain.is_some() {
            for ip in addresses {
                append(&mut batch, *ip, owner);
            }
        }
        batch
    }

    /// What is missing.
    pub(super) fn plan_add(&self, table: &Table, addresses: &[IpAddr], owner: &str) -> Batch {
        let mut batch = Batch::new(TABLE);
        if let Some(admin_chain) = &self.admin_chain {
            for chain in [FORWARD_CHAIN, admin_chain, OWNERS_CHAIN] {
                ensure_chain(&mut batch, table, chain);
            }
            let admin = Self::admin_jump(admin_chain);
            if !table.has(FORWARD_CHAIN, &admin) {
                batch.insert(FORWARD_CHAIN, &admin);
            }
            for ip in addresses {
                plan_address(&mut batch, table, *ip, owner);
            }
        }
        if let Some((bridge, isolated)) = &self.isolation {
            plan_isolation(&mut batch, table, bridge, *isolated);
        }
        self.plan_parent(&mut batch, table);
        batch
    }

    /// The ways into the chains, once those are there.
    fn plan_parent(&self, batch: &mut Batch, table: &Table) {
        let isolation = Self::isolation_jump();
        if self.admin_chain.is_some() && !table.has(PARENT, &Self::jump()) {
            batch.insert(PARENT, &Self::jump());
            // What keeps bridges apart comes before what lets packets through.
            let existing = table.rules(PARENT).iter().filter(|r| r.is(&isolation));
            let mut wanted = self.isolation.is_some();
            for rule in existing {
                batch.delete(PARENT, rule.text());
                wanted = true;
            }
            if wanted {
                batch.insert(PARENT, &isolation);
            }
        } else if self.isolation.is_some() && !table.has(PARENT, &isolation) {
            batch.insert(PARENT, &isolation);
        }
    }

    /// A rule that should be there and is not.
    pub(super) fn missing(&self, table: &Table, addresses: &[IpAddr]) -> Option<String> {
        let own = addresses
            .iter()
            .filter(|_| self.admin_chain.is_some())
            .flat_map(|ip| accepting(*ip))
            .map(|rule| (FORWARD_CHAIN, rule));
        self.shared_rules()
            .into_iter()
            .chain(own)
            .find(|(chain, rule)| !table.has(chain, rule))
            .map(|(chain, rule)| format!("{chain} has no rule {rule}"))
    }
}

/// The rules that let a container's packets through.
fn accepting(ip: IpAddr) -> [String; 2] {
    let bits = Family::of(ip).bits();
    [
        format!("-d {ip}/{bits} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-s {ip}/{bits} -j ACCEPT"),
    ]
}

fn record(ip: IpAddr, owner: &str) -> String {
    let bits = Family::of(ip).bits();
    format!("-s {ip}/{bits} -m comment --comment {}", quote(owner))
}

fn append(batch: &mut Batch, ip: IpAddr, owner: &str) {
    for rule in accepting(ip) {
        batch.append(FORWARD_CHAIN, &rule);
    }
    batch.append(OWNERS_CHAIN, &record(ip, owner));
}

fn ensure_chain(batch: &mut Batch, table: &Table, chain: &str) {
    if !table.has_chain(chain) {
        batch.create(chain);
    }
}

fn plan_address(batch: &mut Batch, table: &Table, ip: IpAddr, owner: &str) {
    for rule in accepting(ip) {
        if !table.has(FORWARD_CHAIN, &rule) {
            batch.append(FORWARD_CHAIN, &rule);
        }
    }
    let record = record(ip, owner);
    // Whoever had the address before has it no more.
    for stale in table.rules(OWNERS_CHAIN) {
        if address_of(stale) == Some(ip) && !stale.is(&record) {
            batch.delete(OWNERS_CHAIN, stale.text());
        }
    }
    if !table.has(OWNERS_CHAIN, &record) {
        batch.append(OWNERS_CHAIN, &record);
    }
}

fn plan_isolation(batch: &mut Batch, table: &Table, bridge: &IfName, isolated: bool) {
    for chain in [STAGE_1, STAGE_2] {
        ensure_chain(batch, table, chain);
    }
    let rules = Layout::bridge_rules(bridge, isolated);
    for (chain, rule) in rules.iter().rev() {
        if !table.has(chain, rule) {
            batch.insert(chain, rule);
        }
    }
    for (chain, rule) in Layout::last_rules() {
        if !table.has(chain, &rule) {
            batch.append(chain, &rule);
        }
    }
}

/// The address that a record is about.
fn address_of(record: &Rule) -> Option<IpAddr> {
    let source = record.value("-s")?;
    source.split('/').next()?.parse().ok()
}

/// Deletes the rules of containers: those whose records `is_doomed` finds, and of the addresses `known` those that
/// belong to nobody else. Where addresses are known, a container's other ones stay: they may be those of another
/// interface in the same network.
pub(super) fn plan_delete(
    table: &Table,
    known: &[IpAddr],
    is_doomed: impl Fn(&Owner<'_>) -> bool,
) -> Batch {
    let records = table.rules(OWNERS_CHAIN);
    let doomed = |record: &Rule| {
        record
            .comment()
            .and_then(Owner::read)
            .is_some_and(|owner| is_doomed(&owner))
            && (known.is_empty() || address_of(record).is_some_and(|ip| known.contains(&ip)))
    };
    let (gone, kept): (Vec<&Rule>, Vec<&Rule>) = records.iter().partition(|record| doomed(record));
    let kept_addresses: Vec<IpAddr> = kept.iter().filter_map(|rule| address_of(rule)).collect();
    let mut addresses: Vec<IpAddr> = gone.iter().filter_map(|rule| address_of(rule)).collect();
    addresses.extend(known);
    addresses.sort_unstable();
    addresses.dedup();
    addresses.retain(|ip| !kept_addresses.contains(ip));

    let mut batch = Batch::new(TABLE);
    for rule in addresses.iter().flat_map(|ip| accepting(*ip)) {
        for found in table
            .rules(FORWARD_CHAIN)
            .iter()
            .filter(|found| found.is(&rule))
        {
            batch.delete(FORWARD_CHAIN, found.text());
        }
    }
    for record in gone {
        batch.delete(OWNERS_CHAIN, record.text());
    }
    if kept.is_empty() && table.has_chain(OWNERS_CHAIN) {
        // Refused, and planned anew, if somebody has written another record meanwhile.
        batch.remove(OWNERS_CHAIN);
    }
    batch
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
