//! The rules that find a frontend's chain, and those that refuse it. Pure.
//!
//! Addresses are found by a tree of ranges, so that neither a packet nor a change meets all Services:
//!
//! ```text
//! SKIFF-SERVICES           -d 10.96.0.0/16 -> SKIFF-NET-10.96.0.0_16      in `filter`: only ranges with something refused
//! SKIFF-NET-10.96.0.0_16   -d 10.96.48.0/20 -> SKIFF-NET-10.96.48.0_20
//! ...
//! SKIFF-NET-10.96.50.16_28 -d 10.96.50.17/32 -p tcp --dport 80 -> the frontend's chain, or REJECT, or DROP
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use skiff_ebpf_loader::{Frontend, FrontendSpec, IpFamily, Protocol};

use super::{
    balance::{balancer_of, is_served, of_family},
    chain::{
        ChainId, Chains, MARK_OUTSIDE, NODE_PORTS, SERVICES, TableName, family_of, net_chain,
        protocol_name,
    },
    state::State,
};

/// The lengths of the ranges, from the root to the leaves.
fn lengths(family: IpFamily) -> &'static [u8] {
    match family {
        IpFamily::V4 => &[16, 20, 24, 28],
        IpFamily::V6 => &[104, 108, 112, 116, 120, 124],
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: IpAddr,
    length: u8,
}

impl Range {
    fn around(addr: IpAddr, length: u8) -> Self {
        let first = match addr {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Ipv4Addr::from(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Ipv6Addr::from(v6.to_bits() & mask).into()
            }
        };
        Self { first, length }
    }

    fn last(&self) -> IpAddr {
        match self.first {
            IpAddr::V4(v4) => {
                let rest = u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                Ipv4Addr::from(v4.to_bits() | rest).into()
            }
            IpAddr::V6(v6) => {
                let rest = u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                Ipv6Addr::from(v6.to_bits() | rest).into()
            }
        }
    }

    fn chain(&self) -> String {
        net_chain(&self.first.to_string(), self.length)
    }
}

/// A frontend with its address, if it has one.
type Addressed<'a> = (IpAddr, &'a Frontend, &'a FrontendSpec);

/// The frontends with addresses of a range, in order.
fn in_range<'a>(
    frontends: &'a BTreeMap<Frontend, FrontendSpec>,
    first: IpAddr,
    last: IpAddr,
) -> impl Iterator<Item = Addressed<'a>> {
    let from = Frontend::Address {
        addr: first,
        port: 0,
        protocol: Protocol::Tcp,
    };
    let until = Frontend::Address {
        addr: last,
        port: u16::MAX,
        protocol: Protocol::Udp,
    };
    frontends
        .range(from..=until)
        .filter_map(|(frontend, spec)| match frontend {
            Frontend::Address { addr, .. } => Some((*addr, frontend, spec)),
            Frontend::NodePort { .. } => None,
        })
}

/// The node's ranges, as far as rules name them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    /// Of pods.
    pub(super) pods: Vec<IpNetwork>,
    /// Of Services: what is in them and no Service's is refused.
    pub(super) services: Vec<IpNetwork>,
}

/// The chains on the way to these frontends.
pub(super) fn chains_to(state: &State, frontends: &BTreeSet<Frontend>, ranges: &Ranges) -> Chains {
    let mut chains = Chains::new();
    let (mut roots, mut node_ports, mut nodes) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for frontend in frontends {
        match *frontend {
            Frontend::NodePort { family, .. } => {
                node_ports.insert(family);
            }
            Frontend::Address { addr, .. } => {
                let family = IpFamily::of(addr);
                roots.insert(family);
                for (level, length) in lengths(family).iter().enumerate() {
                    nodes.insert((level, Range::around(addr, *length)));
                }
            }
        }
    }
    for table in TableName::ALL {
        for (level, range) in &nodes {
            let rules = range_rules(state, table, *level, range);
            let id = ChainId::new(family_of(IpFamily::of(range.first)), table, range.chain());
            chains.insert(id, (!rules.is_empty()).then_some(rules));
        }
        for family in &roots {
            chains.extend([root(state, table, *family, ranges)]);
        }
        for family in &node_ports {
            chains.extend([node_ports_of(state, table, *family)]);
        }
    }
    chains
}

/// `SKIFF-SERVICES` of one table.
pub(super) fn root(
    state: &State,
    table: TableName,
    family: IpFamily,
    ranges: &Ranges,
) -> (ChainId, Option<Vec<String>>) {
    let (first, last): (IpAddr, IpAddr) = match family {
        IpFamily::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
        IpFamily::V6 => (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::from_bits(u128::MAX).into(),
        ),
    };
    let mut rules = child_rules(state, table, 0, first, last);
    rules.push(format!("-m addrtype --dst-type LOCAL -j {NODE_PORTS}"));
    if table == TableName::Filter {
        let unknown = match family {
            IpFamily::V4 => "icmp-host-unreachable",
            IpFamily::V6 => "icmp6-addr-unreachable",
        };
        for range in of_family(&ranges.services, family) {
            rules.push(format!("-d {range} -j REJECT --reject-with {unknown}"));
        }
    }
    (
        ChainId::new(family_of(family), table, SERVICES),
        Some(rules),
    )
}

/// `SKIFF-NODEPORTS` of one table.
pub(super) fn node_ports_of(
    state: &State,
    table: TableName,
    family: IpFamily,
) -> (ChainId, Option<Vec<String>>) {
    let first = Frontend::NodePort {
        family,
        port: 0,
        protocol: Protocol::Tcp,
    };
    let of_family = state
        .frontends()
        .range(first..)
        .take_while(|(frontend, _)| {
            matches!(frontend, Frontend::NodePort { family: found, .. } if *found == family)
        });
    let rules = of_family.flat_map(|(frontend, spec)| frontend_rules(state, table, frontend, spec));
    (
        ChainId::new(family_of(family), table, NODE_PORTS),
        Some(rules.collect()),
    )
}

fn range_rules(state: &State, table: TableName, level: usize, range: &Range) -> Vec<String> {
    if level + 1 < lengths(IpFamily::of(range.first)).len() {
        return child_rules(state, table, level + 1, range.first, range.last());
    }
    in_range(state.frontends(), range.first, range.last())
        .flat_map(|(_, frontend, spec)| frontend_rules(state, table, frontend, spec))
        .collect()
}

/// The ways to the ranges of a level, as far as there is something in them.
fn child_rules(
    state: &State,
    table: TableName,
    level: usize,
    first: IpAddr,
    last: IpAddr,
) -> Vec<String> {
    let Some(length) = lengths(IpFamily::of(first)).get(level) else {
        return Vec::new();
    };
    let mut children = BTreeSet::new();
    for (addr, frontend, spec) in in_range(state.frontends(), first, last) {
        let child = Range::around(addr, *length);
        if !children.contains(&child) && has_rules(state, table, frontend, spec) {
            children.insert(child);
        }
    }
    children
        .iter()
        .map(|child| format!("-d {}/{length} -j {}", child.first, child.chain()))
        .collect()
}

/// What becomes of a connection to a frontend that was not translated.
fn refusal(state: &State, spec: &FrontendSpec, family: IpFamily) -> Option<&'static str> {
    let is_empty = |set| state.is_empty(set, family);
    match (is_empty(spec.inside), spec.outside.is_some_and(is_empty)) {
        (true, _) => Some(match family {
            IpFamily::V4 => "REJECT --reject-with icmp-port-unreachable",
            IpFamily::V6 => "REJECT --reject-with icmp6-port-unreachable",
        }),
        // Others have backends: a balancer in front is to try another node, not to give up.
        (false, true) => Some("DROP"),
        (false, false) => None,
    }
}

fn has_rules(state: &State, table: TableName, frontend: &Frontend, spec: &FrontendSpec) -> bool {
    let inside = balancer_of(frontend, spec);
    match table {
        TableName::Nat => is_served(state, &inside, spec.outside),
        TableName::Filter => {
            spec.sources.is_some() || refusal(state, spec, inside.family).is_some()
        }
    }
}

/// A frontend's rules in one table.
fn frontend_rules(
    state: &State,
    table: TableName,
    frontend: &Frontend,
    spec: &FrontendSpec,
) -> Vec<String> {
    let at = place(frontend);
    let inside = balancer_of(frontend, spec);
    if table == TableName::Filter {
        let refusal = refusal(state, spec, inside.family);
        // Who may come is translated before.
        let strangers = spec.sources.is_some().then_some("DROP");
        return refusal
            .or(strangers)
            .map(|target| format!("{at} -j {target}"))
            .into_iter()
            .collect();
    }
    if !is_served(state, &inside, spec.outside) {
        return Vec::new();
    }
    match (spec.outside, &spec.sources) {
        (Some(outside), Some(sources)) => sources
            .iter()
            .map(|range| format!("-s {range} {at} -j {}", inside.external_chain(outside)))
            .collect(),
        (Some(outside), None) => vec![format!("{at} -j {}", inside.external_chain(outside))],
        (None, _) => vec![
            format!("{at} -j {MARK_OUTSIDE}"),
            format!("{at} -j {}", inside.chain()),
        ],
    }
}

/// Matches what goes to a frontend.
fn place(frontend: &Frontend) -> String {
    match *frontend {
        Frontend::Address {
            addr,
            port,
            protocol,
        } => {
            let (host, protocol) = (IpNetwork::from(addr), protocol_name(protocol));
            format!("-d {host} -p {protocol} -m {protocol} --dport {port}")
        }
        Frontend::NodePort { port, protocol, .. } => {
            let protocol = protocol_name(protocol);
            format!("-p {protocol} -m {protocol} --dport {port}")
        }
    }
}
