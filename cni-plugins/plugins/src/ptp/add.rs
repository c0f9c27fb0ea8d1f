//! ADD.

use std::{io::ErrorKind, net::IpAddr};

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::Masquerade,
    netlink::{Link, Netlink, RouteSpec},
    skel::{Call, Target},
    types::{CniError, CniResult, Dns, Interface, IpConfig, code},
};
use skiff_netns::NetNs;

use super::config::Config;
use crate::{
    host_end::{HostEnd, Pair},
    ipam::{self, Ipam, gateway_of},
    runtime::{block_on, kernel},
};

/// `RT_SCOPE_HOST`: what the reference plugin gives to a container's route on its host.
const SCOPE_HOST: u8 = 254;

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
    pair: Option<String>,
    masquerade: bool,
}

pub(super) fn add(call: &Call, target: &Target) -> Result<CniResult, CniError> {
    let config = Config::new(call)?;
    let ipam = Ipam::find(call, Some(&config.ipam))?;
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
        let ifname = self.target.ifname.as_str();
        if self.pod.link_index(ifname).is_some() {
            let msg = format!("the container has a link {ifname} already");
            return Err(CniError::new(code::EXISTS, msg));
        }
        // A delegated IPAM plugin may fail half-way: it is told to release in any case. Ours takes nothing then, and a
        // refused second ADD must not release what the first one has.
        undo.ipam = matches!(ipam, Ipam::Exec(_));
        let mut result = ipam.add(self.call, self.target)?;
        undo.ipam = true;
        let gateways = gateways(&result)?;
        for v4 in [true, false] {
            if result.ips.iter().any(|ip| ip.address.is_ipv4() == v4) {
                enable_forwarding(v4)?;
            }
        }
        let host_end = self.create_pair(mac_of(&result), undo).await?;
        // The container must not make itself the node's router.
        set_ipv6(&host_end.name, "accept_ra", "0")?;
        let pod_end = self.configure_container(&result, &gateways).await?;
        self.configure_host(&host_end, &result, &gateways).await?;
        self.masquerade(&result, undo)?;
        let sandbox = self.target.netns()?.to_string_lossy().into_owned();
        result.interfaces = vec![
            interface(&host_end, String::new()),
            interface(&pod_end, sandbox),
        ];
        for ip in &mut result.ips {
            ip.interface = Some(1);
        }
        if self.config.dns != Dns::default() {
            result.dns = self.config.dns.clone();
        }
        Ok(result)
    }

    /// Makes the pair, with the container's end born in its namespace; returns the host's end.
    async fn create_pair(&self, mac: [u8; 6], undo: &mut Undo) -> Result<Link, CniError> {
        let pair = Pair {
            controller: None,
            ifname: &self.target.ifname,
            netns: self.netns,
            mac,
            mtu: self.config.mtu,
        };
        let end = HostEnd::new(self.call, self.target);
        let made = |name: &str| undo.pair = Some(name.to_owned());
        let name = end.create(&self.host, &pair, made).await?;
        let found = self.host.find_link(&name).await;
        let link = found
            .map_err(kernel("cannot find the host's end"))?
            .ok_or_else(|| CniError::new(code::KERNEL, "the host's end is gone"))?;
        let named = self.host.set_alias(link.index, &end.alias).await;
        named.map_err(kernel("cannot name the veth pair's owner"))?;
        Ok(link)
    }

    async fn configure_container(
        &self,
        result: &CniResult,
        gateways: &[IpAddr],
    ) -> Result<Link, CniError> {
        let ifname = self.target.ifname.as_str();
        let found = self.pod.find_link(ifname).await;
        let link = found
            .map_err(kernel("cannot find the container's link"))?
            .ok_or_else(|| CniError::new(code::KERNEL, "the container's link is gone"))?;
        let up = self.pod.set_up(link.index).await;
        up.map_err(kernel("cannot set the container's link up"))?;
        if result.ips.iter().any(|ip| ip.address.is_ipv6()) {
            let kept = self
                .netns
                .run(|| set_ipv6(ifname, "keep_addr_on_down", "1"));
            kept.map_err(|error| {
                CniError::from_error(code::KERNEL, "cannot enter CNI_NETNS", &error)
            })??;
        }
        for (ip, gateway) in result.ips.iter().zip(gateways) {
            let added = self
                .pod
                .add_address_without_route(link.index, ip.address)
                .await;
            added.map_err(kernel(format!("cannot give the container {}", ip.address)))?;
            for route in subnet_routes(ip, *gateway, link.index) {
                self.add_route(&self.pod, &route).await?;
            }
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
            self.add_route(&self.pod, &spec).await?;
        }
        Ok(link)
    }

    async fn configure_host(
        &self,
        link: &Link,
        result: &CniResult,
        gateways: &[IpAddr],
    ) -> Result<(), CniError> {
        for (ip, gateway) in result.ips.iter().zip(gateways) {
            let gateway = IpNetwork::from(*gateway);
            match self.host.add_address(link.index, gateway).await {
                // Two addresses of one subnet have one gateway.
                Err(error) if !error.is_existing() => {
                    return Err(kernel(format!("cannot give the host {gateway}"))(error));
                }
                _ => {}
            }
            let route = RouteSpec {
                scope: ip.address.is_ipv4().then_some(SCOPE_HOST),
                ..RouteSpec::new(ip.address.ip().into(), None, link.index)
            };
            self.add_route(&self.host, &route).await?;
        }
        Ok(())
    }

    async fn add_route(&self, netlink: &Netlink, route: &RouteSpec) -> Result<(), CniError> {
        let added = netlink.add_route(route).await;
        added.map_err(kernel(format!("cannot add the route to {}", route.dst)))
    }

    fn masquerade(&self, result: &CniResult, undo: &mut Undo) -> Result<(), CniError> {
        let Some(backend) = self.config.masquerade else {
            return Ok(());
        };
        undo.masquerade = true;
        let addresses: Vec<IpNetwork> = result.ips.iter().map(|ip| ip.address).collect();
        Masquerade::new(self.call.conf.name.clone(), backend)
            .ensure(&addresses, &self.target.container_id)
            .map_err(|error| CniError::from_error(code::FIREWALL, "cannot masquerade", &error))
    }

    /// In reverse order. What cannot be undone is left to DEL, which the runtime calls after a failed ADD: the error
    /// that it must see is the first one.
    async fn undo(&self, ipam: &Ipam, undo: Undo) {
        if let Some(backend) = self.config.masquerade.filter(|_| undo.masquerade) {
            Masquerade::new(self.call.conf.name.clone(), backend)
                .delete(&[], &self.target.container_id)
                .ok();
        }
        if let Some(name) = undo.pair {
            self.host.delete_link(&name).await.ok();
        }
        if undo.ipam {
            ipam.del(&ipam::as_del(self.call), self.target).ok();
        }
    }
}

/// The gateway of each address: everything goes through it, so that there must be one.
fn gateways(result: &CniResult) -> Result<Vec<IpAddr>, CniError> {
    if result.ips.is_empty() {
        return Err(CniError::new(code::DELEGATE, "IPAM gave no address"));
    }
    let gateway = |ip: &IpConfig| {
        ip.gateway
            .filter(|gateway| gateway.is_ipv4() == ip.address.is_ipv4())
            .ok_or_else(|| {
                let msg = format!("IPAM gave no gateway for {}", ip.address);
                CniError::new(code::DELEGATE, msg)
            })
    };
    result.ips.iter().map(gateway).collect()
}

/// The way to the gateway, and through it to the rest of the subnet. A subnet of one address has no rest.
fn subnet_routes(ip: &IpConfig, gateway: IpAddr, link: u32) -> Vec<RouteSpec> {
    let source = Some(ip.address.ip());
    let to_gateway = RouteSpec {
        source,
        ..RouteSpec::new(gateway.into(), None, link)
    };
    let rest = IpNetwork::new(ip.address.network(), ip.address.prefix()).unwrap_or(ip.address);
    let to_rest = RouteSpec {
        source,
        ..RouteSpec::new(rest, Some(gateway), link)
    };
    let whole = if ip.address.is_ipv4() { 32 } else { 128 };
    if ip.address.prefix() == whole {
        vec![to_gateway]
    } else {
        vec![to_gateway, to_rest]
    }
}

/// A hardware address that follows from the first IP address: whoever gets that again has the same, and no neighbour's
/// table goes stale. The prefix is that of Kubernetes' own network plugins.
fn mac_of(result: &CniResult) -> [u8; 6] {
    let octets = match result.ips.first().map(|ip| ip.address.ip()) {
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(v6)) => v6.octets(),
        None => [0; 16],
    };
    let [.., a, b, c, d] = octets;
    [0x0a, 0x58, a, b, c, d]
}

/// Packets are routed between the container and the world.
fn enable_forwarding(v4: bool) -> Result<(), CniError> {
    let path = if v4 {
        "/proc/sys/net/ipv4/ip_forward"
    } else {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    };
    if std::fs::read(path).is_ok_and(|value| value.first() == Some(&b'1')) {
        return Ok(());
    }
    std::fs::write(path, "1")
        .map_err(|error| CniError::from_error(code::KERNEL, format!("cannot write {path}"), &error))
}

/// Kernels without IPv6 have no such settings.
fn set_ipv6(link: &str, setting: &str, value: &str) -> Result<(), CniError> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/{setting}");
    match std::fs::write(&path, value) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(CniError::from_error(
            code::KERNEL,
            format!("cannot write {path}"),
            &error,
        )),
        _ => Ok(()),
    }
}

fn interface(link: &Link, sandbox: String) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac_text(),
        sandbox,
        ..Interface::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
        IpConfig {
            interface: None,
            address: address.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        }
    }

    #[test]
    fn all_of_a_subnet_is_reached_through_the_gateway() {
        let address = ip("10.5.0.2/24", Some("10.5.0.1"));
        let routes = subnet_routes(&address, address.gateway.unwrap(), 7);
        let text = |route: &RouteSpec| (route.dst.to_string(), route.gateway);
        assert_eq!(text(&routes[0]), ("10.5.0.1/32".to_owned(), None));
        assert_eq!(
            text(&routes[1]),
            ("10.5.0.0/24".to_owned(), address.gateway)
        );
        let alone = ip("fd05::2/128", Some("fd05::1"));
        assert_eq!(subnet_routes(&alone, alone.gateway.unwrap(), 7).len(), 1);
    }

    #[test]
    fn an_address_without_a_gateway_is_refused() {
        let of = |ips: Vec<IpConfig>| {
            gateways(&CniResult {
                ips,
                ..CniResult::default()
            })
            .map_err(|error| error.code)
        };
        assert_eq!(of(vec![]), Err(code::DELEGATE));
        assert_eq!(of(vec![ip("10.5.0.2/24", None)]), Err(code::DELEGATE));
        let mixed = vec![ip("10.5.0.2/24", Some("fd05::1"))];
        assert_eq!(of(mixed), Err(code::DELEGATE));
    }
}
