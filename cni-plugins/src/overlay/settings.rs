//! What an overlay is, apart from its nodes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Node, NodeTable, OverlayError};
use crate::{fingerprint, types::IfName};

/// The port that flannel and Cilium use on Linux, and that a cluster's firewalls are likely open for. (IANA's is 4789.)
pub const DEFAULT_PORT: u16 = 8472;

/// What precedes the fingerprint in the device's alias.
const ALIAS_PREFIX: &str = "skiff-overlay";

/// A VXLAN network identifier. 0 is left to those who mean "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// Checks a number.
    ///
    /// # Errors
    /// [`OverlayError::Vni`].
    pub fn new(vni: u32) -> Result<Self, OverlayError> {
        if (1..1 << 24).contains(&vni) {
            Ok(Self(vni))
        } else {
            Err(OverlayError::Vni(vni))
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The name of the VXLAN device: 12 characters at most, of 15 that a link can have.
    #[must_use]
    pub fn device(self) -> String {
        format!("skvx{}", self.0)
    }
}

impl TryFrom<u32> for Vni {
    type Error = OverlayError;

    fn try_from(vni: u32) -> Result<Self, OverlayError> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

/// Which of the node's links and addresses carries the overlay; what is not given follows from the node table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// The link: outer packets take no other.
    pub device: Option<IfName>,
    /// The address.
    pub address: Option<IpAddr>,
}

/// What an overlay is, apart from its nodes. The same on every node, but for `underlay` and `node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// The UDP port.
    pub port: u16,
    /// The pods' MTU; what the underlay leaves if not given.
    pub mtu: Option<u32>,
    /// What carries the overlay here.
    pub underlay: Underlay,
    /// This node's name in the table; found by its addresses if not given.
    pub node: Option<String>,
    /// What holds the podCIDRs of all nodes, today's and tomorrow's: packets to no node's pods stay here.
    pub cluster_cidrs: Vec<IpNetwork>,
}

/// An overlay: settings and nodes, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    settings: Settings,
    table: NodeTable,
    alias: String,
}

impl Overlay {
    /// Checks that settings and nodes fit each other.
    ///
    /// # Errors
    /// [`OverlayError`], for which [`OverlayError::is_configuration`] holds.
    pub fn new(settings: Settings, table: NodeTable) -> Result<Self, OverlayError> {
        if settings.port == 0 {
            return Err(OverlayError::Port);
        }
        if !settings.cluster_cidrs.is_empty() {
            for node in table.nodes() {
                check_inside(node, &settings.cluster_cidrs)?;
            }
        }
        // Debug of a checked table is as good as any canonical form, and it cannot fail.
        let alias = format!(
            "{ALIAS_PREFIX} {}",
            fingerprint(&[&format!("{settings:?}"), &format!("{table:?}")], 32)
        );
        Ok(Self {
            settings,
            table,
            alias,
        })
    }

    /// Everything but the nodes.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        self.table.nodes()
    }

    /// What is written on the device once all of it is applied.
    pub(super) fn alias(&self) -> &str {
        &self.alias
    }
}

/// A podCIDR outside of the cluster's would be masqueraded; an underlay address inside might become unreachable.
fn check_inside(node: &Node, cluster: &[IpNetwork]) -> Result<(), OverlayError> {
    let wrong = |reason| OverlayError::Node {
        node: node.name.clone(),
        reason,
    };
    for cidr in &node.pod_cidrs {
        let holds =
            |outer: &IpNetwork| outer.contains(cidr.network()) && outer.prefix() <= cidr.prefix();
        if !cluster.iter().any(holds) {
            return Err(wrong(format!("podCIDR {cidr} is in no clusterCIDR")));
        }
    }
    for ip in &node.underlay {
        if let Some(outer) = cluster.iter().find(|outer| outer.contains(*ip)) {
            return Err(wrong(format!(
                "underlay address {ip} lies in clusterCIDR {outer}"
            )));
        }
    }
    Ok(())
}
