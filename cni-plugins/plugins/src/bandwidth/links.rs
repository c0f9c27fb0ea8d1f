//! The links that are limited: the host's end of the container's veth pair and the intermediate device.

use std::fmt::Write as _;

use sha2::{Digest, Sha512};
use skiff_cni::{
    netlink::{Link, Netlink},
    skel::Target,
    types::{CniError, CniResult, ContainerId, NetworkName},
};
use skiff_netns::NetNs;

use crate::runtime::kernel;

/// What the names of intermediate devices begin with.
pub(super) const IFB_PREFIX: &str = "bwp";
/// The longest name that a link can have.
const NAME_MAX: usize = 15;

/// The name that the reference plugin gives a container's intermediate device.
pub(super) fn ifb_name(network: &NetworkName, container: &ContainerId) -> String {
    let hash = Sha512::new()
        .chain_update(network.as_str())
        .chain_update(container.as_str())
        .finalize();
    let mut name = IFB_PREFIX.to_owned();
    for byte in hash.iter().take(NAME_MAX) {
        // Writing into a String cannot fail.
        write!(name, "{byte:02x}").ok();
    }
    name.truncate(NAME_MAX);
    name
}

/// The other end of the pair that the container's link is one end of. Numbers say little in a namespace that may not be
/// the other end's: the plugin before this one must have named the link, and it must point back.
pub(super) async fn find_host_end(
    host: &Netlink,
    netns: &NetNs,
    target: &Target,
    result: &CniResult,
) -> Result<Option<Link>, CniError> {
    let failed = || kernel("cannot look for links");
    let pod = Netlink::open_in(netns).map_err(kernel("cannot enter CNI_NETNS"))?;
    let inside = pod
        .find_link(target.ifname.as_str())
        .await
        .map_err(failed())?
        .filter(|link| link.kind == "veth");
    let Some((inside, peer)) = inside.and_then(|link| link.peer.map(|peer| (link.index, peer)))
    else {
        return Ok(None);
    };
    let outside = host.find_link_by_index(peer).await.map_err(failed())?;
    Ok(outside.filter(|link| {
        link.kind == "veth"
            && link.peer == Some(inside)
            && result
                .interfaces
                .iter()
                .any(|known| known.sandbox.is_empty() && known.name == link.name)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_intermediate_device_has_the_reference_plugins_name() {
        let name = ifb_name(
            &"cni-plugin-bandwidth-test".parse().unwrap(),
            &"dummy".parse().unwrap(),
        );
        assert_eq!(name, "bwpa8eda89404b7");
    }
}
