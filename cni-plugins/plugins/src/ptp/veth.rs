//! The veth pair of an attachment: made, found again, deleted.

use std::os::fd::AsFd as _;

use skiff_cni::{
    AliasSweep, host_veth_mac, host_veth_name, link_alias,
    netlink::{Link, Netlink, VethSpec},
    skel::{Call, Target},
    types::{CniError, code},
};
use skiff_netns::NetNs;

use crate::runtime::kernel;

/// So many other names are tried if a stranger's link has the host end's.
const NAME_ATTEMPTS: u8 = 4;
/// What the names of host ends begin with.
const PREFIX: &str = "veth";

/// How to make a pair.
#[derive(Debug)]
pub(super) struct NewPair<'a> {
    pub(super) netns: &'a NetNs,
    pub(super) mac: [u8; 6],
    pub(super) mtu: Option<u32>,
}

/// Makes the pair, with the host's end up and the container's born in its namespace. Returns the host's end. A failure
/// leaves nothing behind.
pub(super) async fn create(
    host: &Netlink,
    call: &Call,
    target: &Target,
    pair: &NewPair<'_>,
) -> Result<Link, CniError> {
    let host_mac = host_veth_mac(&target.container_id, &target.ifname);
    for salt in 0..NAME_ATTEMPTS {
        let name = host_veth_name(&target.container_id, &target.ifname, salt);
        let spec = VethSpec {
            name: &name,
            mac: host_mac,
            controller: None,
            peer_name: target.ifname.as_str(),
            peer_mac: pair.mac,
            peer_netns: pair.netns.as_fd(),
            mtu: pair.mtu,
        };
        match host.create_veth(&spec).await {
            Ok(_) => {
                let named = name_owner(host, call, target, &name).await;
                if named.is_err() {
                    // The first error is the one to report.
                    host.delete_link(&name).await.ok();
                }
                return named;
            }
            Err(error) if error.is_existing() => {
                let found = host.find_link(&name).await;
                let link = found.map_err(kernel("cannot look for links"))?;
                if link.is_some_and(|link| is_ours(&link, call, target)) {
                    let msg = format!("{name} exists already for this container: DEL comes first");
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

async fn name_owner(
    host: &Netlink,
    call: &Call,
    target: &Target,
    name: &str,
) -> Result<Link, CniError> {
    let found = host.find_link(name).await;
    let link = found
        .map_err(kernel("cannot find the host's end"))?
        .ok_or_else(|| CniError::new(code::KERNEL, "the host's end is gone"))?;
    let alias = link_alias(&call.conf.name, &target.container_id, &target.ifname);
    let named = host.set_alias(link.index, &alias).await;
    named.map_err(kernel("cannot name the veth pair's owner"))?;
    Ok(link)
}

/// Whether a link with the host end's name is this attachment's: by its alias, or, if its ADD was killed before it could
/// write one, by its hardware address.
fn is_ours(link: &Link, call: &Call, target: &Target) -> bool {
    if link.alias.is_empty() {
        link.mac == host_veth_mac(&target.container_id, &target.ifname)
    } else {
        link.alias == link_alias(&call.conf.name, &target.container_id, &target.ifname)
    }
}

/// The host's end, if it is there.
pub(super) async fn find(
    host: &Netlink,
    call: &Call,
    target: &Target,
) -> Result<Option<Link>, CniError> {
    for salt in 0..NAME_ATTEMPTS {
        let name = host_veth_name(&target.container_id, &target.ifname, salt);
        let found = host.find_link(&name).await;
        let Some(link) = found.map_err(kernel("cannot look for links"))? else {
            break;
        };
        if is_ours(&link, call, target) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Deletes the pair, whatever of it is still there.
pub(super) async fn delete(call: &Call, target: &Target) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    match find(&host, call, target).await? {
        Some(link) => {
            let deleted = host.delete_links_grouped(&[link.index]).await;
            deleted.map_err(kernel("cannot delete the veth pair"))
        }
        None => delete_inside(target).await,
    }
}

/// A pair that another plugin made (before a switch to this one) is known by its end in the container only.
async fn delete_inside(target: &Target) -> Result<(), CniError> {
    // Without the namespace all of its links are gone.
    let Some(netns) = target
        .netns
        .as_ref()
        .and_then(|path| NetNs::open(path).ok())
    else {
        return Ok(());
    };
    let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
    let ifname = target.ifname.as_str();
    let found = pod.find_link(ifname).await;
    match found.map_err(kernel("cannot look for links"))? {
        Some(link) if link.kind == "veth" => pod
            .delete_link(ifname)
            .await
            .map_err(kernel("cannot delete the container's link")),
        _ => Ok(()),
    }
}

/// Deletes this network's pairs that no valid attachment owns, all at once.
pub(super) async fn delete_stale(call: &Call) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let listed = host.list_links(PREFIX).await;
    let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
    let sweep = AliasSweep::new(&call.conf.name, valid);
    let stale: Vec<u32> = listed
        .map_err(kernel("cannot list links"))?
        .iter()
        .filter(|link| sweep.is_stale(&link.alias))
        .map(|link| link.index)
        .collect();
    let deleted = host.delete_links_grouped(&stale).await;
    deleted.map_err(kernel("cannot delete veth pairs"))
}
