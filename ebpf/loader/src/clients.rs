//! What sockets send from, by their network namespace.
//!
//! A socket that connects has no address yet. Frontends that are not for everybody judge it by the address of its network
//! namespace, which only the user side can find out. The programs tell of a namespace that they do not know, and refuse it until
//! they do.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use skiff_ebpf_common::{Addr, Client, maps};

use crate::{DatapathError, sys::HashTable, tables::addr_of};

/// The addresses of network namespaces.
pub struct ClientTable {
    clients: HashTable<u64, Client>,
    unknown: RingBuf<MapData>,
}

impl std::fmt::Debug for ClientTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTable").finish_non_exhaustive()
    }
}

impl ClientTable {
    pub(crate) fn open(maps_dir: &Path) -> Result<Self, DatapathError> {
        let unknown = MapData::from_pin(maps_dir.join(maps::NEW_CLIENTS))
            .and_then(|data| RingBuf::try_from(Map::RingBuf(data)))
            .map_err(DatapathError::Trace)?;
        Ok(Self {
            clients: HashTable::open(maps_dir, maps::CLIENTS)?,
            unknown,
        })
    }

    /// Readable while a namespace was asked for that was not known.
    ///
    /// # Errors
    /// [`DatapathError`] if there are too many open files.
    pub fn asked(&self) -> Result<OwnedFd, DatapathError> {
        let cloned = self.unknown.as_fd().try_clone_to_owned();
        cloned.map_err(|error| DatapathError::io("waiting for", maps::NEW_CLIENTS, error))
    }

    /// Forgets who was asked for.
    pub fn clear_unknown(&mut self) {
        while self.unknown.next().is_some() {}
    }

    /// These are all the namespaces there are, by their cookies, with the addresses that each sends from.
    ///
    /// # Errors
    /// [`DatapathError`] if the table cannot be read or written.
    pub fn set(&self, all: &HashMap<u64, Vec<IpAddr>>) -> Result<(), DatapathError> {
        let have: HashMap<u64, Client> = self.clients.entries()?.into_iter().collect();
        let gone: Vec<u64> = have
            .keys()
            .filter(|netns| !all.contains_key(netns))
            .copied()
            .collect();
        self.clients.remove(&gone)?;
        for (netns, addrs) in all {
            let first = |v4: bool| {
                addrs
                    .iter()
                    .copied()
                    .map(addr_of)
                    .find(|addr| addr.is_v4() == v4)
            };
            let client = Client {
                v4: first(true).unwrap_or(Addr::ANY_V4),
                v6: first(false).unwrap_or(Addr::ANY_V6),
            };
            if have.get(netns) != Some(&client) {
                self.clients.set(*netns, client)?;
            }
        }
        Ok(())
    }
}

/// The calling thread's network namespace: its cookie, and the addresses that its sockets send from beyond it.
///
/// # Errors
/// [`io::Error`] if they cannot be had.
pub fn netns_client() -> io::Result<(u64, Vec<IpAddr>)> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|link| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    let is_own = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    Ok((crate::netns_cookie()?, addresses.filter(is_own).collect()))
}
