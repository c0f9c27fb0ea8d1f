//! `firewall`: lets a container's packets through a firewall that forwards nothing by itself.
//!
//! ```text
//! FORWARD                -> CNI-ISOLATION-STAGE-1   where a network has an ingressPolicy
//!                        -> CNI-FORWARD
//! CNI-FORWARD            -> CNI-ADMIN               the administrator's rules; nothing here changes them
//!                        -d CONTAINER  established: ACCEPT
//!                        -s CONTAINER  ACCEPT
//! CNI-ISOLATION-STAGE-1  -i BRIDGE ! -o BRIDGE      -> CNI-ISOLATION-STAGE-2  (-o BRIDGE DROP)
//! SKIFF-FW-OWNERS        -s CONTAINER "whose"       no packet comes here: it says whose an address is
//! ```
//! Chains and rules are the reference plugin's, so that either removes what the other has made; as there, what belongs
//! to no single container stays. Its rules do not say whose they are, which GC and a DEL without `prevResult` must know:
//! hence the last chain, which changes together with the rules. `ingressPolicy` is made with iptables whatever the
//! `backend` is.

mod apply;
mod config;
mod dbus;
mod firewalld;
mod rules;

use std::net::IpAddr;

use skiff_cni::{
    firewall::{Family, FirewallError},
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, code},
};

use self::{
    config::{Config, Policy, Zones},
    firewalld::Firewalld,
    rules::Layout,
};
use crate::attachment;

/// The plugin.
#[derive(Debug)]
pub(crate) struct Firewall;

fn previous(call: &Call) -> Result<&CniResult, CniError> {
    call.conf.prev_result.as_ref().ok_or_else(|| {
        CniError::config("\"prevResult\" is missing: firewall comes after another plugin")
    })
}

fn addresses(result: &CniResult) -> Vec<IpAddr> {
    result.container_ips().map(|ip| ip.address.ip()).collect()
}

fn refused(what: &'static str) -> impl Fn(FirewallError) -> CniError {
    move |error| CniError::from_error(code::FIREWALL, what, &error)
}

fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [Config::new(call).map(drop), Zones::new(call).map(drop)]
}

impl Plugin for Firewall {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let config = Config::new(call)?;
        let result = previous(call)?;
        let addresses = addresses(result);
        let layout = Layout::new(&config, result)?;
        let _lock = attachment::lock_for_add("firewall", call, target)?;
        let firewalld = Firewalld::choose(config.backend)?;
        match &firewalld {
            None => apply::add(&layout, &addresses, call, target)?,
            Some(firewalld) => {
                firewalld.add(&config.zone, &addresses)?;
                if let Err(error) = apply::add(&layout.policy_only(), &addresses, call, target) {
                    // The first error is the one to report.
                    firewalld.remove(&config.zone, &addresses).ok();
                    return Err(error);
                }
            }
        }
        Ok(result.clone())
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let zones = Zones::new(call)?;
        let known = call.conf.prev_result.as_ref().map(addresses);
        let known = known.unwrap_or_default();
        // DEL does what it can, also without.
        let _lock = attachment::lock("firewall", target).ok();
        // A firewalld that does not run has nothing of ours.
        let zone = match Firewalld::choose(zones.backend) {
            Ok(Some(firewalld)) => firewalld.remove(&zones.zone, &known),
            Ok(None) | Err(_) => Ok(()),
        };
        let rules = apply::delete(&known, call, target);
        CniError::join([zone, rules].into_iter().filter_map(Result::err).collect())
    }

    fn check(&self, call: &Call, _target: &Target) -> Result<(), CniError> {
        let config = Config::new(call)?;
        let result = previous(call)?;
        let addresses = addresses(result);
        let layout = Layout::new(&config, result)?;
        match Firewalld::choose(config.backend)? {
            None => apply::check(&layout, &addresses),
            Some(firewalld) => {
                firewalld.check(&config.zone, &addresses)?;
                apply::check(&layout.policy_only(), &addresses)
            }
        }
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let _lock = attachment::lock_for_gc("firewall", call)?;
        apply::sweep(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let config = Config::new(call)?;
        let unavailable = |error: CniError| CniError {
            code: code::UNAVAILABLE,
            ..error
        };
        let firewalld = Firewalld::choose(config.backend).map_err(unavailable)?;
        let needs_iptables = firewalld.is_none() || config.policy != Policy::Open;
        if needs_iptables && !Family::V4.is_installed() {
            let msg = "iptables-restore is not installed";
            return Err(CniError::new(code::UNAVAILABLE, msg));
        }
        Ok(())
    }
}
