//! `bridge`: joins a container to a bridge of the host by a veth pair.
//!
//! ADD checks everything, then takes addresses, makes bridge and pair and sets the container's end up, while the firewall
//! works beside it; a failure undoes what was done in reverse order. DEL needs neither the container's namespace nor a
//! cached result: the host's end has a name that follows from container and link.
//!
//! ```text
//! ADD  look -> ipam -> bridge -> veth pair -> port, VLANs -> container's end -> gateway -> result
//!                   \-> masquerading (thread) \-> macspoofchk (thread) ------------/
//! DEL  rules (thread) beside the link's deletion, then ipam
//! ```

mod add;
mod check;
mod config;
mod gateway;
mod pod;
mod port;
mod sysctl;
mod vlan;

use skiff_cni::{
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult},
};

use crate::{attachment, veth};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Bridge;

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [
        config::Config::new(call).map(drop),
        veth::Removal::new(call).map(drop),
    ]
}

impl Plugin for Bridge {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let _lock = attachment::lock_for_add("bridge", call, target)?;
        add::add(call, target)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        veth::del("bridge", call, target)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        check::check(call, target)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        veth::gc("bridge", call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        check::status(call)
    }
}
