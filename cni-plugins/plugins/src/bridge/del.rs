//! DEL and GC.

use std::thread;

use skiff_cni::{
    AliasSweep,
    netlink::Netlink,
    skel::{Call, Target},
    types::CniError,
};
use skiff_netns::NetNs;

use super::{config::Removal, rules, veth::HostEnd};
use crate::{
    ipam::Ipam,
    runtime::{block_on, kernel},
};

pub(super) fn del(call: &Call, target: &Target) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let ipam = Ipam::find(call, removal.ipam.as_ref());
    let (links, rules) = beside(
        removal.has_rules(),
        || rules::delete(&removal, call, target),
        || block_on(delete_links(call, target)),
    );
    // Addresses come last: nobody else may have them while a link still does.
    let addresses = match (&links, ipam) {
        (Err(_), _) => Ok(()),
        (Ok(()), Ok(ipam)) => ipam.del(call, target),
        (Ok(()), Err(error)) => Err(error),
    };
    joined([links, rules, addresses])
}

pub(super) fn gc(call: &Call) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let (links, rules) = beside(
        removal.has_rules(),
        || rules::sweep(&removal, call),
        || block_on(delete_stale_links(call)),
    );
    let addresses = match &links {
        Ok(()) => Ipam::find(call, removal.ipam.as_ref()).and_then(|ipam| ipam.gc(call)),
        Err(_) => Ok(()),
    };
    joined([links, rules, addresses])
}

/// The kernel takes 20 ms and more to delete a link, most of it asleep: time enough for the firewall, if there is
/// anything to be done.
fn beside(
    has_rules: bool,
    rules: impl FnOnce() -> Result<(), CniError> + Send,
    links: impl FnOnce() -> Result<(), CniError>,
) -> (Result<(), CniError>, Result<(), CniError>) {
    if !has_rules {
        return (links(), Ok(()));
    }
    thread::scope(|scope| {
        let rules = scope.spawn(rules);
        let links = links();
        let rules = rules
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (links, rules)
    })
}

fn joined(results: [Result<(), CniError>; 3]) -> Result<(), CniError> {
    CniError::join(results.into_iter().filter_map(Result::err).collect())
}

async fn delete_links(call: &Call, target: &Target) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let found = HostEnd::new(call, target)
        .find(&host)
        .await
        .map_err(kernel("cannot look for links"))?;
    match found {
        Some(link) => host
            .delete_links_grouped(&[link.index])
            .await
            .map_err(kernel("cannot delete the veth pair")),
        None => delete_in_netns(target).await,
    }
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

async fn delete_stale_links(call: &Call) -> Result<(), CniError> {
    let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
    let sweep = AliasSweep::new(&call.conf.name, valid);
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let links = host
        .list_links("veth")
        .await
        .map_err(kernel("cannot list links"))?;
    let stale: Vec<u32> = links
        .iter()
        .filter(|link| sweep.is_stale(&link.alias))
        .map(|link| link.index)
        .collect();
    host.delete_links_grouped(&stale)
        .await
        .map_err(kernel("cannot delete stale veth pairs"))
}
