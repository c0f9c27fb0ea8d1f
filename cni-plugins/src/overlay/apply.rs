//! Asks the kernel, plans, applies.

use ipnetwork::IpNetwork;
use skiff_netns::NodeNetns;

use super::{
    EntryPlan, Node, Observed, Overlay, OverlayError, Path, Site, Vni, Wanted,
    lock::Lock,
    plan::{DeviceStep, plan_device, plan_entries},
    site::plan_site,
};
use crate::netlink::{Netlink, RouteSpec, VxlanLink, VxlanSpec};

/// What a reconciliation did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// The device was made, or made anew.
    pub created: bool,
    /// The device was given another MTU or set up.
    pub adjusted: bool,
    /// So many entries were made or changed.
    pub set: usize,
    /// So many entries were deleted.
    pub deleted: usize,
}

/// An overlay as it is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// This node's entry in the table.
    pub node: Node,
    /// The pods' MTU.
    pub mtu: u32,
    /// What was done for it.
    pub changes: Changes,
}

/// The overlay, if this very one was applied to its end: then the device carries its fingerprint. One route is asked
/// for, since there are programs that flush the routes of links that they do not know.
///
/// # Errors
/// [`OverlayError`].
pub async fn find_applied(
    node: &NodeNetns,
    overlay: &Overlay,
) -> Result<Option<Attached>, OverlayError> {
    read_applied(&Netlink::open_in_node(node)?, overlay).await
}

/// Makes sure that the overlay was applied as it is now, and applies it if not. Cheap if it was; what somebody else took
/// away since then, [`reconcile`] finds.
///
/// # Errors
/// [`OverlayError`].
pub async fn ensure(node: &NodeNetns, overlay: &Overlay) -> Result<Attached, OverlayError> {
    let netlink = Netlink::open_in_node(node)?;
    if let Some(attached) = read_applied(&netlink, overlay).await? {
        return Ok(attached);
    }
    let _lock = Lock::acquire(node).await?;
    // Another ADD may have been quicker.
    match read_applied(&netlink, overlay).await? {
        Some(attached) => Ok(attached),
        None => apply(&netlink, overlay).await,
    }
}

/// Makes the kernel hold exactly what the overlay needs on this node: the device, and the entries of every other node.
/// Entries of nodes that are not in the table any more go.
///
/// # Errors
/// [`OverlayError`]; if [`OverlayError::is_configuration`], nothing was changed.
pub async fn reconcile(node: &NodeNetns, overlay: &Overlay) -> Result<Attached, OverlayError> {
    let netlink = Netlink::open_in_node(node)?;
    let _lock = Lock::acquire(node).await?;
    apply(&netlink, overlay).await
}

/// What [`reconcile`] would do, and nothing else.
///
/// # Errors
/// [`OverlayError`].
pub async fn inspect(node: &NodeNetns, overlay: &Overlay) -> Result<Attached, OverlayError> {
    let netlink = Netlink::open_in_node(node)?;
    let (site, wanted) = locate(&netlink, overlay).await?;
    let found = netlink.find_vxlan(&wanted.device).await?;
    let step = plan_device(&wanted, found.as_ref());
    let observed = match (step, &found) {
        (DeviceStep::Keep { .. }, Some(found)) => observe(&netlink, found.link.index).await?,
        _ => Observed::default(),
    };
    let changes = changes(step, &plan_entries(&wanted, &observed));
    Ok(Attached {
        node: site.node,
        mtu: wanted.mtu,
        changes,
    })
}

/// Whether this node has the overlay's device, in whatever state.
///
/// # Errors
/// [`OverlayError`].
pub async fn exists(node: &NodeNetns, vni: Vni) -> Result<bool, OverlayError> {
    let netlink = Netlink::open_in_node(node)?;
    Ok(netlink.find_link(&vni.device()).await?.is_some())
}

/// Takes the overlay from this node: the device with all of its entries, and what keeps packets to `cluster_cidrs` at
/// home. Absent is success.
///
/// # Errors
/// [`OverlayError`].
pub async fn delete(
    node: &NodeNetns,
    vni: Vni,
    cluster_cidrs: &[IpNetwork],
) -> Result<(), OverlayError> {
    let netlink = Netlink::open_in_node(node)?;
    let _lock = Lock::acquire(node).await?;
    netlink.delete_link(&vni.device()).await?;
    for cidr in cluster_cidrs {
        netlink.delete_unreachable_route(*cidr).await?;
    }
    Ok(())
}

async fn read_applied(
    netlink: &Netlink,
    overlay: &Overlay,
) -> Result<Option<Attached>, OverlayError> {
    let vni = overlay.settings().vni;
    let Some(found) = netlink.find_vxlan(&vni.device()).await? else {
        return Ok(None);
    };
    if !found.link.up || found.link.alias != overlay.alias() {
        return Ok(None);
    }
    let is_own = |ip| found.local == Some(ip);
    let mut own = None;
    let mut remote = None;
    for node in overlay.nodes() {
        if node.underlay.iter().copied().any(is_own) {
            own = Some(node);
        } else {
            remote = Some(node);
        }
    }
    let Some(own) = own else {
        return Ok(None);
    };
    if let Some(cidr) = remote.and_then(|remote| remote.pod_cidrs.first()) {
        let route = netlink.find_route(cidr.network()).await?;
        if route.is_none_or(|route| route.link != found.link.index) {
            return Ok(None);
        }
    }
    Ok(Some(Attached {
        node: own.clone(),
        mtu: found.link.mtu,
        changes: Changes::default(),
    }))
}

async fn locate(netlink: &Netlink, overlay: &Overlay) -> Result<(Site, Wanted), OverlayError> {
    let device = match &overlay.settings().underlay.device {
        None => None,
        Some(name) => {
            let found = netlink.find_link(name.as_str()).await?;
            let link = found.ok_or_else(|| OverlayError::NoUnderlay {
                name: name.as_str().to_owned(),
            })?;
            Some(link.index)
        }
    };
    let addresses = netlink.list_all_addresses().await?;
    let site = plan_site(overlay, &addresses, device)?;
    let underlay = netlink.find_link_by_index(site.link).await?;
    let underlay = underlay.ok_or_else(|| OverlayError::NoUnderlay {
        name: site.link.to_string(),
    })?;
    let wanted = Wanted::new(overlay, &site, underlay.mtu)?;
    Ok((site, wanted))
}

async fn apply(netlink: &Netlink, overlay: &Overlay) -> Result<Attached, OverlayError> {
    let (site, wanted) = locate(netlink, overlay).await?;
    let found = netlink.find_vxlan(&wanted.device).await?;
    let step = plan_device(&wanted, found.as_ref());
    let index = apply_device(netlink, &wanted, step, found.as_ref()).await?;
    let filled = fill(netlink, overlay, &wanted, index).await;
    match filled {
        Ok(plan) => Ok(Attached {
            node: site.node,
            mtu: wanted.mtu,
            changes: changes(step, &plan),
        }),
        Err(error) => {
            // A device that was there stays with what it has: its alias still tells of the old table, and the next
            // one to come tries again.
            if !matches!(step, DeviceStep::Keep { .. }) {
                netlink.delete_link(&wanted.device).await.ok();
            }
            Err(error)
        }
    }
}

fn changes(step: DeviceStep, plan: &EntryPlan) -> Changes {
    let kept = DeviceStep::Keep {
        set_mtu: false,
        set_up: false,
    };
    let created = matches!(step, DeviceStep::Create | DeviceStep::Recreate);
    Changes {
        created,
        adjusted: !created && step != kept,
        set: plan.set_count(),
        deleted: plan.delete_count(),
    }
}

async fn apply_device(
    netlink: &Netlink,
    wanted: &Wanted,
    step: DeviceStep,
    found: Option<&VxlanLink>,
) -> Result<u32, OverlayError> {
    if let (DeviceStep::Keep { set_mtu, set_up }, Some(found)) = (step, found) {
        let index = found.link.index;
        if set_mtu {
            netlink.set_mtu(index, wanted.mtu).await?;
        }
        if set_up {
            netlink.set_up(index).await?;
        }
        return Ok(index);
    }
    if found.is_some() {
        netlink.delete_link(&wanted.device).await?;
    }
    let spec = VxlanSpec {
        name: &wanted.device,
        vni: wanted.vni,
        port: wanted.port,
        local: wanted.local,
        underlay: wanted.underlay,
        mtu: wanted.mtu,
        mac: wanted.mac,
    };
    netlink.create_vxlan(&spec).await?;
    let made = netlink.find_vxlan(&wanted.device).await?;
    made.map(|vxlan| vxlan.link.index)
        .ok_or_else(|| OverlayError::NoUnderlay {
            name: wanted.device.clone(),
        })
}

/// Brings the entries of the device up to date, and only then says so on the device.
async fn fill(
    netlink: &Netlink,
    overlay: &Overlay,
    wanted: &Wanted,
    index: u32,
) -> Result<EntryPlan, OverlayError> {
    let plan = plan_entries(wanted, &observe(netlink, index).await?);
    apply_entries(netlink, index, &plan).await?;
    for cidr in &overlay.settings().cluster_cidrs {
        netlink.ensure_unreachable_route(*cidr).await?;
    }
    netlink.set_alias(index, overlay.alias()).await?;
    Ok(plan)
}

async fn observe(netlink: &Netlink, index: u32) -> Result<Observed, OverlayError> {
    let routes = netlink.list_routes(index).await?;
    Ok(Observed {
        addresses: netlink.list_addresses(index).await?,
        fdb: netlink.list_fdb(index).await?,
        neighbours: netlink.list_neighbours(index).await?,
        routes: routes
            .into_iter()
            .filter_map(|route| {
                Some(Path {
                    dst: route.dst,
                    gateway: route.gateway?,
                })
            })
            .collect(),
    })
}

async fn apply_entries(
    netlink: &Netlink,
    index: u32,
    plan: &EntryPlan,
) -> Result<(), OverlayError> {
    for address in &plan.add_addresses {
        netlink.add_address(index, *address).await?;
    }
    for entry in &plan.set_fdb {
        netlink.set_fdb(index, entry).await?;
    }
    for neighbour in &plan.set_neighbours {
        netlink.set_neighbour(index, neighbour).await?;
    }
    for path in &plan.add_routes {
        match netlink.create_route(&route(index, path)).await {
            Err(error) if error.is_existing() => {
                return Err(OverlayError::RouteTaken { dst: path.dst });
            }
            other => other?,
        }
    }
    for path in &plan.replace_routes {
        netlink.replace_route(&route(index, path)).await?;
    }
    for path in &plan.delete_routes {
        netlink.delete_route(&route(index, path)).await?;
    }
    for neighbour in &plan.delete_neighbours {
        netlink.delete_neighbour(index, neighbour).await?;
    }
    for entry in &plan.delete_fdb {
        netlink.delete_fdb(index, entry).await?;
    }
    for address in &plan.delete_addresses {
        netlink.delete_address(index, *address).await?;
    }
    Ok(())
}

/// A VTEP is on no network that the device has an address in.
fn route(index: u32, path: &Path) -> RouteSpec {
    RouteSpec {
        onlink: true,
        ..RouteSpec::new(path.dst, Some(path.gateway), index)
    }
}
