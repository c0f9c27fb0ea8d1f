//! The rules of a backend set: one chain that chooses, one for each member, and one for clients from outside. Pure.
//!
//! ```text
//! SKIFF-EXT  from outside: masquerade and choose from all, or (Local) keep the client and choose from this node's
//! SKIFF-SVC  -m recent  ... -> SKIFF-SEP     whoever came lately goes where he went
//!            -m statistic ... -> SKIFF-SEP   everybody else anywhere
//! SKIFF-SEP  masquerade who talks to himself, note who came, DNAT
//! ```

use std::{collections::BTreeSet, net::SocketAddr};

use ipnetwork::IpNetwork;
use skiff_ebpf_loader::{Backend, Frontend, FrontendSpec, IpFamily, Protocol, SetId};

use super::{
    chain::{Balancer, ChainId, Chains, MARK_MASQ, TableName, family_of, protocol_name},
    state::State,
};

/// The family and protocol of a frontend.
pub(super) fn kind_of(frontend: &Frontend) -> (IpFamily, Protocol) {
    match *frontend {
        Frontend::Address { addr, protocol, .. } => (IpFamily::of(addr), protocol),
        Frontend::NodePort {
            family, protocol, ..
        } => (family, protocol),
    }
}

/// The set for clients inside, as it serves this frontend.
pub(super) fn balancer_of(frontend: &Frontend, spec: &FrontendSpec) -> Balancer {
    let (family, protocol) = kind_of(frontend);
    Balancer {
        family,
        set: spec.inside,
        protocol,
        affinity_seconds: spec.affinity_seconds,
    }
}

/// Whether any client of a frontend reaches a backend.
pub(super) fn is_served(state: &State, inside: &Balancer, outside: Option<SetId>) -> bool {
    let mut sets = [Some(inside.set), outside].into_iter().flatten();
    sets.any(|set| !state.is_empty(set, inside.family))
}

/// The members that a frontend of that family can be served by.
fn members(state: &State, balancer: &Balancer) -> Vec<Backend> {
    let all = state.members(balancer.set).iter().copied();
    all.filter(|member| IpFamily::of(member.addr) == balancer.family)
        .collect()
}

/// All chains of a set.
pub(super) fn chains_of(state: &State, set: SetId, pods: &[IpNetwork]) -> Chains {
    let (mut balancers, mut externals) = (BTreeSet::new(), BTreeSet::new());
    for (frontend, spec) in state.users(set) {
        let inside = balancer_of(&frontend, &spec);
        balancers.insert(Balancer { set, ..inside });
        if let Some(outside) = spec.outside.filter(|_| spec.inside == set) {
            externals.insert((inside, outside));
        }
    }
    let mut chains = Chains::new();
    let mut add = |family, name, rules: Vec<String>| {
        let id = ChainId::new(family_of(family), TableName::Nat, name);
        chains.insert(id, Some(rules));
    };
    for balancer in balancers {
        let members = members(state, &balancer);
        if members.is_empty() {
            continue;
        }
        for member in &members {
            let rules = backend_rules(&balancer, member);
            add(balancer.family, balancer.backend_chain(member), rules);
        }
        add(
            balancer.family,
            balancer.chain(),
            choosing_rules(&balancer, &members),
        );
    }
    for (inside, outside) in externals {
        if is_served(state, &inside, Some(outside)) {
            let rules = external_rules(state, &inside, outside, pods);
            add(inside.family, inside.external_chain(outside), rules);
        }
    }
    chains
}

fn choosing_rules(balancer: &Balancer, members: &[Backend]) -> Vec<String> {
    let mut rules = Vec::new();
    if balancer.affinity_seconds != 0 {
        for member in members {
            let chain = balancer.backend_chain(member);
            rules.push(format!(
                "-m recent --rcheck --seconds {} --reap --name {chain} --mask {} --rsource -j {chain}",
                balancer.affinity_seconds,
                whole_mask(balancer.family)
            ));
        }
    }
    for (left, member) in (1..=members.len()).rev().zip(members) {
        let chain = balancer.backend_chain(member);
        rules.push(match left {
            1 => format!("-j {chain}"),
            left => format!(
                "-m statistic --mode random --probability {} -j {chain}",
                probability(left)
            ),
        });
    }
    rules
}

/// One of so many, as `iptables-save` prints it: the kernel keeps 31 bits.
fn probability(of: usize) -> String {
    const UNIT: f64 = 2_147_483_648.0;
    let of = u32::try_from(of).unwrap_or(u32::MAX);
    format!("{:.11}", (UNIT / f64::from(of)).round() / UNIT)
}

fn backend_rules(balancer: &Balancer, member: &Backend) -> Vec<String> {
    let (addr, protocol) = (member.addr, protocol_name(balancer.protocol));
    let host = IpNetwork::from(addr);
    let note = match balancer.affinity_seconds {
        0 => String::new(),
        _ => format!(
            "-m recent --set --name {} --mask {} --rsource ",
            balancer.backend_chain(member),
            whole_mask(balancer.family)
        ),
    };
    vec![
        // It would take an answer from itself for a stranger's.
        format!("-s {host} -j {MARK_MASQ}"),
        format!(
            "-p {protocol} {note}-m {protocol} -j DNAT --to-destination {}",
            SocketAddr::new(addr, member.port)
        ),
    ]
}

fn external_rules(
    state: &State,
    inside: &Balancer,
    outside: SetId,
    pods: &[IpNetwork],
) -> Vec<String> {
    let choose = inside.chain();
    if outside == inside.set {
        // The answer must come back through this node.
        return vec![format!("-j {MARK_MASQ}"), format!("-j {choose}")];
    }
    let mut rules = Vec::new();
    if !state.is_empty(inside.set, inside.family) {
        for range in of_family(pods, inside.family) {
            rules.push(format!("-s {range} -j {choose}"));
        }
        for target in [MARK_MASQ, &choose] {
            rules.push(format!("-m addrtype --src-type LOCAL -j {target}"));
        }
    }
    if !state.is_empty(outside, inside.family) {
        let local = Balancer {
            set: outside,
            ..*inside
        };
        rules.push(format!("-j {}", local.chain()));
    }
    rules
}

/// The ranges of one family.
pub(super) fn of_family(
    ranges: &[IpNetwork],
    family: IpFamily,
) -> impl Iterator<Item = &IpNetwork> {
    ranges
        .iter()
        .filter(move |range| IpFamily::of(range.ip()) == family)
}

fn whole_mask(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "255.255.255.255",
        IpFamily::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}
