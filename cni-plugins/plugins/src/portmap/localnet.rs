//! `route_localnet`: lets packets from 127.0.0.0/8 leave the host's loopback, towards a container.

use std::{fs, net::IpAddr};

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::Family,
    netlink::Netlink,
    types::{CniError, code},
};

use crate::runtime::{block_on, kernel};

/// Sets it on the links that lead to the container's IPv4 addresses; IPv6 has nothing like it.
pub(super) fn enable(addresses: &[(Family, IpNetwork)]) -> Result<(), CniError> {
    for (family, address) in addresses {
        if *family == Family::V4
            && let Some(link) = link_towards(address.ip())?
        {
            let path = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
            if fs::read(&path).is_ok_and(|value| value.first() == Some(&b'1')) {
                continue;
            }
            fs::write(&path, "1").map_err(|error| {
                CniError::from_error(code::KERNEL, format!("cannot write {path}"), &error)
            })?;
        }
    }
    Ok(())
}

fn link_towards(ip: IpAddr) -> Result<Option<String>, CniError> {
    block_on(async {
        let netlink = Netlink::open().map_err(kernel("cannot open netlink"))?;
        let failed = || kernel(format!("cannot look up the way to {ip}"));
        let Some(route) = netlink.find_route(ip).await.map_err(failed())? else {
            return Ok(None);
        };
        let link = netlink
            .find_link_by_index(route.link)
            .await
            .map_err(failed())?;
        Ok(link.map(|link| link.name))
    })
}
