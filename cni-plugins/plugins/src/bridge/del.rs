//! DEL and GC.

use std::thread;

use skiff_cni::{
    skel::{Call, Target},
    types::CniError,
};

use super::{config::Removal, rules};
use crate::{
    host_end::{delete_pair, delete_stale_pairs},
    ipam::Ipam,
    runtime::block_on,
};

pub(super) fn del(call: &Call, target: &Target) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let ipam = Ipam::find(call, removal.ipam.as_ref());
    let (links, rules) = beside(
        removal.has_rules(),
        || rules::delete(&removal, call, target),
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

pub(super) fn gc(call: &Call) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let ipam = Ipam::find(call, removal.ipam.as_ref());
    let addresses = ipam
        .as_ref()
        .map_or_else(|_| Vec::new(), |ipam| ipam.attachments(call));
    let (links, rules) = beside(
        removal.has_rules(),
        || rules::sweep(&removal, call),
        || block_on(delete_stale_pairs(call, "bridge", &addresses)),
    );
    let addresses = match &links {
        Ok(()) => ipam.and_then(|ipam| ipam.gc(call)),
        Err(_) => Ok(()),
    };
    joined([links, rules, addresses])
}

/// The firewall's programs take longer than links do: these go meanwhile. No thread where there is nothing to be done.
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
