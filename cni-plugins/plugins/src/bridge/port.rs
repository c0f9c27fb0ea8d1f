//! VLANs of the bridge's ports.

use skiff_cni::{
    netlink::{Link, Netlink, NetlinkError, VlanOwner},
    types::CniError,
};

use super::{config::Config, vlan::Vlans};
use crate::runtime::kernel;

/// Gives a port of the bridge the network's VLANs.
pub(super) async fn set_vlans(
    host: &Netlink,
    vlans: &Vlans,
    bridge: &Link,
    port: u32,
) -> Result<(), CniError> {
    if !vlans.are_set() {
        return Ok(());
    }
    let default_vlan = host.default_vlan(bridge.index).await;
    let default_vlan = default_vlan.map_err(kernel("cannot read the bridge's VLANs"))?;
    let owner = VlanOwner::Port(port);
    let removed = vlans.plan_removal(default_vlan);
    host.delete_vlans(owner, &removed)
        .await
        .map_err(vlans_refused)?;
    host.add_vlans(owner, &vlans.plan_port())
        .await
        .map_err(vlans_refused)
}

/// Lets the network's VLANs pass at the bridge's port to the world.
pub(super) async fn admit_at_uplink(
    host: &Netlink,
    config: &Config,
    uplink: u32,
) -> Result<(), CniError> {
    let owner = VlanOwner::Port(uplink);
    let listed = host.list_vlans(owner).await.map_err(vlans_refused)?;
    let lacking = config.vlans.plan_uplink(&listed);
    host.add_vlans(owner, &lacking).await.map_err(vlans_refused)
}

/// A kernel may have been built without VLANs on bridges.
pub(super) fn vlans_refused(error: NetlinkError) -> CniError {
    let what = if error.is_unsupported() {
        "this kernel's bridges know no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"
    } else {
        "cannot set the VLANs of a bridge port"
    };
    kernel(what)(error)
}
