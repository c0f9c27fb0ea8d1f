//! DEL and GC.

use std::thread;

use skiff_cni::{
    netlink::Netlink,
    skel::{Call, Target},
    types::CniError,
};

use super::{HostEnd, Removal, end, rules};
use crate::{
    attachment,
    ipam::Ipam,
    runtime::{block_on, kernel},
};

pub(crate) fn del(plugin: &str, call: &Call, target: &Target) -> Result<(), CniError> {
    let removal = &Removal::new(call)?;
    // DEL does what it can, also without.
    let _lock = attachment::lock(plugin, target).ok();
    let ipam = Ipam::find(call, removal.ipam.as_ref());
    let (links, rules) = beside(
        removal,
        || rules::delete(removal, call, target),
        || block_on(delete_pair(call, target)),
    );
    // Addresses come last: nobody else may have them while a link still does.
    let addresses = match (&links, ipam) {
        (Err(_), _) => Ok(()),
        (Ok(()), Ok(ipam)) => ipam.del(call, target),
        (Ok(()), Err(error)) => Err(error),
    };
    joined([links, rules, addresses])
}

pub(crate) fn gc(plugin: &str, call: &Call) -> Result<(), CniError> {
    let removal = &Removal::new(call)?;
    let _lock = attachment::lock_for_gc(plugin, call)?;
    let ipam = Ipam::find(call, removal.ipam.as_ref());
    let (links, rules) = beside(
        removal,
        || rules::sweep(removal, call),
        || block_on(end::delete_stale(call)),
    );
    let addresses = match &links {
        Ok(()) => ipam.and_then(|ipam| ipam.gc(call)),
        Err(_) => Ok(()),
    };
    joined([links, rules, addresses])
}

/// Deletes an attachment's pair, whatever of it is still there.
async fn delete_pair(call: &Call, target: &Target) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let deleted = HostEnd::new(call, target).delete(&host).await;
    if deleted.map_err(kernel("cannot delete the veth pair"))? {
        return Ok(());
    }
    end::delete_in_netns(target).await
}

/// The firewall's programs take longer than links do: these go meanwhile. No thread where there is nothing to be done.
fn beside(
    removal: &Removal,
    rules: impl FnOnce() -> Result<(), CniError> + Send,
    links: impl FnOnce() -> Result<(), CniError>,
) -> (Result<(), CniError>, Result<(), CniError>) {
    if !removal.masquerades && !removal.checks_spoofing {
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
