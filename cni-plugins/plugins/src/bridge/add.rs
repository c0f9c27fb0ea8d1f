//! ADD.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use skiff_cni::{
    netlink::Link,
    skel::{Call, Target},
    types::{CniError, CniResult, Interface, Route, code},
};

use super::{
    config::Config,
    gateway::{Gateway, check_is_bridge, random_mac},
    pod::Pod,
    port::{admit_at_uplink, set_vlans},
};
use crate::{
    runtime::kernel,
    veth::{Adding, HostEnd, PairSpec, mac_of, on_node},
};

/// One ADD on its way.
struct Add<'a, 'b> {
    config: &'a Config,
    adding: &'a mut Adding<'b>,
}

/// What is there before anything is changed.
struct Found {
    bridge: Option<Link>,
    /// The uplink that VLANs are to pass at.
    uplink: Option<Link>,
}

/// What an ADD has made.
struct Made {
    bridge: Link,
    host_name: String,
    pod: Link,
    vlan_gateway: Option<Link>,
}

pub(super) fn add(call: &Call, target: &Target) -> Result<CniResult, CniError> {
    let config = Config::new(call)?;
    Adding::run(call, target, config.ipam.as_ref(), async |adding| {
        let config = &config;
        Add { config, adding }.steps().await
    })
}

impl Add<'_, '_> {
    async fn steps(&mut self) -> Result<CniResult, CniError> {
        let found = self.look().await?;
        let mut result = self.adding.take_addresses()?;
        self.complete(&mut result);
        if let Some(backend) = self.config.masquerade {
            self.adding.masquerade(backend, &result);
        }
        let made = self.make(found, &result).await?;
        self.adding.rules.finish()?;
        self.describe(&made, &mut result)?;
        Ok(result)
    }

    /// Finds out what stands in the way before anything is changed.
    async fn look(&self) -> Result<Found, CniError> {
        let failed = || kernel("cannot look for links");
        let host = &self.adding.host;
        let uplink = self
            .config
            .uplink
            .as_ref()
            .filter(|_| self.config.vlans.are_set());
        self.adding.check_link_is_new()?;
        let bridge = host.find_link(self.config.bridge.as_str()).await;
        let uplink_link = match uplink {
            Some(name) => host.find_link(name.as_str()).await,
            None => Ok(None),
        };
        let found = Found {
            bridge: bridge.map_err(failed())?,
            uplink: uplink_link.map_err(failed())?,
        };
        if let Some(bridge) = &found.bridge {
            check_is_bridge(bridge)?;
        }
        if let Some(name) = uplink {
            let bridge = found.bridge.as_ref().map(|bridge| bridge.index);
            let controller = found.uplink.as_ref().and_then(|link| link.controller);
            if bridge.is_none() || controller != bridge {
                let msg = format!(
                    "uplinkInterface: {name} is no port of {}",
                    self.config.bridge
                );
                return Err(CniError::config(msg));
            }
        }
        Ok(found)
    }

    /// Fills in what IPAM left open.
    fn complete(&self, result: &mut CniResult) {
        for ip in &mut result.ips {
            if self.config.is_gateway && ip.gateway.is_none() {
                ip.gateway = first_host(ip.address);
            }
        }
        if self.config.is_default_gateway {
            add_default_routes(result);
        }
        if let Some(dns) = &self.config.dns {
            result.dns.clone_from(dns);
        }
    }

    async fn make(&mut self, found: Found, result: &CniResult) -> Result<Made, CniError> {
        let config = self.config;
        let host = &self.adding.host;
        let bridge = Gateway { host, config }.ensure_bridge(found.bridge).await?;
        let pair = PairSpec {
            controller: Some(bridge.index),
            hairpin: config.hairpin,
            isolated: config.isolated,
            mac: self.pod_mac(result)?,
            mtu: config.mtu,
        };
        let host_name = self.adding.create_pair(&pair).await?;
        if config.checks_spoofing {
            self.adding.check_spoofing(&host_name, &mac_text(pair.mac));
        }
        let adding = &*self.adding;
        let host = &adding.host;
        let bridge = self.with_port(bridge)?;
        let pod = adding.pod_end(&pair)?;
        if let Some(port) = host.link_index(&host_name) {
            set_vlans(host, &config.vlans, &bridge, port).await?;
        }
        if let Some(uplink) = &found.uplink {
            admit_at_uplink(host, config, uplink.index).await?;
        }
        if !config.is_disabled {
            let container = Pod {
                netns: &adding.netns,
                netlink: &adding.pod,
            };
            container
                .configure(&pod, result, config.detects_duplicates)
                .await?;
        }
        let gateway = Gateway { host, config };
        let vlan_gateway = gateway.ensure_addresses(&bridge, result).await?;
        Ok(Made {
            bridge,
            host_name,
            pod,
            vlan_gateway,
        })
    }

    /// A bridge whose hardware address and MTU nobody has set takes them from its ports.
    fn with_port(&self, bridge: Link) -> Result<Link, CniError> {
        let host = &self.adding.host;
        let now = host.link_mac(&bridge.name);
        let (mac, mtu) = now
            .zip(host.link_mtu(&bridge.name))
            .ok_or_else(|| CniError::new(code::KERNEL, format!("{} is gone", bridge.name)))?;
        Ok(Link {
            mac: mac.to_vec(),
            mtu,
            ..bridge
        })
    }

    fn pod_mac(&self, result: &CniResult) -> Result<[u8; 6], CniError> {
        match (self.config.mac, result.ips.first()) {
            (Some(mac), _) => Ok(mac),
            (None, Some(ip)) => Ok(mac_of(ip.address.ip())),
            (None, None) => random_mac(),
        }
    }

    fn describe(&self, made: &Made, result: &mut CniResult) -> Result<(), CniError> {
        let end = HostEnd::new(self.adding.call, self.adding.target);
        let host_end = Interface {
            name: made.host_name.clone(),
            mac: mac_text(end.mac),
            mtu: Some(made.pod.mtu),
            ..Interface::default()
        };
        result.interfaces = vec![
            on_node(&made.bridge),
            host_end,
            self.adding.in_container(&made.pod)?,
        ];
        let vlan_gateway = made.vlan_gateway.as_ref();
        result.interfaces.extend(vlan_gateway.map(on_node));
        for ip in &mut result.ips {
            ip.interface = Some(2);
        }
        Ok(())
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

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
