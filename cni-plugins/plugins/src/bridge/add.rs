//! ADD.

use std::{fs::File, io::Read as _, net::IpAddr, os::fd::AsFd as _};

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::Masquerade,
    host_veth_mac, host_veth_name, link_alias,
    netlink::{BridgeSpec, Link, Netlink, PortSettings, RouteSpec, VethSpec},
    skel::{Call, Target},
    types::{CniError, CniResult, Interface, IpConfig, Route, code},
};
use skiff_netns::NetNs;

use super::{
    config::{Config, mac_of},
    sysctl,
};
use crate::{
    ipam::{self, Ipam},
    runtime::{block_on, kernel},
};

/// So many other names are tried if a stranger's link has the host end's.
pub(super) const NAME_ATTEMPTS: u8 = 4;

/// One ADD on its way.
struct Add<'a> {
    call: &'a Call,
    target: &'a Target,
    config: &'a Config,
    netns: &'a NetNs,
    host: Netlink,
    pod: Netlink,
}

/// What must be undone if a later step fails, in order.
#[derive(Default)]
struct Undo {
    ipam: bool,
    host_veth: Option<String>,
    masquerade: bool,
}

pub(super) fn add(call: &Call, target: &Target) -> Result<CniResult, CniError> {
    let config = Config::new(call)?;
    let ipam = Ipam::find(call, config.ipam.as_ref())?;
    let netns = NetNs::open(target.netns()?).map_err(|error| {
        CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error)
    })?;
    block_on(async {
        let add = Add {
            call,
            target,
            config: &config,
            netns: &netns,
            host: Netlink::open().map_err(kernel("cannot open netlink"))?,
            pod: Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?,
        };
        let mut undo = Undo::default();
        match add.steps(&ipam, &mut undo).await {
            Ok(result) => Ok(result),
            Err(error) => {
                add.undo(&ipam, undo).await;
                Err(error)
            }
        }
    })
}

impl Add<'_> {
    async fn steps(&self, ipam: &Ipam, undo: &mut Undo) -> Result<CniResult, CniError> {
        let bridge = self.check_links().await?;
        // A delegated IPAM plugin may fail half-way: it is told to release in any case. Ours takes nothing then, and a
        // refused second ADD must not release what the first one has.
        undo.ipam = matches!(ipam, Ipam::Exec(_));
        let mut result = ipam.add(self.call, self.target)?;
        undo.ipam = true;
        self.check_addresses(ipam, &mut result)?;
        let bridge = self.ensure_bridge(bridge).await?;
        let mac = self.pod_mac(&result)?;
        let host_mac = host_veth_mac(&self.target.container_id, &self.target.ifname);
        let host_name = self.create_veth(&bridge, mac, host_mac, undo).await?;
        let pod_link = self
            .pod
            .find_link(self.target.ifname.as_str())
            .await
            .map_err(kernel("cannot find the container's link"))?
            .ok_or_else(|| CniError::new(code::KERNEL, "the container's link is gone"))?;
        self.configure_pod(&pod_link, &result).await?;
        self.configure_gateway(&bridge, &result).await?;
        self.masquerade(&result, undo)?;
        let sandbox = self.target.netns()?.to_string_lossy().into_owned();
        result.interfaces = vec![
            interface(&bridge.name, bridge.mac_text(), bridge.mtu, String::new()),
            interface(&host_name, mac_text(host_mac), pod_link.mtu, String::new()),
            interface(&pod_link.name, pod_link.mac_text(), pod_link.mtu, sandbox),
        ];
        for ip in &mut result.ips {
            ip.interface = Some(2);
        }
        Ok(result)
    }

    /// Finds out what stands in the way before anything is changed.
    async fn check_links(&self) -> Result<Option<Link>, CniError> {
        let failed = || kernel("cannot look for links");
        let ifname = self.target.ifname.as_str();
        if self
            .pod
            .find_link(ifname)
            .await
            .map_err(failed())?
            .is_some()
        {
            return Err(CniError::new(
                code::EXISTS,
                format!("the container has a link {ifname} already"),
            ));
        }
        let name = self.config.bridge.as_str();
        let bridge = self.host.find_link(name).await.map_err(failed())?;
        match bridge {
            Some(link) if link.kind != "bridge" => Err(CniError::config(format!(
                "{name} is a link, but not a bridge"
            ))),
            other => Ok(other),
        }
    }

    /// Fills in what IPAM left open, and refuses what cannot work.
    fn check_addresses(&self, ipam: &Ipam, result: &mut CniResult) -> Result<(), CniError> {
        if !matches!(ipam, Ipam::None) && result.ips.is_empty() {
            return Err(CniError::new(code::DELEGATE, "IPAM gave no address"));
        }
        for ip in &mut result.ips {
            if self.config.is_gateway && ip.gateway.is_none() {
                ip.gateway = first_host(ip.address);
            }
        }
        if self.config.is_default_gateway {
            add_default_routes(result);
        }
        Ok(())
    }

    async fn ensure_bridge(&self, found: Option<Link>) -> Result<Link, CniError> {
        let name = self.config.bridge.as_str();
        let mut found = found;
        if found.is_none() {
            let spec = BridgeSpec {
                name,
                mtu: self.config.mtu,
                mac: random_mac()?,
            };
            match self.host.create_bridge(&spec).await {
                Ok(()) => sysctl::ignore_router_advertisements(name)?,
                // Another ADD was quicker.
                Err(error) if error.is_existing() => {}
                Err(error) => return Err(kernel("cannot make the bridge")(error)),
            }
            found = self
                .host
                .find_link(name)
                .await
                .map_err(kernel("cannot find the bridge"))?;
        }
        let bridge = found.ok_or_else(|| CniError::new(code::KERNEL, "the bridge is gone"))?;
        if bridge.kind != "bridge" {
            return Err(CniError::config(format!(
                "{name} is a link, but not a bridge"
            )));
        }
        if !bridge.up {
            self.host
                .set_up(bridge.index)
                .await
                .map_err(kernel("cannot set the bridge up"))?;
        }
        if self.config.promiscuous && !bridge.promiscuous {
            let set = self.host.set_promiscuous(bridge.index).await;
            set.map_err(kernel("cannot make the bridge promiscuous"))?;
        }
        Ok(bridge)
    }

    fn pod_mac(&self, result: &CniResult) -> Result<[u8; 6], CniError> {
        match (self.config.mac, result.ips.first()) {
            (Some(mac), _) => Ok(mac),
            (None, Some(ip)) => Ok(mac_of(ip.address.ip())),
            (None, None) => random_mac(),
        }
    }

    async fn create_veth(
        &self,
        bridge: &Link,
        mac: [u8; 6],
        host_mac: [u8; 6],
        undo: &mut Undo,
    ) -> Result<String, CniError> {
        let target = self.target;
        let alias = link_alias(&self.call.conf.name, &target.container_id, &target.ifname);
        for salt in 0..NAME_ATTEMPTS {
            let name = host_veth_name(&target.container_id, &target.ifname, salt);
            let spec = VethSpec {
                name: &name,
                mac: host_mac,
                controller: bridge.index,
                peer_name: target.ifname.as_str(),
                peer_mac: mac,
                peer_netns: self.netns.as_fd(),
                mtu: self.config.mtu,
            };
            match self.host.create_veth(&spec).await {
                Ok(()) => {
                    undo.host_veth = Some(name.clone());
                    let port = PortSettings {
                        hairpin: self.config.hairpin,
                        alias: alias.as_deref(),
                    };
                    let set = self.host.set_port(&name, &port).await;
                    set.map_err(kernel("cannot set the bridge port"))?;
                    return Ok(name);
                }
                Err(error) if error.is_existing() => {
                    let link = self
                        .host
                        .find_link(&name)
                        .await
                        .map_err(kernel("cannot look for links"))?;
                    if link.is_some_and(|link| is_ours(&link, alias.as_deref(), host_mac)) {
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

    async fn configure_pod(&self, link: &Link, result: &CniResult) -> Result<(), CniError> {
        let up = self.pod.set_up(link.index).await;
        up.map_err(kernel("cannot set the container's link up"))?;
        for ip in &result.ips {
            let added = self.pod.add_address(link.index, ip.address).await;
            added.map_err(kernel(format!("cannot give the container {}", ip.address)))?;
        }
        for route in &result.routes {
            let spec = RouteSpec {
                priority: route.priority,
                table: route.table,
                mtu: route.mtu,
                advmss: route.advmss,
                scope: route.scope,
                ..RouteSpec::new(route.dst, gateway_of(route, &result.ips), link.index)
            };
            let added = self.pod.add_route(&spec).await;
            added.map_err(kernel(format!("cannot add the route to {}", route.dst)))?;
        }
        Ok(())
    }

    async fn configure_gateway(&self, bridge: &Link, result: &CniResult) -> Result<(), CniError> {
        if !self.config.is_gateway {
            return Ok(());
        }
        for ip in &result.ips {
            let Some(gateway) = ip
                .gateway
                .filter(|gateway| gateway.is_ipv4() == ip.address.is_ipv4())
            else {
                continue;
            };
            let address = IpNetwork::new(gateway, ip.address.prefix())
                .map_err(|error| CniError::config(format!("gateway {gateway}: {error}")))?;
            self.ensure_bridge_address(bridge, address).await?;
            sysctl::enable_forwarding(address.is_ipv4())?;
        }
        Ok(())
    }

    async fn ensure_bridge_address(
        &self,
        bridge: &Link,
        wanted: IpNetwork,
    ) -> Result<(), CniError> {
        let listed = self.host.list_addresses(bridge.index).await;
        let existing = listed.map_err(kernel("cannot list the bridge's addresses"))?;
        if existing.contains(&wanted) {
            return Ok(());
        }
        for other in existing.iter().filter(|other| conflicts(**other, wanted)) {
            if !self.config.force_address {
                let msg = format!("{} has the address {other}, not {wanted}", bridge.name);
                return Err(CniError::new(code::EXISTS, msg));
            }
            let deleted = self.host.delete_address(bridge.index, *other).await;
            deleted.map_err(kernel(format!("cannot take {other} from the bridge")))?;
        }
        match self.host.add_address(bridge.index, wanted).await {
            // Another ADD was quicker.
            Err(error) if !error.is_existing() => {
                Err(kernel(format!("cannot give the bridge {wanted}"))(error))
            }
            _ => Ok(()),
        }
    }

    fn masquerade(&self, result: &CniResult, undo: &mut Undo) -> Result<(), CniError> {
        if !self.config.ip_masq {
            return Ok(());
        }
        let masquerade = Masquerade::new(self.call.conf.name.clone());
        for ip in &result.ips {
            undo.masquerade = true;
            masquerade
                .ensure(ip.address, &self.target.container_id)
                .map_err(|error| {
                    CniError::from_error(code::FIREWALL, "cannot masquerade", &error)
                })?;
        }
        Ok(())
    }

    /// In reverse order. What cannot be undone is left to DEL, which the runtime calls after a failed ADD: the error
    /// that it must see is the first one.
    async fn undo(&self, ipam: &Ipam, undo: Undo) {
        if undo.masquerade {
            Masquerade::new(self.call.conf.name.clone())
                .delete(&self.target.container_id)
                .ok();
        }
        if let Some(name) = undo.host_veth {
            self.host.delete_link(&name).await.ok();
        }
        if undo.ipam {
            ipam.del(&ipam::as_del(self.call), self.target).ok();
        }
    }
}

/// Whether a link with the host end's name is this attachment's: by its alias, or, if its ADD was killed before it could
/// write one, by its hardware address.
pub(super) fn is_ours(link: &Link, alias: Option<&str>, mac: [u8; 6]) -> bool {
    if link.alias.is_empty() {
        link.mac == mac
    } else {
        Some(&*link.alias) == alias
    }
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

fn first_host(subnet: IpNetwork) -> Option<IpAddr> {
    match subnet.network() {
        IpAddr::V4(v4) => v4
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V6(bits.into())),
    }
}

/// A default route for each family that has an address, unless IPAM gave one.
fn add_default_routes(result: &mut CniResult) {
    for unspecified in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        let gateway = result
            .ips
            .iter()
            .filter(|ip| ip.address.is_ipv4() == unspecified.is_ipv4())
            .find_map(|ip| ip.gateway);
        let given = result
            .routes
            .iter()
            .any(|route| route.dst.prefix() == 0 && route.dst.is_ipv4() == unspecified.is_ipv4());
        if let (Some(gateway), false, Ok(dst)) = (gateway, given, IpNetwork::new(unspecified, 0)) {
            result.routes.push(Route {
                gw: Some(gateway),
                ..Route::to(dst)
            });
        }
    }
}

/// A route without a gateway goes through that of the container's first address of the same family.
pub(super) fn gateway_of(route: &Route, ips: &[IpConfig]) -> Option<IpAddr> {
    route.gw.or_else(|| {
        ips.iter()
            .filter(|ip| ip.address.is_ipv4() == route.dst.is_ipv4())
            .find_map(|ip| ip.gateway)
    })
}

fn interface(name: &str, mac: String, mtu: u32, sandbox: String) -> Interface {
    Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(mtu),
        sandbox,
        ..Interface::default()
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A locally administered hardware address of one link.
fn random_mac() -> Result<[u8; 6], CniError> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut mac))
        .map_err(|error| CniError::from_error(code::IO, "cannot read /dev/urandom", &error))?;
    mac[0] = mac[0] & 0xfe | 0x02;
    Ok(mac)
}
