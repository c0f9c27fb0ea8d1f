//! ADD.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use skiff_cni::{
    netlink::{Link, Netlink},
    skel::{Call, Target},
    types::{CniError, CniResult, Interface, Route, code},
};
use skiff_netns::NetNs;

use super::{
    config::{Config, mac_of},
    gateway::{Gateway, check_is_bridge, random_mac},
    pod::Pod,
    port::{admit_at_uplink, set_port, set_vlans},
    rules::Rules,
};
use crate::{
    host_end::{HostEnd, Pair},
    ipam::{self, Ipam},
    runtime::{block_on, kernel},
};

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
    rules: Rules,
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
        let found = self.look().await?;
        // A delegated IPAM plugin may fail half-way: it is told to release in any case. Ours takes nothing then, and a
        // refused second ADD must not release what the first one has.
        undo.ipam = matches!(ipam, Ipam::Exec(_));
        let mut result = ipam.add(self.call, self.target)?;
        undo.ipam = true;
        self.complete(ipam, &mut result)?;
        if let Some(backend) = self.config.masquerade
            && !result.ips.is_empty()
        {
            let addresses = result.ips.iter().map(|ip| ip.address).collect();
            undo.rules
                .masquerade(self.call, self.target, backend, addresses);
        }
        let made = self.make(found, &result, undo).await?;
        undo.rules.finish()?;
        self.describe(&made, &mut result)?;
        Ok(result)
    }

    /// Finds out what stands in the way before anything is changed.
    async fn look(&self) -> Result<Found, CniError> {
        let failed = || kernel("cannot look for links");
        let ifname = self.target.ifname.as_str();
        let uplink = self
            .config
            .uplink
            .as_ref()
            .filter(|_| self.config.vlans.are_set());
        if self.pod.link_index(ifname).is_some() {
            return Err(CniError::new(
                code::EXISTS,
                format!("the container has a link {ifname} already"),
            ));
        }
        let (bridge, uplink_link) =
            futures::join!(self.host.find_link(self.config.bridge.as_str()), async {
                match uplink {
                    Some(name) => self.host.find_link(name.as_str()).await,
                    None => Ok(None),
                }
            });
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

    /// Fills in what IPAM left open, and refuses what cannot work.
    fn complete(&self, ipam: &Ipam, result: &mut CniResult) -> Result<(), CniError> {
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
        if let Some(dns) = &self.config.dns {
            result.dns.clone_from(dns);
        }
        Ok(())
    }

    async fn make(
        &self,
        found: Found,
        result: &CniResult,
        undo: &mut Undo,
    ) -> Result<Made, CniError> {
        let gateway = Gateway {
            host: &self.host,
            config: self.config,
        };
        let bridge = gateway.ensure_bridge(found.bridge).await?;
        let mac = self.pod_mac(result)?;
        let pair = Pair {
            controller: Some(bridge.index),
            ifname: &self.target.ifname,
            netns: self.netns,
            mac,
            mtu: self.config.mtu,
        };
        let end = HostEnd::new(self.call, self.target);
        let host_name = end
            .create(&self.host, &pair, |name| {
                undo.host_veth = Some(name.to_owned());
            })
            .await?;
        if self.config.checks_spoofing {
            let mac = mac_text(mac);
            undo.rules
                .check_spoofing(self.call, self.target, &host_name, &mac);
        }
        set_port(&self.host, &end, &host_name, self.config).await?;
        let bridge = self.with_port(bridge)?;
        let pod = pair.other_end(&self.pod)?;
        if let Some(port) = self.host.link_index(&host_name) {
            set_vlans(&self.host, &self.config.vlans, &bridge, port).await?;
        }
        if let Some(uplink) = &found.uplink {
            admit_at_uplink(&self.host, self.config, uplink.index).await?;
        }
        if !self.config.is_disabled {
            let container = Pod {
                netns: self.netns,
                netlink: &self.pod,
            };
            container
                .configure(&pod, result, self.config.detects_duplicates)
                .await?;
        }
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
        let now = self.host.link_mac(&bridge.name);
        let (mac, mtu) = now
            .zip(self.host.link_mtu(&bridge.name))
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
        let end = HostEnd::new(self.call, self.target);
        let sandbox = self.target.netns()?.to_string_lossy().into_owned();
        let host = |link: &Link| interface(&link.name, link.mac_text(), link.mtu, String::new());
        result.interfaces = vec![
            host(&made.bridge),
            interface(
                &made.host_name,
                mac_text(end.mac),
                made.pod.mtu,
                String::new(),
            ),
            interface(&made.pod.name, made.pod.mac_text(), made.pod.mtu, sandbox),
        ];
        result
            .interfaces
            .extend(made.vlan_gateway.as_ref().map(host));
        for ip in &mut result.ips {
            ip.interface = Some(2);
        }
        Ok(())
    }

    /// In reverse order. What cannot be undone is left to DEL, which the runtime calls after a failed ADD: the error
    /// that it must see is the first one.
    async fn undo(&self, ipam: &Ipam, undo: Undo) {
        undo.rules.undo(self.target);
        if let Some(name) = undo.host_veth {
            self.host.delete_link(&name).await.ok();
        }
        if undo.ipam {
            ipam.del(&ipam::as_del(self.call), self.target).ok();
        }
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
