//! The plugin's keys. What is not ours goes on to the bridge plugin.

use std::{net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use skiff_cni::{
    firewall::Backend,
    overlay::{DEFAULT_PORT, Node, NodeTable, Overlay, Settings, Underlay, Vni, read_state_file},
    skel::Call,
    types::{CniError, code},
};

use super::overlay_error;

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) overlay: Overlay,
    /// By what addresses are masqueraded, if they are.
    pub(super) masquerade: Option<Backend>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    vni: Option<u32>,
    port: Option<u16>,
    #[serde(default)]
    mtu: u32,
    node: Option<String>,
    #[serde(default)]
    underlay: Underlay,
    nodes: Option<Vec<Node>>,
    state_file: Option<PathBuf>,
    #[serde(rename = "clusterCIDR", default)]
    cluster_cidr: String,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
}

impl Config {
    /// For ADD, CHECK and STATUS: everything is checked.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let vni = document
            .vni
            .ok_or_else(|| CniError::config("\"vni\" is missing"))?;
        let cluster_cidrs = parse_cluster_cidr(&document.cluster_cidr)?;
        if document.ip_masq && cluster_cidrs.is_empty() {
            return Err(CniError::config(
                "ipMasq needs clusterCIDR: pods keep their addresses between nodes",
            ));
        }
        let settings = Settings {
            vni: Vni::new(vni).map_err(overlay_error)?,
            port: document.port.unwrap_or(DEFAULT_PORT),
            mtu: (document.mtu != 0).then_some(document.mtu),
            underlay: document.underlay,
            node: document.node,
            cluster_cidrs,
        };
        let table = match (document.nodes, document.state_file) {
            (Some(nodes), None) => NodeTable::new(nodes),
            (None, Some(path)) if path.is_absolute() => read_state_file(&path),
            (None, Some(_)) => return Err(CniError::config("stateFile must be an absolute path")),
            _ => {
                return Err(CniError::config(
                    "exactly one of nodes and stateFile must be given",
                ));
            }
        };
        let overlay = table
            .and_then(|table| Overlay::new(settings, table))
            .map_err(overlay_error)?;
        let masquerade = if document.ip_masq {
            Some(backend(document.ip_masq_backend.as_deref())?)
        } else {
            None
        };
        Ok(Self {
            overlay,
            masquerade,
        })
    }
}

/// What undoing needs. A table that is wrong by now does not keep it from happening.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) vni: Option<Vni>,
    pub(super) masquerade: Option<Backend>,
    /// Empty also if it cannot be read: then rules are looked for by their container.
    pub(super) cluster_cidrs: Vec<IpNetwork>,
}

impl Removal {
    /// For DEL and GC.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Keys {
            vni: Option<u32>,
            #[serde(rename = "clusterCIDR", default)]
            cluster_cidr: String,
            #[serde(default)]
            ip_masq: bool,
            ip_masq_backend: Option<String>,
        }
        let keys: Keys = call.conf.decode()?;
        let masquerade = if keys.ip_masq {
            Some(backend(keys.ip_masq_backend.as_deref())?)
        } else {
            None
        };
        Ok(Self {
            vni: keys.vni.and_then(|vni| Vni::new(vni).ok()),
            masquerade,
            cluster_cidrs: parse_cluster_cidr(&keys.cluster_cidr).unwrap_or_default(),
        })
    }
}

fn backend(configured: Option<&str>) -> Result<Backend, CniError> {
    Backend::choose(configured)
        .map_err(|error| CniError::from_error(code::CONFIG, "cannot masquerade", &error))
}

/// One network of a family or one of each, separated by a comma, as Kubernetes writes them.
fn parse_cluster_cidr(text: &str) -> Result<Vec<IpNetwork>, CniError> {
    let mut cidrs: Vec<IpNetwork> = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let cidr: IpNetwork = part
            .parse()
            .map_err(|error| CniError::config(format!("clusterCIDR {part:?}: {error}")))?;
        if cidr.prefix() == 0 || cidr.ip() != cidr.network() {
            return Err(CniError::config(format!(
                "clusterCIDR {cidr} is not a network"
            )));
        }
        if cidrs.iter().any(|other| other.is_ipv4() == cidr.is_ipv4()) {
            return Err(CniError::config(
                "clusterCIDR has more than one network of a family",
            ));
        }
        cidrs.push(cidr);
    }
    Ok(cidrs)
}

/// A pod's address with the length of the network within which it is not masqueraded.
pub(super) fn in_cluster(ip: IpAddr, cluster_cidrs: &[IpNetwork]) -> Option<IpNetwork> {
    let cluster = cluster_cidrs.iter().find(|cidr| cidr.contains(ip))?;
    IpNetwork::new(ip, cluster.prefix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_cidrs_are_one_per_family() {
        assert_eq!(parse_cluster_cidr("").unwrap(), []);
        let both = parse_cluster_cidr("10.244.0.0/16, fd00:244::/48").unwrap();
        assert_eq!(both.len(), 2);
        for bad in ["10.244.0.1/16", "0.0.0.0/0", "x", "10.0.0.0/8,11.0.0.0/8"] {
            assert!(parse_cluster_cidr(bad).is_err(), "{bad}");
        }
        let ip = in_cluster("10.244.3.4".parse().unwrap(), &both).unwrap();
        assert_eq!(ip.to_string(), "10.244.3.4/16");
        assert_eq!(in_cluster("192.0.2.1".parse().unwrap(), &both), None);
    }
}
