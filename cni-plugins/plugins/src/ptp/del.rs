//! DEL and GC.

use std::thread;

use skiff_cni::{
    firewall::Masquerade,
    skel::{Call, Target},
    types::{CniError, code},
};

use super::config::Removal;
use crate::{
    host_end::{delete_pair, delete_stale_pairs},
    ipam::Ipam,
    runtime::block_on,
};

pub(super) fn del(call: &Call, target: &Target) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let masquerade = masquerade(call, &removal);
    let (links, rules) = beside(
        || block_on(delete_pair(call, target)),
        || {
            let known: Vec<_> = call
                .conf
                .prev_result
                .iter()
                .flat_map(|result| result.container_ips().map(|ip| ip.address))
                .collect();
            masquerade.as_ref().map_or(Ok(()), |masquerade| {
                masquerade.delete(&known, &target.container_id)
            })
        },
    );
    // Addresses come last: nobody else may have them while a link still does.
    let addresses = match &links {
        Ok(()) => Ipam::find(call, Some(&removal.ipam)).and_then(|ipam| ipam.del(call, target)),
        Err(_) => Ok(()),
    };
    join([links, rules, addresses])
}

pub(super) fn gc(call: &Call) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let masquerade = masquerade(call, &removal);
    let ipam = Ipam::find(call, Some(&removal.ipam));
    let addresses = ipam
        .as_ref()
        .map_or_else(|_| Vec::new(), |ipam| ipam.attachments(call));
    let (links, rules) = beside(
        || block_on(delete_stale_pairs(call, "ptp", &addresses)),
        || {
            let keys = call.conf.valid_attachments.iter().flatten();
            let valid = keys.map(|key| key.container_id.clone()).collect();
            masquerade
                .as_ref()
                .map_or(Ok(()), |masquerade| masquerade.sweep(&valid))
        },
    );
    let addresses = match &links {
        Ok(()) => ipam.and_then(|ipam| ipam.gc(call)),
        Err(_) => Ok(()),
    };
    join([links, rules, addresses])
}

fn masquerade(call: &Call, removal: &Removal) -> Option<Masquerade> {
    let backend = removal.masquerade?;
    Some(Masquerade::new(call.conf.name.clone(), backend))
}

/// The firewall's programs take longer than links do: these go meanwhile.
fn beside(
    links: impl FnOnce() -> Result<(), CniError>,
    rules: impl FnOnce() -> Result<(), skiff_cni::firewall::FirewallError> + Send,
) -> (Result<(), CniError>, Result<(), CniError>) {
    thread::scope(|scope| {
        let rules = scope.spawn(|| {
            rules().map_err(|error| {
                CniError::from_error(code::FIREWALL, "cannot remove masquerading", &error)
            })
        });
        (
            links(),
            rules
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    })
}

fn join(results: [Result<(), CniError>; 3]) -> Result<(), CniError> {
    CniError::join(results.into_iter().filter_map(Result::err).collect())
}
