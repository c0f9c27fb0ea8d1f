//! `host-local`: gives addresses out of configured ranges, kept in files on this host.

use std::collections::HashSet;

use skiff_cni::{
    ipam::{
        Allocation, HostLocalConfig, IpamError, LeaseFolder, LeaseStore, LockedStore, Owner,
        allocate, read_resolv_conf,
    },
    skel::{Call, Plugin, Target},
    types::{AttachmentKey, CniError, CniResult, IpConfig, code},
};

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

fn store(folder: &LeaseFolder) -> LeaseStore {
    LeaseStore::new(&folder.data_dir, folder.network.as_str())
}

fn lease_all(
    store: &mut LockedStore,
    config: &HostLocalConfig,
    owner: &Owner,
) -> Result<Vec<Allocation>, IpamError> {
    // A second ADD: told before anything is taken. An address of another range is another attachment's business, when
    // several plugins of a list allocate under one name.
    let held = store.leases_of(owner)?;
    let again = held
        .iter()
        .find(|ip| config.sets.iter().any(|(set, _)| set.find(**ip).is_some()));
    if let Some(ip) = again {
        return Err(IpamError::AlreadyAllocated {
            container: owner.container.clone(),
            ifname: owner.ifname.clone(),
            ip: *ip,
        });
    }
    let mut leases: Vec<Allocation> = Vec::with_capacity(config.sets.len());
    for (index, (set, requested)) in config.sets.iter().enumerate() {
        match allocate(store, index, set, *requested, owner) {
            Ok(lease) => leases.push(lease),
            Err(error) => {
                for lease in leases {
                    // The error that counts is the first.
                    store.release_one(owner, lease.address.ip()).ok();
                }
                return Err(error);
            }
        }
    }
    Ok(leases)
}

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [
        HostLocalConfig::new(call).map(drop),
        LeaseFolder::new(call).map(drop),
    ]
}

impl Plugin for HostLocal {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let config = HostLocalConfig::new(call)?;
        let dns = config.resolv_conf.as_deref().map(read_resolv_conf);
        let dns = dns.transpose()?.unwrap_or_default();
        let mut locked = store(&config.folder).lock().map_err(error)?;
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
            dns,
        })
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let store = store(&LeaseFolder::new(call)?);
        if !store.exists() {
            return Ok(());
        }
        store
            .lock()
            .and_then(|mut locked| locked.release(&owner(target)))
            .map(drop)
            .map_err(error)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let store = store(&LeaseFolder::new(call)?);
        let leases = if store.exists() {
            store
                .lock()
                .and_then(|mut locked| locked.leases_of(&owner(target)))
                .map_err(error)?
        } else {
            Vec::new()
        };
        if leases.is_empty() {
            let msg = format!("host-local: {} has no address", target.container_id);
            return Err(CniError::new(code::CHECK_FAILED, msg));
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let store = store(&LeaseFolder::new(call)?);
        if !store.exists() {
            return Ok(());
        }
        let valid: HashSet<(&str, &str)> = call
            .conf
            .valid_attachments
            .iter()
            .flatten()
            .map(|key| (key.container_id.as_str(), key.ifname.as_str()))
            .collect();
        let containers: HashSet<&str> = valid.iter().map(|(container, _)| *container).collect();
        store
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
        let config = HostLocalConfig::new(call)?;
        store(&config.folder).ensure_writable().map_err(|ipam| {
            CniError::from_error(
                code::UNAVAILABLE,
                "host-local cannot write its leases",
                &ipam,
            )
        })
    }
}
