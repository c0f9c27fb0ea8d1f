//! Unreachable routes for the pod and Service ranges: what no program translated and no bridge took ends at
//! home.

use ipnetwork::IpNetwork;
use skiff_cni::netlink::{Netlink, NetlinkError};
use skiff_netns::NodeNetns;

/// Has an unreachable route for each range in the node's namespace. More specific routes, such as a bridge's,
/// go before them.
///
/// # Errors
/// [`NetlinkError`] if the kernel refuses.
pub(crate) async fn ensure_unreachable_routes(
    netns: &NodeNetns,
    ranges: &[IpNetwork],
) -> Result<(), NetlinkError> {
    let netlink = Netlink::open_in_node(netns)?;
    for range in ranges {
        netlink.ensure_unreachable_route(*range).await?;
    }
    Ok(())
}
