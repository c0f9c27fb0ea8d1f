//! DEL and GC.

use std::thread;

use skiff_cni::{
    firewall::{FirewallError, Masquerade},
    overlay,
    skel::{Call, Plugin as _, Target},
    types::{CniError, code},
};
use skiff_netns::NodeNetns;

use super::{
    config::{Config, Removal, in_cluster},
    derive::removal_call,
    overlay_error,
};
use crate::{bridge::Bridge, runtime::block_on_waiting};

pub(super) fn del(call: &Call, target: &Target) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let bridge = removal_call(call, removal.vni);
    // Links and firewall wait for the kernel most of the time: they can do so together.
    let (links, rules) = thread::scope(|scope| {
        let rules = scope.spawn(|| delete_rules(call, target, &removal));
        let links = Bridge.del(&bridge, target);
        let rules = rules
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (links, rules)
    });
    CniError::join([links, rules].into_iter().filter_map(Result::err).collect())
}

fn delete_rules(call: &Call, target: &Target, removal: &Removal) -> Result<(), CniError> {
    let Some(backend) = removal.masquerade else {
        return Ok(());
    };
    let ips = call
        .conf
        .prev_result
        .iter()
        .flat_map(|result| result.container_ips().map(|ip| ip.address.ip()));
    let known: Option<Vec<_>> = ips
        .map(|ip| in_cluster(ip, &removal.cluster_cidrs))
        .collect();
    Masquerade::new(call.conf.name.clone(), backend)
        .delete(&known.unwrap_or_default(), &target.container_id)
        .map_err(|error| firewall_error(&error))
}

pub(super) fn gc(call: &Call) -> Result<(), CniError> {
    let removal = Removal::new(call)?;
    let bridge = Bridge.gc(&removal_call(call, removal.vni));
    let rules = removal.masquerade.map_or(Ok(()), |backend| {
        let valid = call.conf.valid_attachments.iter().flatten();
        let containers = valid.map(|key| key.container_id.clone()).collect();
        Masquerade::new(call.conf.name.clone(), backend)
            .sweep(&containers)
            .map_err(|error| firewall_error(&error))
    });
    let nodes = reconcile(call, &removal);
    let results = [bridge, rules, nodes];
    CniError::join(results.into_iter().filter_map(Result::err).collect())
}

/// Brings the table of nodes up to date, where there are pods or were some: GC makes nothing that no ADD wanted.
fn reconcile(call: &Call, removal: &Removal) -> Result<(), CniError> {
    let node = NodeNetns::machine();
    let Some(vni) = removal.vni else {
        return Ok(());
    };
    let has_pods = call
        .conf
        .valid_attachments
        .iter()
        .any(|all| !all.is_empty());
    block_on_waiting(async {
        if !has_pods && !overlay::exists(&node, vni).await.map_err(overlay_error)? {
            return Ok(());
        }
        let config = Config::new(call)?;
        overlay::reconcile(&node, &config.overlay)
            .await
            .map(drop)
            .map_err(overlay_error)
    })
}

fn firewall_error(error: &FirewallError) -> CniError {
    CniError::from_error(code::FIREWALL, "cannot remove masquerading", error)
}
