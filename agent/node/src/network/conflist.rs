//! The default CNI configuration list.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use skiff_cni::firewall::{FirewallError, NodeMasquerade};
use skiff_cni::libcni::Conflist;
use skiff_netns::NetnsError;

use crate::NodeConfig;

const FILE: &str = "10-skiff.conflist";
const NAME: &str = "skiff";

/// Why pods' traffic is not masqueraded.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// The rules cannot be made.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The node's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Writes the default conflist if the directory has no configuration yet; its path if it was written.
///
/// # Errors
/// The directory or file cannot be written.
pub(crate) fn ensure_conflist(directory: &Path, content: &Value) -> io::Result<Option<PathBuf>> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) {
            return Ok(None);
        }
    }
    let path = directory.join(FILE);
    let tmp = directory.join(format!(".{FILE}.tmp"));
    fs::write(&tmp, format!("{content:#}\n"))?;
    fs::rename(&tmp, &path)?;
    Ok(Some(path))
}

/// The default conflist: our bridge with an address of each of `pod_cidrs` from host-local, and what serves pods with ports of the
/// node or limits of their bandwidth. Other pods do without the latter two: see `capabilities`. The node masquerades all
/// of its pods at once: see [`ensure_masquerade`].
pub(crate) fn plan_conflist(pod_cidrs: &[IpNetwork], ipam_dir: &Path) -> Value {
    let default_route = |cidr: &IpNetwork| {
        let route = if cidr.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        json!({ "dst": route })
    };
    let range = |cidr: &IpNetwork| json!([{ "subnet": cidr.to_string() }]);
    json!({
        "cniVersion": "1.1.0",
        "name": NAME,
        "plugins": [
            {
                "type": "bridge",
                "bridge": "skiff0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": pod_cidrs.iter().map(range).collect::<Vec<_>>(),
                    "routes": pod_cidrs.iter().map(default_route).collect::<Vec<_>>(),
                    "dataDir": ipam_dir,
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    })
}

/// Whether it is [`plan_conflist`]'s.
pub(super) fn is_default(list: &Conflist) -> bool {
    list.name.as_str() == NAME
}

/// Masquerades what pods send out of the cluster, unless the directory's first list is somebody else's: that one says
/// itself whether it wants that (`ipMasq`).
///
/// # Errors
/// The firewall's refusal.
pub(crate) async fn ensure_masquerade(
    config: &NodeConfig,
    pod_cidrs: &[IpNetwork],
) -> Result<(), MasqueradeError> {
    let ours = Conflist::load_dir(&config.cni_conf_dir).is_ok_and(|list| is_default(&list));
    if !ours {
        return Ok(());
    }
    for pods in pod_cidrs {
        let of_family = |cluster: &&IpNetwork| cluster.is_ipv4() == pods.is_ipv4();
        let masquerade = NodeMasquerade {
            pods: *pods,
            cluster: *config.cluster_cidrs.iter().find(of_family).unwrap_or(pods),
        };
        config
            .node_netns
            .run_blocking(move || masquerade.ensure())
            .await??;
    }
    Ok(())
}

/// The first range of a node's size in the cluster's range, for a cluster without a controller that hands
/// ranges out.
pub(crate) fn first_node_cidr(cluster: IpNetwork) -> IpNetwork {
    match cluster {
        IpNetwork::V4(v4) => {
            let prefix = v4.prefix().max(24);
            ipnetwork::Ipv4Network::new(v4.network(), prefix).map_or(cluster, IpNetwork::V4)
        }
        IpNetwork::V6(v6) => {
            let prefix = v6.prefix().max(64);
            ipnetwork::Ipv6Network::new(v6.network(), prefix).map_or(cluster, IpNetwork::V6)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_written_once_and_never_over_another() {
        let directory = tempfile::tempdir().unwrap();
        let content = plan_conflist(
            &[
                "10.244.0.0/24".parse().unwrap(),
                "fd00::/64".parse().unwrap(),
            ],
            Path::new("/d/cni/networks"),
        );
        let conf = directory.path().join("net.d");
        assert_eq!(
            ensure_conflist(&conf, &content).unwrap(),
            Some(conf.join(FILE))
        );
        let written: Value = serde_json::from_slice(&fs::read(conf.join(FILE)).unwrap()).unwrap();
        assert_eq!(
            written["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.0.0/24"
        );
        assert_eq!(
            written["plugins"][0]["ipam"]["ranges"][1][0]["subnet"],
            "fd00::/64"
        );
        assert_eq!(
            written["plugins"][0]["ipam"]["routes"],
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
        assert_eq!(written["plugins"][0]["ipam"]["dataDir"], "/d/cni/networks");
        assert_eq!(ensure_conflist(&conf, &json!({})).unwrap(), None);

        let other = directory.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("00-mine.conf"), "{}").unwrap();
        assert_eq!(ensure_conflist(&other, &content).unwrap(), None);
    }

    #[test]
    fn a_node_gets_the_first_range() {
        let first = |cidr: &str| first_node_cidr(cidr.parse().unwrap()).to_string();
        assert_eq!(first("10.244.0.0/16"), "10.244.0.0/24");
        assert_eq!(first("10.0.0.0/28"), "10.0.0.0/28");
        assert_eq!(first("fd00::/48"), "fd00::/64");
    }
}
