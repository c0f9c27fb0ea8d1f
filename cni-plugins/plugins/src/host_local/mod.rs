//! `host-local`: gives addresses out of configured ranges, kept in files on this host.

mod config;

use std::collections::HashSet;

use skiff_cni::{
    ipam::{Allocation, IpamError, LeaseStore, LockedStore, Owner, allocate},
    skel::{Call, Plugin, Target},
    types::{AttachmentKey, CniError, CniResult, IpConfig, code},
};

use config::Config;

/// The plugin.
#[derive(Debug)]
pub(crate) struct HostLocal;

fn error(error: IpamError) -> CniError {
    let code = match &error {
        IpamError::Range { .. } => code::CONFIG,
        IpamError::Exhausted { .. } => code::EXHAUSTED,
        IpamError::Requested { .. } | IpamError::AlreadyAllocated { .. } => code::EXISTS,
        IpamError::Locked { .. } => code::TRY_AGAIN,
        IpamError::Io { .. } => code::IO,
    };
    CniError::from_error(code, "host-local", &error)
}

fn owner(target: &Target) -> Owner {
    Owner::new(&AttachmentKey {
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    })
}

fn store(config: &Config) -> LeaseStore {
    LeaseStore::new(&config.data_dir, config.network.as_str())
}

fn lease_all(
    store: &mut LockedStore,
    config: &Config,
    owner: &Owner,
) -> Result<Vec<Allocation>, IpamError> {
    if let Some(ip) = store.leases_of(owner)?.first() {
        return Err(IpamError::AlreadyAllocated {
            container: owner.container.clone(),
            ifname: owner.ifname.clone(),
            ip: *ip,
        });
    }
    let mut leases = Vec::with_capacity(config.sets.len());
    for (index, set) in config.sets.iter().enumerate() {
        let requested = config
            .requested
            .iter()
            .copied()
            .find(|ip| set.find(*ip).is_some());
        match allocate(store, index, set, requested, owner) {
            Ok(lease) => leases.push(lease),
            Err(error) => {
                // What the sets before this one gave goes back; the error that counts is the first.
                store.release(owner).ok();
                return Err(error);
            }
        }
    }
    Ok(leases)
}

impl Plugin for HostLocal {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let config = Config::new(call)?;
        if let Some(ip) = config.requested_outside() {
            return Err(error(IpamError::Requested {
                ip,
                reason: "it is in none of the ranges",
            }));
        }
        let mut locked = store(&config).lock().map_err(error)?;
        let leases = lease_all(&mut locked, &config, &owner(target)).map_err(error)?;
        let ip = |lease: Allocation| IpConfig {
            interface: None,
            address: lease.address,
            gateway: Some(lease.gateway),
        };
        Ok(CniResult {
            interfaces: Vec::new(),
            ips: leases.into_iter().map(ip).collect(),
            routes: config.routes,
            dns: config.dns,
        })
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let config = Config::for_removal(call)?;
        if !config.data_dir.join(config.network.as_str()).exists() {
            return Ok(());
        }
        store(&config)
            .lock()
            .and_then(|mut locked| locked.release(&owner(target)))
            .map(drop)
            .map_err(error)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let config = Config::for_removal(call)?;
        let leases = store(&config)
            .lock()
            .and_then(|locked| locked.leases_of(&owner(target)))
            .map_err(error)?;
        if leases.is_empty() {
            let msg = format!("host-local: {} has no address", target.container_id);
            return Err(CniError::new(code::CHECK_FAILED, msg));
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let config = Config::for_removal(call)?;
        let valid: HashSet<(&str, &str)> = call
            .conf
            .valid_attachments
            .iter()
            .flatten()
            .map(|key| (key.container_id.as_str(), key.ifname.as_str()))
            .collect();
        let containers: HashSet<&str> = valid.iter().map(|(container, _)| *container).collect();
        store(&config)
            .lock()
            .and_then(|mut locked| {
                locked.retain(|owner| {
                    // Leases of old versions of the reference plugin do not name the link.
                    valid.contains(&(&*owner.container, &*owner.ifname))
                        || (owner.ifname.is_empty() && containers.contains(&*owner.container))
                })
            })
            .map(drop)
            .map_err(error)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let config = Config::new(call)?;
        store(&config).ensure_writable().map_err(|ipam| {
            CniError::from_error(
                code::UNAVAILABLE,
                "host-local cannot write its leases",
                &ipam,
            )
        })
    }
}
