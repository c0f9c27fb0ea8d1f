//! Chains: their names, and what is to be in them. Pure.

use std::collections::BTreeMap;

use skiff_cni::{
    fingerprint,
    firewall::{Family, Table},
};
use skiff_ebpf_loader::{Backend, IpFamily, Protocol, SetId};

/// The tables that have our chains, in the order they are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum TableName {
    /// Refuses what has no backend. Before `nat`: a refusal stands when the translation goes.
    Filter,
    /// Translates.
    Nat,
}

impl TableName {
    pub(super) const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// Names a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ChainId {
    pub(super) family: Family,
    pub(super) table: TableName,
    pub(super) name: String,
}

impl ChainId {
    pub(super) fn new(family: Family, table: TableName, name: impl Into<String>) -> Self {
        Self {
            family,
            table,
            name: name.into(),
        }
    }
}

/// Chains with their rules; none: it is not to be.
pub(super) type Chains = BTreeMap<ChainId, Option<Vec<String>>>;

/// Where connections are looked at: by address, then as a NodePort.
pub(super) const SERVICES: &str = "SKIFF-SERVICES";
/// The ports of the node.
pub(super) const NODE_PORTS: &str = "SKIFF-NODEPORTS";
/// Marks what is to be masqueraded.
pub(super) const MARK_MASQ: &str = "SKIFF-MARK-MASQ";
/// The same for what does not come from a pod.
pub(super) const MARK_OUTSIDE: &str = "SKIFF-MARK-OUTSIDE";
/// Masquerades it.
pub(super) const POSTROUTING: &str = "SKIFF-POSTROUTING";
/// Lets translated connections through.
pub(super) const FORWARD: &str = "SKIFF-FORWARD";
/// Keeps strangers from the node's loopback addresses.
pub(super) const LOCALNET: &str = "SKIFF-LOCALNET";

const SET_PREFIX: &str = "SKIFF-SVC-";
const BACKEND_PREFIX: &str = "SKIFF-SEP-";
const EXTERNAL_PREFIX: &str = "SKIFF-EXT-";
const NET_PREFIX: &str = "SKIFF-NET-";
/// So that a name has at most the 28 characters that iptables allows.
const HASH: usize = 16;

/// Whether a chain is one of ours: the CNI plugins have some that begin like ours.
pub(super) fn is_ours(name: &str) -> bool {
    let fixed = [
        SERVICES,
        NODE_PORTS,
        MARK_MASQ,
        MARK_OUTSIDE,
        POSTROUTING,
        FORWARD,
        LOCALNET,
    ];
    let prefixes = [SET_PREFIX, BACKEND_PREFIX, EXTERNAL_PREFIX, NET_PREFIX];
    fixed.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Our chains as a table has them.
pub(super) fn ours(table: &Table) -> impl Iterator<Item = &str> {
    table.chains().filter(|name| is_ours(name))
}

/// A set as it serves some frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Balancer {
    pub(super) family: IpFamily,
    pub(super) set: SetId,
    pub(super) protocol: Protocol,
    pub(super) affinity_seconds: u32,
}

impl Balancer {
    fn hash(&self, kind: &str, what: &str) -> String {
        let parts = [
            kind,
            self.family_name(),
            &self.set.to_string(),
            protocol_name(self.protocol),
            &self.affinity_seconds.to_string(),
            what,
        ];
        fingerprint(&parts, HASH)
    }

    fn family_name(&self) -> &'static str {
        match self.family {
            IpFamily::V4 => "4",
            IpFamily::V6 => "6",
        }
    }

    /// The chain that chooses.
    pub(super) fn chain(&self) -> String {
        format!("{SET_PREFIX}{}", self.hash("set", ""))
    }

    /// The chain that leads to a member.
    pub(super) fn backend_chain(&self, backend: &Backend) -> String {
        let place = format!("{} {}", backend.addr, backend.port);
        format!("{BACKEND_PREFIX}{}", self.hash("backend", &place))
    }

    /// The chain for clients from outside, whose set may be another one.
    pub(super) fn external_chain(&self, outside: SetId) -> String {
        format!(
            "{EXTERNAL_PREFIX}{}",
            self.hash("external", &outside.to_string())
        )
    }
}

/// The chain for a range of addresses.
pub(super) fn net_chain(prefix: &str, length: u8) -> String {
    // An IPv4 range fits.
    if prefix.contains(':') {
        let hash = fingerprint(&["net", prefix, &length.to_string()], HASH);
        return format!("{NET_PREFIX}{hash}");
    }
    format!("{NET_PREFIX}{prefix}_{length}")
}

pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

pub(super) fn family_of(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::V4,
        IpFamily::V6 => Family::V6,
    }
}

/// Both, as the tables' module names them.
pub(super) const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
