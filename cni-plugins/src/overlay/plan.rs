//! What the kernel should hold, and what is missing or too much.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::{Node, Overlay, OverlayError, Site, VtepMac};
use crate::netlink::{FdbEntry, Neighbour, VxlanLink};

/// A way to a node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// The podCIDR.
    pub dst: IpNetwork,
    /// The address of the node's VTEP.
    pub gateway: IpAddr,
}

/// The state of a node's overlay: as it should be, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The device's name.
    pub device: String,
    /// Its VNI.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// Where its packets come from.
    pub local: IpAddr,
    /// The link that they must take.
    pub underlay: Option<u32>,
    /// Its MTU.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// Where frames for a VTEP go.
    pub fdb: BTreeMap<[u8; 6], IpAddr>,
    /// Which VTEP a gateway is.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Which gateway leads to a podCIDR.
    pub routes: BTreeMap<IpNetwork, IpAddr>,
}

impl Wanted {
    /// What `overlay` is at `site`, whose link has `underlay_mtu`.
    ///
    /// # Errors
    /// [`OverlayError`], for which [`OverlayError::is_configuration`] holds.
    pub fn new(overlay: &Overlay, site: &Site, underlay_mtu: u32) -> Result<Self, OverlayError> {
        let settings = overlay.settings();
        let vtep = |node: &Node, ip| {
            node.vtep_mac
                .unwrap_or_else(|| VtepMac::derive(settings.vni, ip))
        };
        let own_mac = vtep(&site.node, site.local);
        let mut wanted = Self {
            device: settings.vni.device(),
            vni: settings.vni.get(),
            port: settings.port,
            local: site.local,
            underlay: settings.underlay.device.as_ref().map(|_| site.link),
            mtu: site.mtu(overlay, underlay_mtu)?,
            mac: own_mac.octets(),
            // The node's own packets to pods elsewhere must not come from its underlay address: the answers would
            // not take the overlay. IPv6 picks the bridge's address by itself.
            addresses: gateway_v4(&site.node)
                .map(IpNetwork::from)
                .into_iter()
                .collect(),
            fdb: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        let mut owners = HashMap::from([(own_mac, &site.node)]);
        for node in overlay.nodes() {
            if node.name == site.node.name {
                continue;
            }
            let Some(remote) = node.underlay_of_family(site.local.is_ipv4()) else {
                let family = if site.local.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err(OverlayError::Node {
                    node: node.name.clone(),
                    reason: format!(
                        "no {family} underlay address, while this node has {}",
                        site.local
                    ),
                });
            };
            let mac = vtep(node, remote);
            if let Some(other) = owners.insert(mac, node) {
                return Err(OverlayError::Conflict {
                    first: other.name.clone(),
                    second: node.name.clone(),
                    what: format!("the VTEP hardware address {mac}"),
                });
            }
            wanted.add_remote(node, remote, mac);
        }
        Ok(wanted)
    }

    fn add_remote(&mut self, node: &Node, remote: IpAddr, mac: VtepMac) {
        self.fdb.insert(mac.octets(), remote);
        let v4 = gateway_v4(node);
        let v6 = IpAddr::V6(mac.link_local());
        for cidr in &node.pod_cidrs {
            let gateway = match v4 {
                Some(v4) if cidr.is_ipv4() => v4,
                _ => v6,
            };
            self.neighbours.insert(gateway, mac.octets());
            self.routes.insert(*cidr, gateway);
        }
    }
}

/// The IPv4 address of a node's VTEP: that of its first IPv4 podCIDR itself, which no pod gets.
fn gateway_v4(node: &Node) -> Option<IpAddr> {
    let mut cidrs = node.pod_cidrs.iter();
    cidrs.find(|cidr| cidr.is_ipv4()).map(IpNetwork::network)
}

/// What must happen to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceStep {
    /// Nothing, or what can be set on a device that is there.
    Keep {
        /// Another MTU.
        set_mtu: bool,
        /// Up again.
        set_up: bool,
    },
    /// There is none.
    Create,
    /// It is there, but not as it should be, and the kernel cannot change that.
    Recreate,
}

/// Compares the device with what it should be.
#[must_use]
pub fn plan_device(wanted: &Wanted, found: Option<&VxlanLink>) -> DeviceStep {
    let Some(found) = found else {
        return DeviceStep::Create;
    };
    let fits = found.vni == wanted.vni
        && found.port == wanted.port
        && found.local == Some(wanted.local)
        && found.underlay == wanted.underlay
        && found.link.mac == wanted.mac
        && !found.learning
        && !found.external;
    if fits {
        DeviceStep::Keep {
            set_mtu: found.link.mtu != wanted.mtu,
            set_up: !found.link.up,
        }
    } else {
        DeviceStep::Recreate
    }
}

/// What the device has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// Its forwarding database.
    pub fdb: Vec<FdbEntry>,
    /// Its permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The routes through it that have a gateway.
    pub routes: Vec<Path>,
}

/// What makes the device what it should be. In this order nothing leads to where nobody is: entries come before the
/// routes that need them and go after them, and a route that changes is replaced in one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryPlan {
    /// Addresses that are missing.
    pub add_addresses: Vec<IpNetwork>,
    /// Forwarding entries that are missing or lead elsewhere.
    pub set_fdb: Vec<FdbEntry>,
    /// Neighbours that are missing or somebody else.
    pub set_neighbours: Vec<Neighbour>,
    /// Routes that are missing.
    pub add_routes: Vec<Path>,
    /// Routes that lead elsewhere.
    pub replace_routes: Vec<Path>,
    /// Routes to where no node has pods.
    pub delete_routes: Vec<Path>,
    /// Neighbours that are no node.
    pub delete_neighbours: Vec<Neighbour>,
    /// Forwarding entries of no node.
    pub delete_fdb: Vec<FdbEntry>,
    /// Addresses that it should not have.
    pub delete_addresses: Vec<IpNetwork>,
}

/// Compares the device's entries with what they should be.
#[must_use]
pub fn plan_entries(wanted: &Wanted, observed: &Observed) -> EntryPlan {
    let mut plan = EntryPlan::default();
    for address in &observed.addresses {
        let link_local = matches!(address, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local());
        if !wanted.addresses.contains(address) && !link_local {
            plan.delete_addresses.push(*address);
        }
    }
    for address in &wanted.addresses {
        if !observed.addresses.contains(address) {
            plan.add_addresses.push(*address);
        }
    }

    let mut fdb = wanted.fdb.clone();
    for entry in &observed.fdb {
        if wanted.fdb.get(&entry.mac) == Some(&entry.remote) {
            fdb.remove(&entry.mac);
        } else {
            plan.delete_fdb.push(entry.clone());
        }
    }
    plan.set_fdb = fdb
        .into_iter()
        .map(|(mac, remote)| FdbEntry { mac, remote })
        .collect();

    let mut neighbours = wanted.neighbours.clone();
    for entry in &observed.neighbours {
        match wanted.neighbours.get(&entry.ip) {
            Some(mac) if *mac == entry.mac => drop(neighbours.remove(&entry.ip)),
            // Setting it replaces it.
            Some(_) => {}
            None => plan.delete_neighbours.push(entry.clone()),
        }
    }
    plan.set_neighbours = neighbours
        .into_iter()
        .map(|(ip, mac)| Neighbour { ip, mac })
        .collect();

    plan_routes(wanted, observed, &mut plan);
    plan
}

fn plan_routes(wanted: &Wanted, observed: &Observed, plan: &mut EntryPlan) {
    let mut known: HashMap<IpNetwork, Vec<IpAddr>> = HashMap::new();
    for path in &observed.routes {
        known.entry(path.dst).or_default().push(path.gateway);
    }
    for (dst, gateway) in &wanted.routes {
        let path = Path {
            dst: *dst,
            gateway: *gateway,
        };
        match known.get(dst) {
            None => plan.add_routes.push(path),
            Some(gateways) if gateways.contains(gateway) => {}
            Some(_) => plan.replace_routes.push(path),
        }
    }
    let replaced: HashSet<IpNetwork> = plan.replace_routes.iter().map(|path| path.dst).collect();
    for path in &observed.routes {
        let is_wanted = wanted.routes.get(&path.dst) == Some(&path.gateway);
        if !is_wanted && !replaced.contains(&path.dst) {
            plan.delete_routes.push(*path);
        }
    }
}

impl EntryPlan {
    /// How many entries it makes or changes.
    #[must_use]
    pub fn set_count(&self) -> usize {
        self.add_addresses.len()
            + self.set_fdb.len()
            + self.set_neighbours.len()
            + self.add_routes.len()
            + self.replace_routes.len()
    }

    /// How many entries it deletes.
    #[must_use]
    pub fn delete_count(&self) -> usize {
        self.delete_addresses.len()
            + self.delete_fdb.len()
            + self.delete_neighbours.len()
            + self.delete_routes.len()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
