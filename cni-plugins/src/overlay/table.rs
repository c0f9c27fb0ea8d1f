//! The table of nodes: who has which pods, and where.

use std::{collections::HashMap, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{OverlayError, VtepMac};

/// One node as the table names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its name, for errors and to tell it which entry is its own.
    pub name: String,
    /// Its addresses on the network that carries the overlay: at most one of each family.
    pub underlay: Vec<IpAddr>,
    /// The networks of its pods.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// The hardware address of its VTEP where it is not ours to derive: a node with a VTEP of another maker.
    #[serde(rename = "vtepMAC", default, skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<VtepMac>,
}

impl Node {
    /// Its underlay address of one family.
    #[must_use]
    pub fn underlay_of_family(&self, v4: bool) -> Option<IpAddr> {
        self.underlay.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    fn wrong(&self, reason: impl Into<String>) -> OverlayError {
        OverlayError::Node {
            node: self.name.clone(),
            reason: reason.into(),
        }
    }

    fn check(&self) -> Result<(), OverlayError> {
        if self.name.is_empty() {
            return Err(self.wrong("a node needs a name"));
        }
        if self.underlay.is_empty() {
            return Err(self.wrong("no underlay address"));
        }
        for (index, ip) in self.underlay.iter().enumerate() {
            if !is_global_unicast(*ip) {
                return Err(self.wrong(format!("{ip} cannot be a node's underlay address")));
            }
            let before = self.underlay.iter().take(index);
            if before
                .into_iter()
                .any(|other| other.is_ipv4() == ip.is_ipv4())
            {
                return Err(self.wrong("more than one underlay address of a family"));
            }
        }
        if self.pod_cidrs.is_empty() {
            return Err(self.wrong("no podCIDR"));
        }
        for cidr in &self.pod_cidrs {
            if cidr.ip() != cidr.network() {
                let (network, prefix) = (cidr.network(), cidr.prefix());
                return Err(self.wrong(format!(
                    "podCIDR {cidr} has host bits; {network}/{prefix} is meant"
                )));
            }
            // A network, a gateway and a pod have to fit in; and a default route is nobody's podCIDR.
            let longest = if cidr.is_ipv4() { 30 } else { 126 };
            if !(1..=longest).contains(&cidr.prefix()) || !is_global_unicast(cidr.network()) {
                return Err(self.wrong(format!("{cidr} cannot be a podCIDR")));
            }
        }
        Ok(())
    }
}

fn is_global_unicast(ip: IpAddr) -> bool {
    let special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    !special
        && match ip {
            IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
        }
}

/// The nodes of an overlay, checked against each other and sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct NodeTable {
    nodes: Vec<Node>,
}

impl NodeTable {
    /// Checks the entries: names, underlay addresses and hardware addresses are there once, podCIDRs do not overlap, and
    /// none of them holds an underlay address (what is sent there would go round in circles).
    ///
    /// # Errors
    /// [`OverlayError::Node`], [`OverlayError::Conflict`].
    pub fn new(mut nodes: Vec<Node>) -> Result<Self, OverlayError> {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        for node in &nodes {
            node.check()?;
        }
        for pair in nodes.windows(2) {
            if let [first, second] = pair
                && first.name == second.name
            {
                return Err(conflict(first, second, "the same name"));
            }
        }
        check_unique(&nodes, |node| node.underlay.iter().copied())?;
        check_unique(&nodes, |node| node.vtep_mac.into_iter())?;
        check_cidrs(&nodes)?;
        Ok(Self { nodes })
    }

    /// The entries.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

fn conflict(first: &Node, second: &Node, what: impl Into<String>) -> OverlayError {
    OverlayError::Conflict {
        first: first.name.clone(),
        second: second.name.clone(),
        what: what.into(),
    }
}

fn check_unique<'a, K, I>(
    nodes: &'a [Node],
    keys: impl Fn(&'a Node) -> I,
) -> Result<(), OverlayError>
where
    K: std::hash::Hash + Eq + Copy + std::fmt::Display,
    I: Iterator<Item = K>,
{
    let mut owners: HashMap<K, &Node> = HashMap::new();
    for node in nodes {
        for key in keys(node) {
            if let Some(other) = owners.insert(key, node) {
                return Err(conflict(other, node, key.to_string()));
            }
        }
    }
    Ok(())
}

/// The first and the last address of a network as numbers; the families lie apart from each other.
fn bounds(cidr: IpNetwork) -> (u128, u128) {
    (number(cidr.network()), number(cidr.broadcast()))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Sorted by where they begin, networks that overlap are neighbours: a table of thousands is checked in no time.
fn check_cidrs(nodes: &[Node]) -> Result<(), OverlayError> {
    let mut cidrs: Vec<(u128, u128, IpNetwork, &Node)> = nodes
        .iter()
        .flat_map(|node| node.pod_cidrs.iter().map(move |cidr| (node, *cidr)))
        .map(|(node, cidr)| {
            let (first, last) = bounds(cidr);
            (first, last, cidr, node)
        })
        .collect();
    cidrs.sort_by_key(|(first, last, ..)| (*first, *last));
    for pair in cidrs.windows(2) {
        if let [(_, last, cidr, one), (first, _, other_cidr, other)] = pair
            && first <= last
        {
            let what = format!("addresses of {cidr} and {other_cidr}");
            return Err(conflict(one, other, what));
        }
    }
    for node in nodes {
        for ip in &node.underlay {
            let place = cidrs.partition_point(|(first, ..)| *first <= number(*ip));
            let before = place.checked_sub(1).and_then(|index| cidrs.get(index));
            if let Some((_, last, cidr, owner)) = before
                && number(*ip) <= *last
            {
                return Err(node.wrong(format!(
                    "underlay address {ip} lies in podCIDR {cidr} of {:?}",
                    owner.name
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "table_tests.rs"]
pub(crate) mod tests;
