//! A look at the tables of policies from another process, and what they say about two ends. Reads only.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use skiff_ebpf_common::{
    Addr, DIRECTION_EGRESS, DIRECTION_INGRESS, IDENTITY_ANY, IDENTITY_ISOLATED_EGRESS,
    IDENTITY_ISOLATED_INGRESS, POD_POLICIES, PodSource, PolicyCidrKey, PolicyIds, PolicyRule,
    PolicyRuleKey, RULE_BITS_PROTO, maps,
};

use super::{PolicyTables, write::prefix_of};
use crate::{DatapathError, bpffs, sys::HashTable, tables::ip_of};

/// To a pod or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyDirection {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl PolicyDirection {
    fn code(self) -> u8 {
        match self {
            Self::Ingress => DIRECTION_INGRESS,
            Self::Egress => DIRECTION_EGRESS,
        }
    }

    /// Whether addresses of an identity are denied everything in this direction that no rule allows.
    #[must_use]
    pub fn isolates(self, identity: u32) -> bool {
        identity
            & match self {
                Self::Ingress => IDENTITY_ISOLATED_INGRESS,
                Self::Egress => IDENTITY_ISOLATED_EGRESS,
            }
            != 0
    }
}

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AllowedPorts {
    /// Everything, also what has no ports.
    All,
    /// All ports of an IP protocol.
    Protocol(u8),
    /// Those from the first to the last.
    Range {
        /// IP protocol.
        protocol: u8,
        /// The first one.
        first: u16,
        /// The last one.
        last: u16,
    },
}

/// A rule as it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeenRule {
    /// The identity that it is about.
    pub subject: u32,
    /// Of which traffic.
    pub direction: PolicyDirection,
    /// The identity at the other end; none: whoever it is.
    pub peer: Option<u32>,
    /// At which ports.
    pub ports: AllowedPorts,
}

impl SeenRule {
    /// Reads a rule of the tables.
    #[must_use]
    pub fn of(key: &PolicyRuleKey) -> Self {
        let PolicyRule {
            subject,
            peer,
            direction,
            proto: protocol,
            port,
        } = key.rule;
        let first = u16::from_be(port);
        let counting = key.prefix_len.saturating_sub(RULE_BITS_PROTO);
        let last = first | u16::MAX.checked_shr(counting).unwrap_or(0);
        let ports = match key.prefix_len {
            bits if bits < RULE_BITS_PROTO => AllowedPorts::All,
            RULE_BITS_PROTO => AllowedPorts::Protocol(protocol),
            _ => AllowedPorts::Range {
                protocol,
                first,
                last,
            },
        };
        Self {
            subject,
            direction: if direction == DIRECTION_EGRESS {
                PolicyDirection::Egress
            } else {
                PolicyDirection::Ingress
            },
            peer: Some(peer).filter(|peer| *peer != IDENTITY_ANY),
            ports,
        }
    }

    fn allows(&self, protocol: u8, port: u16) -> bool {
        match self.ports {
            AllowedPorts::All => true,
            AllowedPorts::Protocol(of) => of == protocol,
            AllowedPorts::Range {
                protocol: of,
                first,
                last,
            } => of == protocol && (first..=last).contains(&port),
        }
    }
}

/// What the tables say of the first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyVerdict {
    /// No policy is about the pod in this direction.
    NotIsolated,
    /// A pod reaches itself.
    Itself,
    /// A rule allows it.
    Allowed(SeenRule),
    /// No rule allows it.
    Denied,
}

impl PolicyTables {
    /// What the tables say of a new connection to or from `subject`, at a port (0: it has none) of an IP protocol. As the
    /// programs judge it, but for what a node sends to its own pods: that always passes.
    #[must_use]
    pub fn judge(
        &self,
        direction: PolicyDirection,
        subject: IpAddr,
        peer: IpAddr,
        (protocol, port): (u8, u16),
    ) -> PolicyVerdict {
        if subject == peer {
            return PolicyVerdict::Itself;
        }
        let own = self.id(subject);
        if !direction.isolates(own) {
            return PolicyVerdict::NotIsolated;
        }
        let allows = |peer: u32| {
            self.rules_of(own, direction, peer)
                .find(|rule| rule.allows(protocol, port))
        };
        let found = allows(self.id(peer)).or_else(|| allows(IDENTITY_ANY));
        found.map_or(PolicyVerdict::Denied, PolicyVerdict::Allowed)
    }

    /// The rules about two identities.
    fn rules_of(
        &self,
        own: u32,
        direction: PolicyDirection,
        other: u32,
    ) -> impl Iterator<Item = SeenRule> + '_ {
        let rules = self.rules.iter().filter(move |key| {
            let rule = &key.rule;
            (rule.subject, rule.peer, rule.direction) == (own, other, direction.code())
        });
        rules.map(SeenRule::of)
    }

    /// All identities in use.
    #[must_use]
    pub fn identities(&self) -> BTreeSet<u32> {
        let ids = self.ids.values().chain(self.cidrs.values());
        ids.copied().collect()
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLink {
    /// The number of the node's end of its veth pair.
    pub ifindex: u32,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
    /// Whether the programs at its link ask its policies.
    pub asks: bool,
}

/// The tables of policies of one node.
#[derive(Debug)]
pub struct PolicyInspector {
    folder: PathBuf,
}

impl PolicyInspector {
    /// Opens the tables of the node whose pins are in `bpffs_dir`.
    ///
    /// # Errors
    /// [`DatapathError::Io`] if there are none.
    pub fn open(bpffs_dir: &Path) -> Result<Self, DatapathError> {
        let folder = bpffs::maps_in_force(bpffs_dir)?;
        Ok(Self { folder })
    }

    /// What is in force.
    ///
    /// # Errors
    /// [`DatapathError`] if a map cannot be read.
    pub fn tables(&self) -> Result<PolicyTables, DatapathError> {
        let ids = HashTable::<Addr, PolicyIds>::open(&self.folder, maps::POLICY_IDS)?;
        let cidrs = HashTable::<PolicyCidrKey, PolicyIds>::open(&self.folder, maps::POLICY_CIDRS)?;
        let rules = HashTable::<PolicyRuleKey, u32>::open(&self.folder, maps::POLICY_RULES)?;
        let state = HashTable::<u32, u32>::open(&self.folder, maps::POLICY_STATE)?;
        let state = state.get(0)?.unwrap_or_default() as usize & 1;
        let in_force = |ids: &PolicyIds| ids.ids.get(state).copied().unwrap_or_default();
        let ids = ids.entries()?.into_iter();
        let cidrs = cidrs.entries()?.into_iter();
        let rules = rules.entries()?.into_iter();
        Ok(PolicyTables {
            ids: ids
                .map(|(addr, ids)| (ip_of(addr), in_force(&ids)))
                .collect(),
            cidrs: cidrs
                .filter_map(|(key, ids)| {
                    Some((prefix_of(key.prefix_len, key.addr)?, in_force(&ids)))
                })
                .collect(),
            rules: rules.map(|(rule, _)| rule).collect(),
        })
    }

    /// The node's own pods.
    ///
    /// # Errors
    /// [`DatapathError`] if a map cannot be read.
    pub fn links(&self) -> Result<Vec<PolicyLink>, DatapathError> {
        let sources = HashTable::<u32, PodSource>::open(&self.folder, maps::POD_SOURCES)?;
        let entries = sources.entries()?.into_iter();
        let mut links: Vec<PolicyLink> = entries
            .map(|(ifindex, source)| {
                let addrs = [Addr::v4(source.v4), source.v6].into_iter();
                PolicyLink {
                    ifindex,
                    addrs: addrs.filter(|a| *a != a.any()).map(ip_of).collect(),
                    asks: source.flags & POD_POLICIES != 0,
                }
            })
            .collect();
        links.sort_by_key(|link| link.ifindex);
        Ok(links)
    }
}

#[cfg(test)]
mod tests {
    use skiff_ebpf_common::{self as abi, RULE_BITS_PORT};

    use super::*;

    fn key(prefix_len: u32, peer: u32, port: u16) -> PolicyRuleKey {
        PolicyRuleKey {
            prefix_len,
            rule: PolicyRule {
                subject: IDENTITY_ISOLATED_INGRESS | 1,
                peer,
                direction: DIRECTION_INGRESS,
                proto: abi::PROTO_TCP,
                port: port.to_be(),
            },
        }
    }

    #[test]
    fn rules_are_read_as_ranges_of_ports() {
        let ports = |bits, port| SeenRule::of(&key(bits, 2, port)).ports;
        let range = |first, last| AllowedPorts::Range {
            protocol: abi::PROTO_TCP,
            first,
            last,
        };
        assert_eq!(ports(abi::RULE_BITS_ANY, 0), AllowedPorts::All);
        let all = AllowedPorts::Protocol(abi::PROTO_TCP);
        assert_eq!(ports(RULE_BITS_PROTO, 0), all);
        assert_eq!(ports(RULE_BITS_PORT, 80), range(80, 80));
        assert_eq!(ports(RULE_BITS_PORT - 4, 80), range(80, 95));
        assert_eq!(ports(RULE_BITS_PROTO + 1, 32768), range(32768, 65535));
    }

    #[test]
    fn who_is_isolated_needs_a_rule_for_the_peer_or_for_anybody() {
        let [own, friend, stranger] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let tables = PolicyTables {
            ids: [(own, IDENTITY_ISOLATED_INGRESS | 1), (friend, 2)].into(),
            rules: [
                key(RULE_BITS_PORT, 2, 80),
                key(RULE_BITS_PORT, IDENTITY_ANY, 443),
            ]
            .into(),
            ..PolicyTables::default()
        };
        let judge =
            |direction, from, port| tables.judge(direction, own, from, (abi::PROTO_TCP, port));
        let ingress = PolicyDirection::Ingress;
        for (from, port, allowed) in [
            (friend, 80, true),
            (stranger, 80, false),
            (friend, 443, true),
            (stranger, 443, true),
            (friend, 81, false),
        ] {
            let verdict = judge(ingress, from, port);
            let is_allowed = matches!(verdict, PolicyVerdict::Allowed(_));
            assert_eq!(is_allowed, allowed, "{from} {port}: {verdict:?}");
        }
        assert_eq!(judge(ingress, own, 81), PolicyVerdict::Itself);
        let egress = PolicyDirection::Egress;
        assert_eq!(judge(egress, stranger, 81), PolicyVerdict::NotIsolated);
        assert_eq!(tables.identities().len(), 2);
    }
}
