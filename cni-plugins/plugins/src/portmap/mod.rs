//! `portmap`: forwards ports of the host to a container.
//!
//! It comes after a plugin that gives addresses, and passes that one's result on. A port that two containers ask for
//! belongs to the newer one, as with the reference plugin: nothing is reserved, and a process of the host that listens on
//! it gets nothing from outside. DEL knows a container's rules by its name; if it is told neither ports nor a result it
//! looks for them everywhere.

mod config;
mod iptables;
mod localnet;
mod nftables;

use std::{collections::HashSet, thread};

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::{self, Backend, Family, FirewallError, UdpFlow},
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, ContainerId, NetworkName, code},
};

use self::config::{Config, Protocol, addresses};
use crate::attachment;

/// The plugin.
#[derive(Debug)]
pub(crate) struct Portmap;

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [
        Config::new(call).map(drop),
        Config::for_removal(call).map(drop),
    ]
}

impl Plugin for Portmap {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let config = Config::new(call)?;
        let result = call
            .conf
            .prev_result
            .clone()
            .ok_or_else(|| CniError::config("must be called as a chained plugin"))?;
        if config.mappings.is_empty() {
            return Ok(result);
        }
        let _lock = attachment::lock_for_add("portmap", call, target)?;
        let addresses = addresses(call, target);
        let network = &call.conf.name;
        let container = &target.container_id;
        let ensure = |_, address| {
            match config.backend {
                Backend::Iptables => {
                    iptables::Forwarding::new(&config, address, network, container).ensure()
                }
                Backend::Nftables => {
                    nftables::Forwarding::new(&config, address, network, container).ensure()
                }
            }
            .map(|()| true)
        };
        let done = thread::scope(|scope| {
            let rules = scope.spawn(|| each_family(&addresses, ensure));
            let localnet = if config.masquerades() {
                localnet::enable(&addresses)
            } else {
                Ok(())
            };
            let rules = join(vec![rules]).map_err(failed("cannot forward ports"));
            rules.map(drop).and(localnet)
        });
        if let Err(error) = done {
            // The runtime calls DEL too; the error that it must see is the first one.
            remove(&config, &addresses, network, container).ok();
            return Err(error);
        }
        forget_connections(&config, &addresses);
        Ok(result)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let config = Config::for_removal(call)?;
        if config.mappings.is_empty() && call.conf.prev_result.is_some() {
            // A runtime that knows the result knows the ports too: there were none.
            return Ok(());
        }
        // DEL does what it can, also without.
        let _lock = attachment::lock("portmap", target).ok();
        let addresses = addresses(call, target);
        remove(&config, &addresses, &call.conf.name, &target.container_id)
            .map_err(failed("cannot remove port forwarding"))?;
        forget_connections(&config, &addresses);
        Ok(())
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let config = Config::new(call)?;
        let (network, container) = (&call.conf.name, &target.container_id);
        let is_there = |(_, address): &(Family, IpNetwork)| match config.backend {
            Backend::Iptables => {
                iptables::Forwarding::new(&config, *address, network, container).is_ensured()
            }
            Backend::Nftables => {
                nftables::Forwarding::new(&config, *address, network, container).is_ensured()
            }
        };
        for address in addresses(call, target) {
            if !is_there(&address).map_err(failed("cannot check port forwarding"))? {
                let msg = format!("the ports of {} are not forwarded", address.1.ip());
                return Err(CniError::new(code::CHECK_FAILED, msg));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let _lock = attachment::lock_for_gc("portmap", call)?;
        let valid: HashSet<&ContainerId> = call
            .conf
            .valid_attachments
            .iter()
            .flatten()
            .map(|key| &key.container_id)
            .collect();
        let is_valid = |owner: firewall::Owner<'_>| {
            valid.iter().any(|container| owner.is_container(container))
        };
        let network = &call.conf.name;
        let configured = Config::for_removal(call)?.backend;
        everywhere(configured, |backend, family| match backend {
            Backend::Iptables => iptables::sweep(family, network, is_valid),
            Backend::Nftables => nftables::sweep(family, network, is_valid),
        })
        .map(drop)
        .map_err(failed("cannot sweep port forwarding"))
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let backend = Config::new(call)?.backend;
        backend.check_usable().map_err(|error| {
            CniError::from_error(code::UNAVAILABLE, "the firewall cannot be used", &error)
        })
    }
}

fn failed(msg: &'static str) -> impl Fn(FirewallError) -> CniError {
    move |error| CniError::from_error(code::FIREWALL, msg, &error)
}

/// Removes a container's forwarding: where its configuration says it is, or else wherever it is.
fn remove(
    config: &Config,
    mut addresses: &[(Family, IpNetwork)],
    network: &NetworkName,
    container: &ContainerId,
) -> Result<(), FirewallError> {
    if !config.backend.is_installed() {
        addresses = &[];
    }
    let found = each_family(addresses, |family, address| match config.backend {
        Backend::Iptables if !family.is_installed() => Ok(false),
        Backend::Iptables => {
            iptables::Forwarding::new(config, address, network, container).remove()
        }
        Backend::Nftables => nftables::remove(family, network, container),
    })?;
    if found {
        return Ok(());
    }
    everywhere(config.backend, |backend, family| match backend {
        Backend::Iptables => iptables::remove(family, network, container),
        Backend::Nftables => nftables::remove(family, network, container),
    })
    .map(drop)
}

/// Runs `change` for each of the container's addresses, side by side, and says whether any found something. Threads
/// start in their maker's namespace.
fn each_family(
    addresses: &[(Family, IpNetwork)],
    change: impl Fn(Family, IpNetwork) -> Result<bool, FirewallError> + Sync,
) -> Result<bool, FirewallError> {
    match addresses {
        [] => Ok(false),
        [(family, address)] => change(*family, *address),
        several => thread::scope(|scope| {
            let change = &change;
            let threads: Vec<_> = several
                .iter()
                .map(|(family, address)| scope.spawn(move || change(*family, *address)))
                .collect();
            join(threads)
        }),
    }
}

/// Runs `change` for both families of both backends that are installed. A kernel without IPv6 has no rules there.
fn everywhere(
    configured: Backend,
    change: impl Fn(Backend, Family) -> Result<bool, FirewallError> + Sync,
) -> Result<bool, FirewallError> {
    thread::scope(|scope| {
        let change = &change;
        let mut threads = Vec::new();
        for backend in [Backend::Iptables, Backend::Nftables] {
            for family in Family::BOTH {
                let is_there = match backend {
                    Backend::Iptables => family.is_installed(),
                    Backend::Nftables => backend.is_installed(),
                };
                if is_there {
                    threads.push(scope.spawn(move || {
                        let changed = change(backend, family);
                        if backend == configured {
                            changed
                        } else {
                            backend.forgive(changed)
                        }
                    }));
                }
            }
        }
        join(threads)
    })
}

fn join(
    threads: Vec<thread::ScopedJoinHandle<'_, Result<bool, FirewallError>>>,
) -> Result<bool, FirewallError> {
    let mut found = Ok(false);
    for thread in threads {
        let result = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        found = match (found, result) {
            (Ok(one), Ok(other)) => Ok(one | other),
            (Err(first), _) => Err(first),
            (Ok(_), Err(error)) => Err(error),
        };
    }
    found
}

/// A client that keeps sending from one port would be led by its old entry for ever, since UDP knows no end. That it
/// still is for a while is no reason to fail.
fn forget_connections(config: &Config, addresses: &[(Family, IpNetwork)]) {
    for (family, _) in addresses {
        let udp = config
            .mappings(*family)
            .filter(|mapping| mapping.protocol == Protocol::Udp);
        let ports: Vec<u16> = udp.map(|mapping| mapping.host_port).collect();
        if !ports.is_empty() {
            let is_stale = |flow: &UdpFlow| ports.contains(&flow.destination.port());
            firewall::delete_udp_flows(*family, is_stale).ok();
        }
    }
}
