//! Masquerading of what containers send out of the node.
//!
//! Only what a container itself sends is touched: not what its node sends from an address of the same subnet, and not
//! what stays inside the subnet or goes to a multicast group.

mod iptables;
mod nftables;

use std::{collections::HashSet, net::IpAddr, thread};

use ipnetwork::IpNetwork;

use super::{Backend, Family, FirewallError, Owner};
use crate::types::{ContainerId, NetworkName};

/// The masquerading of one network.
#[derive(Debug, Clone)]
pub struct Masquerade {
    network: NetworkName,
    backend: Backend,
}

/// Whose rules are to be removed from a table, by owner and, where the table tells, address.
type Doomed<'a> = dyn Fn(Owner<'_>, Option<IpAddr>) -> bool + Sync + 'a;

/// What a removal is about.
#[derive(Clone, Copy)]
struct Removal<'a> {
    network: &'a NetworkName,
    /// Of this network's owners, those whose rules go.
    doomed: &'a Doomed<'a>,
    /// The container, if it is a single one: what reference plugins made for it is known by name.
    container: Option<&'a ContainerId>,
}

impl Removal<'_> {
    fn dooms(&self, comment: &str, ip: Option<IpAddr>) -> bool {
        Owner::read(comment)
            .is_some_and(|owner| owner.is_network(self.network) && (self.doomed)(owner, ip))
    }
}

impl Masquerade {
    /// The masquerading of `network`.
    #[must_use]
    pub fn new(network: NetworkName, backend: Backend) -> Self {
        Self { network, backend }
    }

    /// Makes what a container sends from `addresses` (each with the length of its subnet) out of their subnets carry
    /// the node's address.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn ensure(
        &self,
        addresses: &[IpNetwork],
        container: &ContainerId,
    ) -> Result<(), FirewallError> {
        match self.backend {
            Backend::Iptables => each_family(addresses, |family, addresses| {
                iptables::Layout::new(family, &self.network).ensure(addresses, container)?;
                Ok(true)
            })
            .map(drop),
            Backend::Nftables => nftables::ensure(&self.network, addresses, container),
        }
    }

    /// Whether the rules for all `addresses` and the way to them are there.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn is_ensured(
        &self,
        addresses: &[IpNetwork],
        container: &ContainerId,
    ) -> Result<bool, FirewallError> {
        match self.backend {
            Backend::Iptables => {
                for address in addresses {
                    let layout = iptables::Layout::new(Family::of(address.ip()), &self.network);
                    if !layout.is_ensured(*address, container)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Backend::Nftables => nftables::is_ensured(&self.network, addresses, container),
        }
    }

    /// Removes a container's rules for the `known` addresses, or all of its rules if none is known, also those that a
    /// reference plugin made. Absent is success.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn delete(
        &self,
        known: &[IpNetwork],
        container: &ContainerId,
    ) -> Result<(), FirewallError> {
        let ips: HashSet<IpAddr> = known.iter().map(|address| address.ip()).collect();
        let removal = Removal {
            network: &self.network,
            doomed: &|owner, ip| {
                owner.is_container(container)
                    && (ips.is_empty() || ip.is_none_or(|ip| ips.contains(&ip)))
            },
            container: Some(container),
        };
        let found = match self.backend {
            backend if !backend.is_installed() => false,
            Backend::Iptables => each_family(known, |family, addresses| {
                iptables::Layout::new(family, &self.network).delete(addresses, container, &removal)
            })?,
            Backend::Nftables => nftables::remove(&removal)?,
        };
        if found {
            Ok(())
        } else {
            self.remove_everywhere(&removal)
        }
    }

    /// Removes the rules of all containers but `valid` ones, also those that a reference plugin made.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn sweep(&self, valid: &HashSet<ContainerId>) -> Result<(), FirewallError> {
        self.remove_everywhere(&Removal {
            network: &self.network,
            doomed: &|owner, _| !valid.iter().any(|container| owner.is_container(container)),
            container: None,
        })
    }

    /// Looks into both backends: the configuration may have named the other one when the container came.
    fn remove_everywhere(&self, removal: &Removal<'_>) -> Result<(), FirewallError> {
        let mut results = Vec::new();
        for backend in [Backend::Iptables, Backend::Nftables] {
            if !backend.is_installed() {
                continue;
            }
            let removed = match backend {
                Backend::Iptables => in_both_families(|family| {
                    iptables::Layout::new(family, &self.network).remove(removal)
                }),
                Backend::Nftables => nftables::remove(removal),
            };
            results.push(if backend == self.backend {
                removed
            } else {
                backend.forgive(removed)
            });
        }
        results.into_iter().try_for_each(|result| result.map(drop))
    }

    /// Removes everything of every network: for whoever takes a node down.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn delete_all() -> Result<(), FirewallError> {
        let tables = if Backend::Iptables.is_installed() {
            in_both_families(iptables::remove_all).map(drop)
        } else {
            Ok(())
        };
        let sets = if Backend::Nftables.is_installed() {
            nftables::remove_all()
        } else {
            Ok(())
        };
        tables.and(sets)
    }
}

/// Runs `change` for the families that `addresses` are of, side by side, and says whether either found something.
/// Threads start in their maker's namespace.
fn each_family(
    addresses: &[IpNetwork],
    change: impl Fn(Family, &[IpNetwork]) -> Result<bool, FirewallError> + Sync,
) -> Result<bool, FirewallError> {
    let (v4, v6): (Vec<IpNetwork>, Vec<IpNetwork>) =
        addresses.iter().partition(|address| address.is_ipv4());
    match (&*v4, &*v6) {
        ([], []) => Ok(false),
        (v4, []) => change(Family::V4, v4),
        ([], v6) => change(Family::V6, v6),
        (v4, v6) => thread::scope(|scope| {
            let other = scope.spawn(|| change(Family::V6, v6));
            let found = change(Family::V4, v4);
            Ok(join(other)? | found?)
        }),
    }
}

/// Runs a removal for both families, side by side. A machine without IPv6 has no rules there.
fn in_both_families(
    remove: impl Fn(Family) -> Result<bool, FirewallError> + Sync,
) -> Result<bool, FirewallError> {
    thread::scope(|scope| {
        let other = Family::V6
            .is_installed()
            .then(|| scope.spawn(|| remove(Family::V6)));
        let found = remove(Family::V4);
        Ok(other.map_or(Ok(false), join)? | found?)
    })
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The subnet that an address is in.
fn subnet_of(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}
