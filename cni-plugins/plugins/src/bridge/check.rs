//! CHECK and STATUS.

use skiff_cni::{
    firewall::Masquerade,
    host_veth_name,
    netlink::{Link, Netlink},
    skel::{Call, Target},
    types::{CniError, CniResult, code},
};
use skiff_netns::NetNs;

use super::{
    add::{NAME_ATTEMPTS, gateway_of},
    config::Config,
};
use crate::{
    ipam::Ipam,
    runtime::{block_on, kernel},
};

fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
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
        let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
        let bridge = check_bridge(&host, &config, previous).await?;
        check_port(&host, target, &bridge).await?;
        let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
        check_pod(&pod, target, previous).await
    })?;
    if config.ip_masq {
        let masquerade = Masquerade::new(call.conf.name.clone());
        for ip in previous.container_ips() {
            let there = masquerade
                .is_ensured(ip.address, &target.container_id)
                .map_err(|error| {
                    CniError::from_error(code::FIREWALL, "cannot check masquerading", &error)
                })?;
            if !there {
                return Err(differs(format!("{} is not masqueraded", ip.address)));
            }
        }
    }
    Ok(())
}

async fn check_bridge(
    host: &Netlink,
    config: &Config,
    previous: &CniResult,
) -> Result<Link, CniError> {
    let name = config.bridge.as_str();
    let found = host
        .find_link(name)
        .await
        .map_err(kernel("cannot look for links"))?;
    let bridge = found
        .filter(|link| link.kind == "bridge")
        .ok_or_else(|| differs(format!("there is no bridge {name}")))?;
    if !bridge.up {
        return Err(differs(format!("{name} is down")));
    }
    if !previous
        .interfaces
        .iter()
        .any(|interface| interface.name == name)
    {
        return Err(differs(format!("prevResult has no bridge {name}")));
    }
    if config.is_gateway {
        let listed = host.list_addresses(bridge.index).await;
        let addresses = listed.map_err(kernel("cannot list the bridge's addresses"))?;
        let gateways = previous.container_ips().filter_map(|ip| ip.gateway);
        for gateway in gateways {
            if !addresses.iter().any(|address| address.ip() == gateway) {
                return Err(differs(format!("{name} has lost {gateway}")));
            }
        }
    }
    Ok(bridge)
}

async fn check_port(host: &Netlink, target: &Target, bridge: &Link) -> Result<(), CniError> {
    for salt in 0..NAME_ATTEMPTS {
        let name = host_veth_name(&target.container_id, &target.ifname, salt);
        let found = host
            .find_link(&name)
            .await
            .map_err(kernel("cannot look for links"))?;
        if let Some(link) = found
            && link.controller == Some(bridge.index)
        {
            return if link.up {
                Ok(())
            } else {
                Err(differs(format!("{name} is down")))
            };
        }
    }
    Err(differs(format!(
        "{} has no port for this container",
        bridge.name
    )))
}

async fn check_pod(pod: &Netlink, target: &Target, previous: &CniResult) -> Result<(), CniError> {
    let ifname = target.ifname.as_str();
    let found = pod
        .find_link(ifname)
        .await
        .map_err(kernel("cannot look for links"))?;
    let link = found.ok_or_else(|| differs(format!("the container has no link {ifname}")))?;
    if !link.up {
        return Err(differs(format!("{ifname} is down")));
    }
    let addresses = pod
        .list_addresses(link.index)
        .await
        .map_err(kernel("cannot list addresses"))?;
    for ip in previous.container_ips() {
        if !addresses.contains(&ip.address) {
            return Err(differs(format!("{ifname} has lost {}", ip.address)));
        }
    }
    let mac = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == ifname && !interface.sandbox.is_empty())
        .map(|interface| interface.mac.as_str());
    if mac.is_some_and(|mac| !mac.is_empty() && mac != link.mac_text()) {
        return Err(differs(format!("{ifname} has another hardware address")));
    }
    let routes = pod
        .list_routes(link.index)
        .await
        .map_err(kernel("cannot list routes"))?;
    for route in &previous.routes {
        if route.table.is_some() {
            // Only the main table is listed.
            continue;
        }
        let gateway = gateway_of(route, &previous.ips);
        if !routes
            .iter()
            .any(|known| known.dst == route.dst && known.gateway == gateway)
        {
            return Err(differs(format!("the route to {} is gone", route.dst)));
        }
    }
    Ok(())
}

pub(super) fn status(call: &Call) -> Result<(), CniError> {
    let config = Config::new(call)?;
    Ipam::find(call, config.ipam.as_ref())?.status(call)?;
    block_on(async {
        let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
        let name = config.bridge.as_str();
        match host
            .find_link(name)
            .await
            .map_err(kernel("cannot look for links"))?
        {
            Some(link) if link.kind != "bridge" => Err(CniError::new(
                code::UNAVAILABLE,
                format!("{name} is a link, but not a bridge"),
            )),
            _ => Ok(()),
        }
    })
}
