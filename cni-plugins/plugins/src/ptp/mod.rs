//! `ptp`: joins a container to its host by a veth pair, without a bridge.
//!
//! ```text
//! container  ADDRESS/24 on its end, without the route that comes with it
//!            GATEWAY          on the link
//!            10.5.0.0/24      by way of GATEWAY: neighbours are reached through the host, not by ARP
//! host       GATEWAY/32       on every container's other end
//!            ADDRESS/32       a route to the end
//! ```
//! ADD checks everything, then takes addresses, makes the pair, sets both ends up, and at last the firewall; a failure
//! undoes what was done in reverse order. DEL needs neither the container's namespace nor a cached result: the host's
//! end has a name that follows from container and link, and its address and routes go with it.

mod add;
mod check;
mod config;

use skiff_cni::{
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult},
};

use crate::{attachment, veth};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Ptp;

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [
        config::Config::new(call).map(drop),
        veth::Removal::new(call).map(drop),
    ]
}

impl Plugin for Ptp {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let _lock = attachment::lock_for_add("ptp", call, target)?;
        add::add(call, target)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        veth::del("ptp", call, target)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        check::check(call, target)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        veth::gc("ptp", call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        check::status(call)
    }
}
