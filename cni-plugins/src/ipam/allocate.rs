//! The choice of an address.

use std::{collections::HashSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{IpamError, LockedStore, Owner, RangeSet};

/// So many addresses are tried one by one; then the directory is read once and the taken ones are passed over.
const TRIES_BEFORE_LISTING: usize = 64;

/// An address that was given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The address with the length of its subnet.
    pub address: IpNetwork,
    /// The gateway of its range.
    pub gateway: IpAddr,
}

/// Leases an address out of `set` (the `set_index`th of its network) to `owner`: `requested`, or the next free one
/// behind the last that was given away, so that an address is not used again at once.
///
/// # Errors
/// [`IpamError`]; nothing is leased then.
pub fn allocate(
    store: &mut LockedStore,
    set_index: usize,
    set: &RangeSet,
    requested: Option<IpAddr>,
    owner: &Owner,
) -> Result<Allocation, IpamError> {
    let (range, ip) = match requested {
        Some(ip) => {
            let range = set.find(ip).ok_or(IpamError::Requested {
                ip,
                reason: "it is in none of the ranges",
            })?;
            if range.gateway() == ip {
                return Err(IpamError::Requested {
                    ip,
                    reason: "it is the gateway",
                });
            }
            if !store.lease(ip, owner)? {
                return Err(IpamError::Requested {
                    ip,
                    reason: "somebody has it",
                });
            }
            (range, ip)
        }
        None => next_free(store, set_index, set, owner)?,
    };
    store.set_last_reserved(set_index, ip)?;
    let prefix = range.subnet().prefix();
    let address = IpNetwork::new(ip, prefix).map_err(|error| IpamError::Range {
        subnet: range.subnet().to_string(),
        reason: error.to_string(),
    })?;
    Ok(Allocation {
        address,
        gateway: range.gateway(),
    })
}

fn next_free<'a>(
    store: &mut LockedStore,
    set_index: usize,
    set: &'a RangeSet,
    owner: &Owner,
) -> Result<(&'a super::Range, IpAddr), IpamError> {
    let mut taken: Option<HashSet<IpAddr>> = None;
    for (tried, (range, ip)) in set.after(store.last_reserved(set_index)).enumerate() {
        if tried == TRIES_BEFORE_LISTING {
            taken = Some(store.leased()?.collect());
        }
        if taken.as_ref().is_some_and(|taken| taken.contains(&ip)) {
            continue;
        }
        if store.lease(ip, owner)? {
            return Ok((range, ip));
        }
    }
    Err(IpamError::Exhausted {
        ranges: set.to_string(),
    })
}
