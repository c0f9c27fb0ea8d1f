//! `vxlan`: joins a container to an overlay that spans nodes.
//!
//! ADD makes sure that the node's VXLAN device and its table of nodes are as configured, then attaches the container to
//! a bridge, just as our bridge plugin does, with addresses from this node's podCIDRs and the MTU that the underlay
//! leaves. DEL takes away what ADD made for the container; the device stays, since it belongs to the node, and other
//! containers may be coming. GC brings the table up to date, so that a node that left disappears.
//!
//! Between nodes pods keep their addresses: masquerading leaves out all of `clusterCIDR`.

mod attach;
mod config;
mod derive;
mod detach;
mod inspect;

use skiff_cni::{
    overlay::OverlayError,
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, code},
};

use crate::attachment;

/// The plugin.
#[derive(Debug)]
pub(crate) struct Vxlan;

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [
        config::Config::new(call).map(drop),
        config::Removal::new(call).map(drop),
    ]
}

impl Plugin for Vxlan {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let _lock = attachment::lock_for_add("vxlan", call, target)?;
        attach::add(call, target)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        // DEL does what it can, also without.
        let _lock = attachment::lock("vxlan", target).ok();
        detach::del(call, target)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        inspect::check(call, target)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let _lock = attachment::lock_for_gc("vxlan", call)?;
        detach::gc(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        inspect::status(call)
    }
}

/// What is wrong with the overlay as the runtime reads it.
fn overlay_error(error: OverlayError) -> CniError {
    let code = if error.is_transient() {
        code::TRY_AGAIN
    } else if error.is_configuration() {
        code::CONFIG
    } else {
        match error {
            OverlayError::RouteTaken { .. } => code::EXISTS,
            OverlayError::Io { .. } => code::IO,
            _ => code::KERNEL,
        }
    };
    CniError::from_error(code, "cannot set the overlay up", &error)
}
