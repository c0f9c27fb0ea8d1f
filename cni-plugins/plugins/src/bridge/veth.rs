//! The veth pair and the bridge's port.

use std::os::fd::AsFd as _;

use skiff_cni::{
    host_veth_mac, host_veth_name, link_alias,
    netlink::{Link, Netlink, NetlinkError, PortSettings, VethSpec, VlanOwner},
    skel::{Call, Target},
    types::{CniError, code},
};
use skiff_netns::NetNs;

use super::{config::Config, vlan::Vlans};
use crate::runtime::kernel;

/// So many other names are tried if a stranger's link has the host end's.
const NAME_ATTEMPTS: u8 = 4;

/// How the host's end of an attachment's pair is known.
#[derive(Debug)]
pub(super) struct HostEnd {
    names: [String; NAME_ATTEMPTS as usize],
    pub(super) mac: [u8; 6],
    alias: String,
}

impl HostEnd {
    pub(super) fn new(call: &Call, target: &Target) -> Self {
        let (container, ifname) = (&target.container_id, &target.ifname);
        Self {
            names: std::array::from_fn(|salt| {
                // Fewer than 256 attempts.
                host_veth_name(container, ifname, u8::try_from(salt).unwrap_or_default())
            }),
            mac: host_veth_mac(container, ifname),
            alias: link_alias(&call.conf.name, container, ifname),
        }
    }

    /// Finds it.
    pub(super) async fn find(&self, host: &Netlink) -> Result<Option<Link>, NetlinkError> {
        for name in &self.names {
            match host.find_link(name).await? {
                Some(link) if self.is(&link) => return Ok(Some(link)),
                Some(_stranger) => {}
                // The next name is taken only if this one is.
                None => break,
            }
        }
        Ok(None)
    }

    /// Whether a link with one of the names is this attachment's: by its alias, or, if its ADD was killed before it
    /// could write one, by its hardware address.
    fn is(&self, link: &Link) -> bool {
        if link.alias.is_empty() {
            link.mac == self.mac
        } else {
            link.alias == self.alias
        }
    }

    /// Makes the pair; returns the name of this end, and the other end if the kernel told of the pair. `made` is told
    /// the name at once.
    pub(super) async fn create(
        &self,
        host: &Netlink,
        pair: &Pair<'_>,
        mut made: impl FnMut(&str),
    ) -> Result<(String, Option<Link>), CniError> {
        for name in &self.names {
            let spec = VethSpec {
                name,
                mac: self.mac,
                controller: Some(pair.bridge.index),
                peer_name: pair.target.ifname.as_str(),
                peer_mac: pair.mac,
                peer_netns: pair.netns.as_fd(),
                mtu: pair.config.mtu,
            };
            match host.create_veth(&spec).await {
                Ok(told) => {
                    made(name);
                    return Ok((name.clone(), told.and_then(|end| pair.other_end(&end))));
                }
                Err(error) if error.is_existing() => {
                    let link = host.find_link(name).await;
                    let link = link.map_err(kernel("cannot look for links"))?;
                    if link.is_some_and(|link| self.is(&link)) {
                        let msg =
                            format!("{name} exists already for this container: DEL comes first");
                        return Err(CniError::new(code::EXISTS, msg));
                    }
                }
                Err(error) => return Err(kernel("cannot make the veth pair")(error)),
            }
        }
        Err(CniError::new(
            code::EXISTS,
            "every name for the host's end is taken",
        ))
    }

    /// Sets what can only be set on a port that exists.
    pub(super) async fn set_port(
        &self,
        host: &Netlink,
        name: &str,
        config: &Config,
    ) -> Result<(), CniError> {
        let port = PortSettings {
            hairpin: config.hairpin,
            isolated: config.isolated,
            alias: Some(&self.alias),
        };
        host.set_port(name, &port)
            .await
            .map_err(kernel("cannot set the bridge port"))
    }
}

/// A pair to be made.
pub(super) struct Pair<'a> {
    pub(super) config: &'a Config,
    pub(super) target: &'a Target,
    pub(super) netns: &'a NetNs,
    pub(super) bridge: &'a Link,
    /// The hardware address of the container's end.
    pub(super) mac: [u8; 6],
}

impl Pair<'_> {
    /// The container's end, as it follows from the host's.
    fn other_end(&self, end: &Link) -> Option<Link> {
        Some(Link {
            index: end.peer?,
            name: self.target.ifname.to_string(),
            kind: end.kind.clone(),
            mac: self.mac.to_vec(),
            mtu: end.mtu,
            peer: Some(end.index),
            ..Link::default()
        })
    }
}

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
