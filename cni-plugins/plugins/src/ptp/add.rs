//! ADD.

use std::{io::ErrorKind, net::IpAddr};

use ipnetwork::IpNetwork;
use skiff_cni::{
    netlink::{Link, Netlink, RouteSpec},
    skel::{Call, Target},
    types::{CniError, CniResult, Dns, Interface, IpConfig, code},
};

use super::config::Config;
use crate::{
    ipam::gateway_of,
    runtime::kernel,
    veth::{Adding, PairSpec, mac_of, on_node},
};

/// `RT_SCOPE_HOST`: what the reference plugin gives to a container's route on its host.
const SCOPE_HOST: u8 = 254;

/// One ADD on its way.
struct Add<'a, 'b> {
    config: &'a Config,
    adding: &'a mut Adding<'b>,
}

pub(super) fn add(call: &Call, target: &Target) -> Result<CniResult, CniError> {
    let config = Config::new(call)?;
    Adding::run(call, target, Some(&config.ipam), async |adding| {
        let config = &config;
        Add { config, adding }.steps().await
    })
}

impl Add<'_, '_> {
    async fn steps(&mut self) -> Result<CniResult, CniError> {
        self.adding.check_link_is_new()?;
        let mut result = self.adding.take_addresses()?;
        let gateways = gateways(&result)?;
        for v4 in [true, false] {
            if result.ips.iter().any(|ip| ip.address.is_ipv4() == v4) {
                enable_forwarding(v4)?;
            }
        }
        if let Some(backend) = self.config.masquerade {
            self.adding.masquerade(backend, &result);
        }
        let host_end = self.create_pair(&result).await?;
        // The container must not make itself the node's router.
        set_ipv6(&host_end.name, "accept_ra", "0")?;
        let pod_end = self.configure_container(&result, &gateways).await?;
        self.configure_host(&host_end, &result, &gateways).await?;
        self.adding.rules.finish()?;
        result.interfaces = vec![
            without_mtu(on_node(&host_end)),
            without_mtu(self.adding.in_container(&pod_end)?),
        ];
        for ip in &mut result.ips {
            ip.interface = Some(1);
        }
        if self.config.dns != Dns::default() {
            result.dns = self.config.dns.clone();
        }
        Ok(result)
    }

    /// Makes the pair; returns the host's end.
    async fn create_pair(&mut self, result: &CniResult) -> Result<Link, CniError> {
        let first = result.ips.first().map(|ip| ip.address.ip());
        let pair = PairSpec {
            mac: first.map(mac_of).unwrap_or_default(),
            mtu: self.config.mtu,
            ..PairSpec::default()
        };
        let name = self.adding.create_pair(&pair).await?;
        let found = self.adding.host.find_link(&name).await;
        found
            .map_err(kernel("cannot find the host's end"))?
            .ok_or_else(|| CniError::new(code::KERNEL, "the host's end is gone"))
    }

    async fn configure_container(
        &self,
        result: &CniResult,
        gateways: &[IpAddr],
    ) -> Result<Link, CniError> {
        let Adding {
            target, netns, pod, ..
        } = &*self.adding;
        let ifname = target.ifname.as_str();
        let found = pod.find_link(ifname).await;
        let link = found
            .map_err(kernel("cannot find the container's link"))?
            .ok_or_else(|| CniError::new(code::KERNEL, "the container's link is gone"))?;
        let up = pod.set_up(link.index).await;
        up.map_err(kernel("cannot set the container's link up"))?;
        if result.ips.iter().any(|ip| ip.address.is_ipv6()) {
            let kept = netns.run(|| set_ipv6(ifname, "keep_addr_on_down", "1"));
            kept.map_err(|error| {
                CniError::from_error(code::KERNEL, "cannot enter CNI_NETNS", &error)
            })??;
        }
        for (ip, gateway) in result.ips.iter().zip(gateways) {
            let added = pod.add_address_without_route(link.index, ip.address).await;
            added.map_err(kernel(format!("cannot give the container {}", ip.address)))?;
            for route in subnet_routes(ip, *gateway, link.index) {
                add_route(pod, &route).await?;
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
            add_route(pod, &spec).await?;
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
            match self.adding.host.add_address(link.index, gateway).await {
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
            add_route(&self.adding.host, &route).await?;
        }
        Ok(())
    }
}

async fn add_route(netlink: &Netlink, route: &RouteSpec) -> Result<(), CniError> {
    let added = netlink.add_route(route).await;
    added.map_err(kernel(format!("cannot add the route to {}", route.dst)))
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

/// The reference plugin does not tell it.
fn without_mtu(interface: Interface) -> Interface {
    Interface {
        mtu: None,
        ..interface
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
