//! The bridge, and the addresses by which the host is its containers' gateway.

use std::{fs::File, io::Read as _, os::fd::AsFd as _};

use ipnetwork::IpNetwork;
use skiff_cni::{
    fingerprint,
    netlink::{BridgeSpec, Link, Netlink, VethSpec},
    types::{CniError, CniResult, IfName, code},
};
use skiff_netns::NetNs;

use super::{
    config::Config,
    port::{set_vlans, vlans_refused},
    sysctl,
};
use crate::runtime::kernel;

/// The host's side of the network.
#[derive(Clone, Copy)]
pub(super) struct Gateway<'a> {
    pub(super) host: &'a Netlink,
    pub(super) config: &'a Config,
}

impl Gateway<'_> {
    /// Makes the bridge if it is not `found`, and sets it up.
    pub(super) async fn ensure_bridge(&self, found: Option<Link>) -> Result<Link, CniError> {
        let name = self.config.bridge.as_str();
        let bridge = match found {
            Some(link) => link,
            None => self.create_bridge(name).await?,
        };
        check_is_bridge(&bridge)?;
        // Also of one that was there: any container could make itself the node's router.
        sysctl::ignore_router_advertisements(name)?;
        if !bridge.up {
            let set = self.host.set_up(bridge.index).await;
            set.map_err(kernel("cannot set the bridge up"))?;
        }
        if self.config.promiscuous && !bridge.promiscuous {
            let set = self.host.set_promiscuous(bridge.index).await;
            set.map_err(kernel("cannot make the bridge promiscuous"))?;
        }
        Ok(bridge)
    }

    async fn create_bridge(&self, name: &str) -> Result<Link, CniError> {
        let spec = BridgeSpec {
            name,
            mtu: self.config.mtu,
            mac: random_mac()?,
            vlan_filtering: self.config.vlans.are_filtered(),
        };
        match self.host.create_bridge(&spec).await {
            Ok(()) => {}
            // Another ADD was quicker.
            Err(error) if error.is_existing() => {}
            Err(error) if error.is_unsupported() && spec.vlan_filtering => {
                return Err(vlans_refused(error));
            }
            Err(error) => return Err(kernel("cannot make the bridge")(error)),
        }
        find(self.host, name).await
    }

    /// Gives the bridge, or the link that stands for it in the container's VLAN, the gateway's addresses. Returns that
    /// link, if it is not the bridge.
    pub(super) async fn ensure_addresses(
        &self,
        bridge: &Link,
        result: &CniResult,
    ) -> Result<Option<Link>, CniError> {
        if !self.config.is_gateway {
            return Ok(None);
        }
        let vlan_link = match &self.config.vlan_gateway {
            Some(name) => Some(self.ensure_vlan_link(bridge, name).await?),
            None => None,
        };
        let link = vlan_link.as_ref().unwrap_or(bridge);
        let listed = self.host.list_addresses(link.index).await;
        let mut existing = listed.map_err(kernel("cannot list the gateway's addresses"))?;
        for ip in &result.ips {
            let Some(gateway) = ip
                .gateway
                .filter(|gateway| gateway.is_ipv4() == ip.address.is_ipv4())
            else {
                continue;
            };
            let address = IpNetwork::new(gateway, ip.address.prefix())
                .map_err(|error| CniError::config(format!("gateway {gateway}: {error}")))?;
            self.ensure_address(link, address, &existing).await?;
            existing.push(address);
            sysctl::enable_forwarding(address.is_ipv4())?;
        }
        Ok(vlan_link)
    }

    async fn ensure_address(
        &self,
        link: &Link,
        wanted: IpNetwork,
        existing: &[IpNetwork],
    ) -> Result<(), CniError> {
        if existing.contains(&wanted) {
            return Ok(());
        }
        for other in existing.iter().filter(|other| conflicts(**other, wanted)) {
            if !self.config.force_address {
                let msg = format!("{} has the address {other}, not {wanted}", link.name);
                return Err(CniError::new(code::EXISTS, msg));
            }
            let deleted = self.host.delete_address(link.index, *other).await;
            deleted.map_err(kernel(format!("cannot take {other} from {}", link.name)))?;
        }
        match self.host.add_address(link.index, wanted).await {
            Ok(()) => {}
            // Another ADD was quicker.
            Err(error) if error.is_existing() => return Ok(()),
            Err(error) => {
                return Err(kernel(format!("cannot give {} {wanted}", link.name))(error));
            }
        }
        self.keep_mac(link).await
    }

    /// A bridge that somebody else made may have the address of one of its ports, and another one with the next port:
    /// containers would lose their gateway. What it has now it keeps.
    async fn keep_mac(&self, link: &Link) -> Result<(), CniError> {
        let now = find(self.host, &link.name).await?;
        match <[u8; 6]>::try_from(now.mac.as_slice()) {
            Ok(mac) => self
                .host
                .set_mac(now.index, mac)
                .await
                .map_err(kernel("cannot keep the gateway's hardware address")),
            Err(_no_ethernet) => Ok(()),
        }
    }

    /// The gateway of a VLAN is the far end of a pair whose near end is an access port of the bridge: the bridge itself
    /// stays out of the VLAN.
    async fn ensure_vlan_link(&self, bridge: &Link, name: &IfName) -> Result<Link, CniError> {
        let failed = || kernel("cannot make the VLAN's gateway");
        let found = self.host.find_link(name.as_str()).await.map_err(failed())?;
        let link = match found {
            Some(link) => link,
            None => {
                let own = NetNs::open(OWN_NETNS).map_err(|error| {
                    CniError::from_error(code::IO, "cannot open the own namespace", &error)
                })?;
                let spec = VethSpec {
                    name: &vlan_port_name(name),
                    mac: random_mac()?,
                    controller: Some(bridge.index),
                    peer_name: name.as_str(),
                    peer_mac: random_mac()?,
                    peer_netns: own.as_fd(),
                    mtu: Some(bridge.mtu),
                    settings: None,
                };
                match self.host.create_veth(&spec).await {
                    Ok(()) => sysctl::ignore_router_advertisements(name.as_str())?,
                    // Another ADD was quicker.
                    Err(error) if error.is_existing() => {}
                    Err(error) => return Err(failed()(error)),
                }
                find(self.host, name.as_str()).await?
            }
        };
        // Also for one that was there: its maker may have been killed half-way.
        if let Some(port) = link.peer.filter(|_| link.kind == "veth") {
            let vlans = self.config.vlans.access_only();
            set_vlans(self.host, &vlans, bridge, port).await?;
        }
        if !link.up {
            self.host.set_up(link.index).await.map_err(failed())?;
        }
        Ok(link)
    }
}

const OWN_NETNS: &str = "/proc/self/ns/net";

fn vlan_port_name(gateway: &IfName) -> String {
    format!("veth{}", fingerprint(&["vlan", gateway.as_str()], 8))
}

pub(super) fn check_is_bridge(link: &Link) -> Result<(), CniError> {
    if link.is_bridge() {
        return Ok(());
    }
    Err(CniError::config(format!(
        "{} is a link, but not a bridge",
        link.name
    )))
}

/// Finds a link that must be there.
async fn find(netns: &Netlink, name: &str) -> Result<Link, CniError> {
    netns
        .find_link(name)
        .await
        .map_err(kernel("cannot look for links"))?
        .ok_or_else(|| CniError::new(code::KERNEL, format!("{name} is gone")))
}

/// An IPv4 link has one subnet; IPv6 ones conflict only where they overlap.
fn conflicts(existing: IpNetwork, wanted: IpNetwork) -> bool {
    match (existing, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(existing), IpNetwork::V6(wanted)) => {
            existing.contains(wanted.ip()) || wanted.contains(existing.ip())
        }
        _ => false,
    }
}

/// A locally administered hardware address of one link.
pub(super) fn random_mac() -> Result<[u8; 6], CniError> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut mac))
        .map_err(|error| CniError::from_error(code::IO, "cannot read /dev/urandom", &error))?;
    mac[0] = mac[0] & 0xfe | 0x02;
    Ok(mac)
}
