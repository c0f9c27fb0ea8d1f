//! Removing the node's network for good, once no pod is left.

use skiff_cni::{
    firewall::{Masquerade, NodeMasquerade},
    libcni::{CniRunner, Conflist},
    netlink::{Netlink, NetlinkError},
};

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
    if let Some(conflist) = &conflist
        && let Err(error) = cni.gc(conflist, &[]).await
    {
        // What it would have removed is removed below, or went with the pods' namespaces.
        tracing::debug!(%error, "CNI GC");
    }
    config
        .node_netns
        .run_blocking(|| NodeMasquerade::remove().and(Masquerade::delete_all()))
        .await??;
    let netlink = Netlink::open_in_node(&config.node_netns)?;
    for bridge in conflist.iter().flat_map(bridges) {
        netlink.delete_link(&bridge).await?;
    }
    for range in [Some(config.cluster_cidr), config.service_cidr]
        .into_iter()
        .flatten()
    {
        netlink.delete_unreachable_route(range).await?;
    }
    Ok(())
}

/// Names of the bridges that a conflist's plugins make.
fn bridges(conflist: &Conflist) -> Vec<String> {
    let plugins = conflist.plugins.iter();
    let bridges = plugins.filter(|plugin| plugin.plugin_type.as_str() == "bridge");
    bridges
        .filter_map(|plugin| plugin.raw.get("bridge")?.as_str().map(str::to_owned))
        .collect()
}
