//! CHECK and STATUS.

use skiff_cni::{
    firewall::Masquerade,
    netlink::{Link, Netlink},
    skel::{Call, Target},
    types::{CniError, CniResult, code},
};
use skiff_netns::NetNs;

use super::config::Config;
use crate::{
    ipam::{Ipam, gateway_of},
    runtime::{block_on, kernel},
};

fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

pub(super) fn check(call: &Call, target: &Target) -> Result<(), CniError> {
    let config = Config::new(call)?;
    Ipam::find(call, Some(&config.ipam))?.check(call, target)?;
    let previous = call
        .conf
        .prev_result
        .as_ref()
        .ok_or_else(|| CniError::config("\"prevResult\" is missing"))?;
    let netns = NetNs::open(target.netns()?).map_err(|error| {
        CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error)
    })?;
    block_on(async {
        let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
        let inside = check_container(&pod, target, previous).await?;
        let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
        check_host(&host, &inside, previous).await
    })?;
    let Some(backend) = config.masquerade else {
        return Ok(());
    };
    let addresses: Vec<_> = previous.container_ips().map(|ip| ip.address).collect();
    let there = Masquerade::new(call.conf.name.clone(), backend)
        .is_ensured(&addresses, &target.container_id)
        .map_err(|error| {
            CniError::from_error(code::FIREWALL, "cannot check masquerading", &error)
        })?;
    if there {
        Ok(())
    } else {
        Err(differs("the container is not masqueraded"))
    }
}

async fn check_container(
    pod: &Netlink,
    target: &Target,
    previous: &CniResult,
) -> Result<Link, CniError> {
    let ifname = target.ifname.as_str();
    let sandbox = target.netns()?.to_string_lossy();
    let told = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == ifname && interface.sandbox == sandbox)
        .ok_or_else(|| differs(format!("\"prevResult\" has no {ifname} in {sandbox}")))?;
    let found = pod.find_link(ifname).await;
    let link = found
        .map_err(kernel("cannot look for links"))?
        .ok_or_else(|| differs(format!("the container has no link {ifname}")))?;
    if link.kind != "veth" || !link.up {
        return Err(differs(format!("{ifname} is down, or no veth")));
    }
    if !told.mac.is_empty() && told.mac != link.mac_text() {
        return Err(differs(format!("{ifname} has another hardware address")));
    }
    let listed = pod.list_addresses(link.index).await;
    let addresses = listed.map_err(kernel("cannot list addresses"))?;
    for ip in previous.container_ips() {
        if !addresses.contains(&ip.address) {
            return Err(differs(format!("{ifname} has lost {}", ip.address)));
        }
    }
    let listed = pod.list_routes(link.index).await;
    let routes = listed.map_err(kernel("cannot list routes"))?;
    for route in previous.routes.iter().filter(|route| route.table.is_none()) {
        let gateway = gateway_of(route, &previous.ips);
        let there = |known: &&skiff_cni::netlink::RouteSpec| {
            known.dst == route.dst && known.gateway == gateway
        };
        if !routes.iter().any(|known| there(&known)) {
            return Err(differs(format!("the route to {} is gone", route.dst)));
        }
    }
    Ok(link)
}

/// The host's end is the one that the container's is joined to: the reference plugin gives it another name.
async fn check_host(host: &Netlink, inside: &Link, previous: &CniResult) -> Result<(), CniError> {
    let gone = || differs("the host's end of the veth pair is gone");
    let peer = inside.peer.ok_or_else(gone)?;
    let found = host.find_link_by_index(peer).await;
    let link = found
        .map_err(kernel("cannot look for links"))?
        .filter(|link| link.peer == Some(inside.index))
        .ok_or_else(gone)?;
    if !link.up {
        return Err(differs(format!("{} is down", link.name)));
    }
    let listed = host.list_addresses(link.index).await;
    let addresses = listed.map_err(kernel("cannot list the host's addresses"))?;
    let listed = host.list_routes(link.index).await;
    let routes = listed.map_err(kernel("cannot list the host's routes"))?;
    for ip in previous.container_ips() {
        let reached = |gateway| addresses.iter().any(|address| address.ip() == gateway);
        if ip.gateway.is_some_and(|gateway| !reached(gateway)) {
            return Err(differs(format!("{} has lost its gateway", link.name)));
        }
        if !routes
            .iter()
            .any(|route| route.dst == ip.address.ip().into())
        {
            return Err(differs(format!("the route to {} is gone", ip.address.ip())));
        }
    }
    Ok(())
}

pub(super) fn status(call: &Call) -> Result<(), CniError> {
    let config = Config::new(call)?;
    Ipam::find(call, Some(&config.ipam))?.status(call)
}
