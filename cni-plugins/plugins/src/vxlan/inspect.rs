//! CHECK and STATUS.

use skiff_cni::{
    firewall::Masquerade,
    overlay::{self, Attached, Changes},
    skel::{Call, Plugin as _, Target},
    types::{CniError, CniResult, code},
};
use skiff_netns::NodeNetns;

use super::{attach::cluster_addresses, config::Config, derive::bridge_call, overlay_error};
use crate::{bridge::Bridge, runtime::block_on_waiting};

fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

pub(super) fn check(call: &Call, target: &Target) -> Result<(), CniError> {
    let config = Config::new(call)?;
    let attached = inspect(&config)?;
    check_overlay(&attached.changes)?;
    let bridge = bridge_call(call, config.overlay.settings().vni, &attached);
    Bridge.check(&bridge, target)?;
    match &call.conf.prev_result {
        Some(previous) => check_masquerade(call, target, &config, previous),
        None => Ok(()),
    }
}

/// What there is to do for the overlay, and this node's place in it.
pub(super) fn inspect(config: &Config) -> Result<Attached, CniError> {
    block_on_waiting(async {
        overlay::inspect(&NodeNetns::machine(), &config.overlay)
            .await
            .map_err(overlay_error)
    })
}

fn check_overlay(changes: &Changes) -> Result<(), CniError> {
    if changes.created {
        return Err(differs("the VXLAN device is missing or another one"));
    }
    if changes.adjusted {
        return Err(differs("the VXLAN device is down or has another MTU"));
    }
    if changes.set + changes.deleted > 0 {
        return Err(differs(format!(
            "{} entries for other nodes are missing and {} are too many",
            changes.set, changes.deleted
        )));
    }
    Ok(())
}

fn check_masquerade(
    call: &Call,
    target: &Target,
    config: &Config,
    previous: &CniResult,
) -> Result<(), CniError> {
    let Some(backend) = config.masquerade else {
        return Ok(());
    };
    let there = Masquerade::new(call.conf.name.clone(), backend)
        .is_ensured(&cluster_addresses(config, previous), &target.container_id)
        .map_err(|error| {
            CniError::from_error(code::FIREWALL, "cannot check masquerading", &error)
        })?;
    if there {
        Ok(())
    } else {
        Err(differs("the container's addresses are not masqueraded"))
    }
}

/// A table that was not applied yet is no reason to say no: the ADD that follows applies it.
pub(super) fn status(call: &Call) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError {
        code: code::UNAVAILABLE,
        ..error
    };
    let config = Config::new(call).map_err(|error| match error.code {
        code::TRY_AGAIN => unavailable(error),
        _ => error,
    })?;
    // The configuration makes sense by itself: what is wrong now is this node.
    let attached = inspect(&config).map_err(unavailable)?;
    Bridge.status(&bridge_call(call, config.overlay.settings().vni, &attached))
}
