//! The rules that are there whatever Services there are. Pure.

use skiff_cni::firewall::{Batch, Family, Table};
use skiff_ebpf_loader::IpFamily;

use super::{
    balance::of_family,
    chain::{
        ChainId, Chains, FORWARD, LOCALNET, MARK_MASQ, MARK_OUTSIDE, POSTROUTING, SERVICES,
        TableName, family_of, is_ours,
    },
    dispatch::{Ranges, node_ports_of, root},
    state::State,
};

/// The bit that upstream's proxy uses for this, which CNI plugins therefore leave alone.
const MASQUERADE_MARK: &str = "0x4000/0x4000";

/// The fixed chains of a family, and those that are there even without a Service.
pub(super) fn chains(state: &State, family: IpFamily, ranges: &Ranges) -> Chains {
    let mark = format!("-j MARK --set-xmark {MASQUERADE_MARK}");
    let mut outside: Vec<String> = of_family(&ranges.pods, family)
        .map(|range| format!("-s {range} -j RETURN"))
        .collect();
    if !outside.is_empty() {
        // Without a range nobody can be told from a pod.
        outside.push(mark.clone());
    }
    let masquerade = vec![
        format!("-m mark ! --mark {MASQUERADE_MARK} -j RETURN"),
        // It may pass here again, inside a tunnel.
        "-j MARK --set-xmark 0x4000/0x0".to_owned(),
        "-j MASQUERADE --random-fully".to_owned(),
    ];
    let forward = vec![
        // What a connection does not expect would be answered by a reset, which ends it.
        "-m conntrack --ctstate INVALID -j DROP".to_owned(),
        format!("-m mark --mark {MASQUERADE_MARK} -j ACCEPT"),
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
    ];
    let mut chains = Chains::new();
    let mut add = |table, name: &str, rules| {
        chains.insert(ChainId::new(family_of(family), table, name), Some(rules));
    };
    add(TableName::Nat, MARK_MASQ, vec![mark]);
    add(TableName::Nat, MARK_OUTSIDE, outside);
    add(TableName::Nat, POSTROUTING, masquerade);
    add(TableName::Filter, FORWARD, forward);
    if family == IpFamily::V4 {
        // `route_localnet` would let neighbours speak to what listens on loopback only.
        let strangers = "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack \
                         ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
        add(TableName::Filter, LOCALNET, vec![strangers.to_owned()]);
    }
    for table in TableName::ALL {
        chains.extend([root(state, table, family, ranges)]);
        chains.extend([node_ports_of(state, table, family)]);
    }
    chains
}

/// The rules in the kernel's own chains that lead to ours.
fn jumps(family: Family, table: TableName) -> Vec<(&'static str, String)> {
    let services = format!("-j {SERVICES}");
    let new = format!("-m conntrack --ctstate NEW -j {SERVICES}");
    match table {
        TableName::Nat => vec![
            ("PREROUTING", services.clone()),
            ("OUTPUT", services),
            ("POSTROUTING", format!("-j {POSTROUTING}")),
        ],
        TableName::Filter => {
            let mut all = vec![
                ("INPUT", new.clone()),
                ("FORWARD", format!("-j {FORWARD}")),
                ("FORWARD", new.clone()),
                ("OUTPUT", new),
            ];
            if family == Family::V4 {
                all.push(("INPUT", format!("-j {LOCALNET}")));
            }
            all
        }
    }
}

/// Those that a table lacks.
pub(super) fn missing_jumps(
    family: Family,
    table: TableName,
    found: &Table,
) -> Vec<(&'static str, String)> {
    let mut missing = jumps(family, table);
    missing.retain(|(parent, rule)| !found.has(parent, rule));
    missing
}

/// Removes all of ours from a table.
pub(super) fn plan_removal(table: TableName, found: &Table) -> Batch {
    let mut batch = Batch::new(table.as_str());
    let ours: Vec<&str> = super::chain::ours(found).collect();
    for chain in &ours {
        batch.flush(chain);
    }
    for chain in found.chains().filter(|name| !is_ours(name)) {
        for rule in found.rules(chain) {
            if rule.target().is_some_and(is_ours) {
                batch.delete(chain, rule.text());
            }
        }
    }
    for chain in &ours {
        batch.remove(chain);
    }
    batch
}
