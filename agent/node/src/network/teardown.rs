//! Removing the node's network for good, once no pod is left.

use skiff_cni::{
    firewall::{Masquerade, NodeMasquerade},
    libcni::{CniRunner, Conflist},
    netlink::{Netlink, NetlinkError},
};

use super::conflist::is_default;
use crate::NodeConfig;

/// Why something of the network is still there.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// A link or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A masquerade rule.
    #[error(transparent)]
    Firewall(#[from] skiff_cni::firewall::FirewallError),
    /// The node's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] skiff_netns::NetnsError),
}

/// Removes attachments, masquerade rules, bridges and the routes that keep packets at home. What is gone already is
/// success.
///
/// # Errors
/// [`TeardownError`] naming the first thing that stays.
pub async fn remove_network(config: &NodeConfig, cni: &CniRunner) -> Result<(), TeardownError> {
    let conflist = Conflist::load_dir(&config.cni_conf_dir).ok();
    let mut removed = vec![cni.detach_all_but(&[]).await];
    if let Some(conflist) = &conflist {
        removed.push(cni.gc(conflist, &[]).await);
    }
    for error in removed.into_iter().filter_map(Result::err) {
        // What it would have removed is removed below, or went with the pods' namespaces.
        tracing::debug!(%error, "CNI GC");
    }
    let rules = config
        .node_netns
        .run_blocking(|| NodeMasquerade::remove().and(Masquerade::delete_all()))
        .await;
    let links = remove_links(config, conflist.as_ref()).await;
    rules??;
    links
}

async fn remove_links(
    config: &NodeConfig,
    conflist: Option<&Conflist>,
) -> Result<(), TeardownError> {
    let netlink = Netlink::open_in_node(&config.node_netns)?;
    for bridge in conflist.into_iter().flat_map(bridges) {
        netlink.delete_link(&bridge).await?;
    }
    for range in config.cluster_cidrs.iter().chain(&config.service_cidrs) {
        netlink.delete_unreachable_route(*range).await?;
    }
    Ok(())
}

/// Names of the bridges that the default list's plugins make. In a list that somebody else wrote a bridge may be the
/// machine's own, and have its uplink: such a bridge stays, as with any runtime.
fn bridges(conflist: &Conflist) -> Vec<String> {
    let plugins = conflist.plugins.iter();
    let bridges = plugins.filter(|plugin| plugin.plugin_type.as_str() == "bridge");
    let bridges = bridges.filter(|_| is_default(conflist));
    bridges
        .filter_map(|plugin| plugin.raw.get("bridge")?.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::network::plan_conflist;

    #[test]
    fn only_the_default_lists_bridge_is_removed() {
        let default = plan_conflist(&["10.244.0.0/24".parse().unwrap()], Path::new("/d"));
        let parse = |json: &serde_json::Value| Conflist::parse(json.to_string().as_bytes());
        assert_eq!(bridges(&parse(&default).unwrap()), ["skiff0"]);
        let mut foreign = default;
        foreign["name"] = "lan".into();
        foreign["plugins"][0]["bridge"] = "br0".into();
        assert!(bridges(&parse(&foreign).unwrap()).is_empty());
    }
}
