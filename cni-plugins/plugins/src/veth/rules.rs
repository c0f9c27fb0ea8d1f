//! The firewall's part: processes that run on threads of their own beside the work on links.

use std::thread::{self, JoinHandle};

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::{Backend, FirewallError, Masquerade},
    skel::{Call, Target},
    types::{CniError, code},
};

use super::{Removal, SpoofCheck};

/// Rules that are being made. They are waited for before anything is undone.
#[derive(Default)]
pub(crate) struct Rules {
    making: Vec<(&'static str, JoinHandle<Result<(), FirewallError>>)>,
    masquerade: Option<Masquerade>,
    spoof_check: Option<SpoofCheck>,
}

impl Rules {
    pub(super) fn masquerade(
        &mut self,
        call: &Call,
        target: &Target,
        backend: Backend,
        addresses: Vec<IpNetwork>,
    ) {
        let masquerade = Masquerade::new(call.conf.name.clone(), backend);
        self.masquerade = Some(masquerade.clone());
        let container = target.container_id.clone();
        let made = thread::spawn(move || masquerade.ensure(&addresses, &container));
        self.making.push(("cannot masquerade", made));
    }

    pub(super) fn check_spoofing(&mut self, call: &Call, target: &Target, veth: &str, mac: &str) {
        let check = SpoofCheck::new(call.conf.name.clone());
        self.spoof_check = Some(check.clone());
        let (veth, mac) = (veth.to_owned(), mac.to_owned());
        let (container, ifname) = (target.container_id.clone(), target.ifname.clone());
        let made = thread::spawn(move || check.ensure(&veth, &mac, &container, &ifname));
        self.making
            .push(("cannot check hardware addresses (macspoofchk)", made));
    }

    /// Waits for all of them.
    pub(crate) fn finish(&mut self) -> Result<(), CniError> {
        let errors = self.making.drain(..).filter_map(|(failed, made)| {
            let made = made
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            made.map_err(|error| CniError::from_error(code::FIREWALL, failed, &error))
                .err()
        });
        CniError::join(errors.collect())
    }

    /// Undoes what was made. What cannot be undone is left to DEL.
    pub(super) fn undo(mut self, target: &Target) {
        self.finish().ok();
        if let Some(check) = &self.spoof_check {
            check.delete(&target.container_id, &target.ifname).ok();
        }
        if let Some(masquerade) = &self.masquerade {
            masquerade.delete(&[], &target.container_id).ok();
        }
    }
}

/// Removes a container's rules.
pub(super) fn delete(removal: &Removal, call: &Call, target: &Target) -> Result<(), CniError> {
    let mut errors = Vec::new();
    if removal.masquerades {
        let known: Vec<_> = call
            .conf
            .prev_result
            .iter()
            .flat_map(|result| result.container_ips().map(|ip| ip.address))
            .collect();
        let deleted = backend()
            .and_then(|backend| {
                Masquerade::new(call.conf.name.clone(), backend)
                    .delete(&known, &target.container_id)
            })
            .map_err(failed("cannot remove masquerading"));
        errors.extend(deleted.err());
    }
    if removal.checks_spoofing {
        let deleted = SpoofCheck::new(call.conf.name.clone())
            .delete(&target.container_id, &target.ifname)
            .map_err(failed("cannot remove the check of hardware addresses"));
        errors.extend(deleted.err());
    }
    CniError::join(errors)
}

/// Removes the rules of all containers but valid ones.
pub(super) fn sweep(removal: &Removal, call: &Call) -> Result<(), CniError> {
    let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    if removal.masquerades {
        let containers = valid.iter().map(|key| key.container_id.clone()).collect();
        let swept = backend()
            .and_then(|backend| Masquerade::new(call.conf.name.clone(), backend).sweep(&containers))
            .map_err(failed("cannot sweep masquerading"));
        errors.extend(swept.err());
    }
    if removal.checks_spoofing {
        let swept = SpoofCheck::new(call.conf.name.clone())
            .sweep(valid)
            .map_err(failed("cannot sweep the checks of hardware addresses"));
        errors.extend(swept.err());
    }
    CniError::join(errors)
}

/// Removal looks into every backend: which one a configuration names is of no matter.
fn backend() -> Result<Backend, FirewallError> {
    Backend::choose(None)
}

fn failed(what: &'static str) -> impl FnOnce(FirewallError) -> CniError {
    move |error| CniError::from_error(code::FIREWALL, what, &error)
}
