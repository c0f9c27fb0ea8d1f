//! `bridge`: joins a container to a bridge of the host by a veth pair.
//!
//! ADD checks everything, then takes addresses, makes bridge and pair, sets the container's end up, and at last the
//! firewall; a failure undoes what was done in reverse order. DEL needs neither the container's namespace nor a cached
//! result: the host's end has a name that follows from container and link.

mod add;
mod check;
mod config;
mod del;
mod sysctl;

use skiff_cni::{
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult},
};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        add::add(call, target)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        del::del(call, target)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        check::check(call, target)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        del::gc(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        check::status(call)
    }
}
