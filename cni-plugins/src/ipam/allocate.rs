//! The choice of an address.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{IpamError, LockedStore, Owner, Range, RangeSet, range::number};

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
                reason: "it is in none of the ranges".to_owned(),
            })?;
            if range.gateway() == ip {
                return Err(IpamError::Requested {
                    ip,
                    reason: "it is the subnet's gateway".to_owned(),
                });
            }
            if !store.lease(ip, owner)? {
                return Err(IpamError::Requested {
                    ip,
                    reason: format!("it is not available in range set {set}"),
                });
            }
            (range, ip)
        }
        None => next_free(store, set_index, set, owner)?,
    };
    store.set_last_reserved(set_index, ip);
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
) -> Result<(&'a Range, IpAddr), IpamError> {
    let last = store.last_reserved(set_index);
    if let Some(found) = search(store, set, last, owner)? {
        return Ok(found);
    }
    // On old kernels the index may miss what the reference plugin released within one clock tick of ours.
    store.distrust_index();
    search(store, set, last, owner)?.ok_or_else(|| IpamError::Exhausted {
        ranges: set.to_string(),
    })
}

fn search<'a>(
    store: &mut LockedStore,
    set: &'a RangeSet,
    last: Option<IpAddr>,
    owner: &Owner,
) -> Result<Option<(&'a Range, IpAddr)>, IpamError> {
    for span in set.spans_after(last) {
        let mut from = Some(span.from);
        while let Some(begin) = from.filter(|from| *from <= span.to) {
            let Some(ip) = store.first_free(span.range, begin, span.to)? else {
                break;
            };
            if ip != span.range.gateway() && store.lease(ip, owner)? {
                return Ok(Some((span.range, ip)));
            }
            from = number(ip).checked_add(1);
        }
    }
    Ok(None)
}
