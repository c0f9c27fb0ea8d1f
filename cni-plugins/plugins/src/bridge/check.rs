//! CHECK and STATUS.

use skiff_cni::{
    firewall::{Backend, FirewallError, Masquerade},
    netlink::{Link, Netlink, PortFlags, RouteSpec, VlanOwner},
    skel::{Call, Target},
    types::{CniError, CniResult, Route, code},
};
use skiff_netns::NetNs;

use super::{config::Config, port::vlans_refused};
use crate::{
    ipam::{Ipam, gateway_of},
    runtime::{block_on, kernel},
    veth::{HostEnd, SpoofCheck},
};

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

/// One CHECK.
struct Check<'a> {
    call: &'a Call,
    target: &'a Target,
    config: &'a Config,
    previous: &'a CniResult,
    host: Netlink,
}

pub(super) fn check(call: &Call, target: &Target) -> Result<(), CniError> {
    let config = Config::new(call)?;
    Ipam::find(call, config.ipam.as_ref())?.check(call, target)?;
    let previous = call
        .conf
        .prev_result
        .as_ref()
        .ok_or_else(|| CniError::config("\"prevResult\" is missing"))?;
    let netns = NetNs::open(target.netns()?).map_err(|error| {
        CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error)
    })?;
    block_on(async {
        let check = Check {
            call,
            target,
            config: &config,
            previous,
            host: Netlink::open().map_err(kernel("cannot open netlink"))?,
        };
        let bridge = check.bridge().await?;
        let port = check.port(&bridge).await?;
        let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
        check.pod(&pod).await?;
        check.rules(&port)
    })
}

impl Check<'_> {
    async fn find(&self, name: &str) -> Result<Option<Link>, CniError> {
        self.host
            .find_link(name)
            .await
            .map_err(kernel("cannot look for links"))
    }

    async fn bridge(&self) -> Result<Link, CniError> {
        let name = self.config.bridge.as_str();
        let bridge = self
            .find(name)
            .await?
            .filter(Link::is_bridge)
            .ok_or_else(|| differs(format!("there is no bridge {name}")))?;
        if !bridge.up {
            return Err(differs(format!("{name} is down")));
        }
        if self.config.promiscuous && !bridge.promiscuous {
            return Err(differs(format!("{name} is not promiscuous")));
        }
        let is_listed = |name: &str| {
            let mut interfaces = self.previous.interfaces.iter();
            interfaces.any(|interface| interface.name == name && interface.sandbox.is_empty())
        };
        if !is_listed(name) {
            return Err(differs(format!("prevResult has no bridge {name}")));
        }
        if self.config.is_gateway {
            self.gateway(&bridge).await?;
        }
        Ok(bridge)
    }

    async fn gateway(&self, bridge: &Link) -> Result<(), CniError> {
        let vlan_link = match &self.config.vlan_gateway {
            Some(name) => {
                let found = self.find(name.as_str()).await?;
                Some(found.ok_or_else(|| differs(format!("there is no link {name}")))?)
            }
            None => None,
        };
        let link = vlan_link.as_ref().unwrap_or(bridge);
        if !link.up {
            return Err(differs(format!("{} is down", link.name)));
        }
        let listed = self.host.list_addresses(link.index).await;
        let addresses = listed.map_err(kernel("cannot list the gateway's addresses"))?;
        for gateway in self.previous.container_ips().filter_map(|ip| ip.gateway) {
            if !addresses.iter().any(|address| address.ip() == gateway) {
                return Err(differs(format!("{} has lost {gateway}", link.name)));
            }
        }
        Ok(())
    }

    async fn port(&self, bridge: &Link) -> Result<Link, CniError> {
        let end = HostEnd::new(self.call, self.target);
        let found = end.find(&self.host).await;
        let port = found
            .map_err(kernel("cannot look for links"))?
            .filter(|link| link.controller == Some(bridge.index))
            .ok_or_else(|| differs(format!("{} has no port for this container", bridge.name)))?;
        if !port.up {
            return Err(differs(format!("{} is down", port.name)));
        }
        let expected = PortFlags {
            hairpin: self.config.hairpin,
            isolated: self.config.isolated,
        };
        let flags = self.host.port_flags(port.index).await;
        if flags.map_err(kernel("cannot read the bridge port"))? != expected {
            return Err(differs(format!(
                "{} is set to hairpin or isolation otherwise",
                port.name
            )));
        }
        if self.config.vlans.are_set() {
            let listed = self.host.list_vlans(VlanOwner::Port(port.index)).await;
            let listed = listed.map_err(vlans_refused)?;
            let lost = self.config.vlans.plan_port().into_iter().find(|vlan| {
                // The kernel lists them one by one.
                !(vlan.first..=vlan.last).all(|id| {
                    listed.iter().any(|known| {
                        known.first == id
                            && (known.pvid, known.untagged) == (vlan.pvid, vlan.untagged)
                    })
                })
            });
            if let Some(vlan) = lost {
                return Err(differs(format!(
                    "{} has lost VLAN {}",
                    port.name, vlan.first
                )));
            }
        }
        Ok(port)
    }

    async fn pod(&self, pod: &Netlink) -> Result<(), CniError> {
        let ifname = self.target.ifname.as_str();
        let found = pod
            .find_link(ifname)
            .await
            .map_err(kernel("cannot look for links"))?;
        let link = found.ok_or_else(|| differs(format!("the container has no link {ifname}")))?;
        let mac = self
            .previous
            .interfaces
            .iter()
            .find(|interface| interface.name == ifname && !interface.sandbox.is_empty())
            .map(|interface| interface.mac.as_str());
        if mac.is_some_and(|mac| !mac.is_empty() && mac != link.mac_text()) {
            return Err(differs(format!("{ifname} has another hardware address")));
        }
        if self.config.is_disabled {
            return Ok(());
        }
        if !link.up {
            return Err(differs(format!("{ifname} is down")));
        }
        let addresses = pod
            .list_addresses(link.index)
            .await
            .map_err(kernel("cannot list addresses"))?;
        for ip in self.previous.container_ips() {
            if !addresses.contains(&ip.address) {
                return Err(differs(format!("{ifname} has lost {}", ip.address)));
            }
        }
        let routes = pod
            .list_routes_of_all_tables(link.index)
            .await
            .map_err(kernel("cannot list routes"))?;
        for route in &self.previous.routes {
            if !routes.iter().any(|known| self.is_route(route, known)) {
                return Err(differs(format!("the route to {} is gone", route.dst)));
            }
        }
        Ok(())
    }

    fn is_route(&self, route: &Route, known: &RouteSpec) -> bool {
        let fits = |wanted: Option<u32>, has: Option<u32>| wanted.is_none() || wanted == has;
        known.dst == route.dst
            && known.gateway == gateway_of(route, &self.previous.ips)
            && known.table == route.table.filter(|table| *table != MAIN_TABLE)
            && fits(
                route.priority.filter(|priority| *priority != 0),
                known.priority,
            )
            && fits(route.mtu, known.mtu)
            && fits(route.advmss, known.advmss)
    }

    fn rules(&self, port: &Link) -> Result<(), CniError> {
        let container = &self.target.container_id;
        let failed = |what: &'static str| {
            move |error: FirewallError| CniError::from_error(code::FIREWALL, what, &error)
        };
        if let Some(backend) = self.config.masquerade {
            let addresses: Vec<_> = self.previous.container_ips().map(|ip| ip.address).collect();
            let is_ensured = self
                .masquerade(backend)
                .is_ensured(&addresses, container)
                .map_err(failed("cannot check masquerading"))?;
            if !is_ensured {
                return Err(differs("the container's addresses are not masqueraded"));
            }
        }
        if self.config.checks_spoofing {
            let is_ensured = SpoofCheck::new(self.call.conf.name.clone())
                .is_ensured(&port.name, container, &self.target.ifname)
                .map_err(failed("cannot check macspoofchk"))?;
            if !is_ensured {
                return Err(differs("the container's hardware address is not checked"));
            }
        }
        Ok(())
    }

    fn masquerade(&self, backend: Backend) -> Masquerade {
        Masquerade::new(self.call.conf.name.clone(), backend)
    }
}

pub(super) fn status(call: &Call) -> Result<(), CniError> {
    let config = Config::new(call).map_err(|error| CniError {
        code: match error.code {
            code::FIREWALL => code::UNAVAILABLE,
            other => other,
        },
        ..error
    })?;
    Ipam::find(call, config.ipam.as_ref())?.status(call)?;
    block_on(async {
        let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
        let name = config.bridge.as_str();
        match host
            .find_link(name)
            .await
            .map_err(kernel("cannot look for links"))?
        {
            Some(link) if !link.is_bridge() => Err(CniError::new(
                code::UNAVAILABLE,
                format!("{name} is a link, but not a bridge"),
            )),
            _ => Ok(()),
        }
    })
}
