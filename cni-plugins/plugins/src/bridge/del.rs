//! DEL and GC.

use std::collections::HashSet;

use skiff_cni::{
    firewall::Masquerade,
    host_veth_mac, host_veth_name, link_alias,
    netlink::Netlink,
    parse_link_alias,
    skel::{Call, Target},
    types::{AttachmentKey, CniError, code},
};
use skiff_netns::NetNs;

use super::{
    add::{NAME_ATTEMPTS, is_ours},
    config::Config,
};
use crate::{
    ipam::Ipam,
    runtime::{block_on, kernel},
};

pub(super) fn del(call: &Call, target: &Target) -> Result<(), CniError> {
    let (ip_masq, ipam_type) = Config::for_removal(call)?;
    let ipam = Ipam::find(call, ipam_type.as_ref());
    // The kernel takes 20 ms and more to delete a link, most of it asleep: time enough for the firewall.
    let (links, rules) = std::thread::scope(|scope| {
        let rules = scope.spawn(|| {
            if ip_masq {
                delete_rules(call, target)
            } else {
                Ok(())
            }
        });
        let links = block_on(delete_links(call, target));
        (
            links,
            rules
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    // Addresses come last: nobody else may have them while a link still does.
    let addresses = match (&links, ipam) {
        (Err(_), _) => Ok(()),
        (Ok(()), Ok(ipam)) => ipam.del(call, target),
        (Ok(()), Err(error)) => Err(error),
    };
    CniError::join(
        [links, rules, addresses]
            .into_iter()
            .filter_map(Result::err)
            .collect(),
    )
}

fn delete_rules(call: &Call, target: &Target) -> Result<(), CniError> {
    let masquerade = Masquerade::new(call.conf.name.clone());
    let known: Vec<_> = call
        .conf
        .prev_result
        .iter()
        .flat_map(|result| result.container_ips().map(|ip| ip.address))
        .collect();
    let deleted = if known.is_empty() {
        masquerade.delete(&target.container_id)
    } else {
        masquerade.delete_from(&known, &target.container_id)
    };
    deleted
        .map_err(|error| CniError::from_error(code::FIREWALL, "cannot remove masquerading", &error))
}

async fn delete_links(call: &Call, target: &Target) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let alias = link_alias(&call.conf.name, &target.container_id, &target.ifname);
    let mac = host_veth_mac(&target.container_id, &target.ifname);
    for salt in 0..NAME_ATTEMPTS {
        let name = host_veth_name(&target.container_id, &target.ifname, salt);
        let found = host
            .find_link(&name)
            .await
            .map_err(kernel("cannot look for links"))?;
        let Some(link) = found else { break };
        if is_ours(&link, alias.as_deref(), mac) {
            return host
                .delete_link(&name)
                .await
                .map_err(kernel("cannot delete the veth pair"));
        }
    }
    delete_in_netns(target).await
}

/// A pair that another plugin made (before a switch to this one) is known by its end in the container only.
async fn delete_in_netns(target: &Target) -> Result<(), CniError> {
    let Some(path) = &target.netns else {
        return Ok(());
    };
    // Gone already, with all of its links.
    let Ok(netns) = NetNs::open(path) else {
        return Ok(());
    };
    let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
    let ifname = target.ifname.as_str();
    let found = pod
        .find_link(ifname)
        .await
        .map_err(kernel("cannot look for links"))?;
    match found {
        Some(link) if link.kind == "veth" => pod
            .delete_link(ifname)
            .await
            .map_err(kernel("cannot delete the container's link")),
        _ => Ok(()),
    }
}

pub(super) fn gc(call: &Call) -> Result<(), CniError> {
    let (ip_masq, ipam_type) = Config::for_removal(call)?;
    let valid: HashSet<&AttachmentKey> = call.conf.valid_attachments.iter().flatten().collect();
    let links = block_on(delete_stale_links(call, &valid));
    let rules = if ip_masq {
        let containers = valid.iter().map(|key| key.container_id.clone()).collect();
        Masquerade::new(call.conf.name.clone())
            .sweep(&containers)
            .map_err(|error| {
                CniError::from_error(code::FIREWALL, "cannot sweep masquerading", &error)
            })
    } else {
        Ok(())
    };
    let addresses = match &links {
        Ok(()) => Ipam::find(call, ipam_type.as_ref()).and_then(|ipam| ipam.gc(call)),
        Err(_) => Ok(()),
    };
    CniError::join(
        [links, rules, addresses]
            .into_iter()
            .filter_map(Result::err)
            .collect(),
    )
}

async fn delete_stale_links(call: &Call, valid: &HashSet<&AttachmentKey>) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let links = host
        .list_links("veth")
        .await
        .map_err(kernel("cannot list links"))?;
    let mut errors = Vec::new();
    for link in links {
        let Some((network, container_id, ifname)) = parse_link_alias(&link.alias) else {
            continue;
        };
        if network == call.conf.name
            && !valid.contains(&AttachmentKey {
                container_id,
                ifname,
            })
        {
            let deleted = host.delete_link(&link.name).await;
            errors.extend(
                deleted
                    .map_err(kernel(format!("cannot delete {}", link.name)))
                    .err(),
            );
        }
    }
    CniError::join(errors)
}
