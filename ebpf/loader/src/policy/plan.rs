//! What is written to the tables of identities, and when. Pure.

use std::net::IpAddr;

use super::{PolicyChange, PolicyTables, Prefix};

/// The identities of one entry: that of the state in force and that of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) now: u32,
    pub(super) next: u32,
}

/// The writes of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Entries to be written.
    pub(super) addrs: Vec<(IpAddr, Pair)>,
    /// The same of prefixes.
    pub(super) prefixes: Vec<(Prefix, Pair)>,
    /// Whether the next state must be put in force as a whole.
    pub(super) switch: bool,
}

/// Plans a change, and makes it in `tables`.
pub(super) fn plan(tables: &mut PolicyTables, change: &PolicyChange) -> Plan {
    let addrs = change.ids.iter().map(|(addr, _)| *addr);
    let addrs: Vec<(IpAddr, Option<u32>)> = addrs
        .map(|addr| {
            (
                addr,
                (!change.fresh.contains(&addr)).then(|| tables.id(addr)),
            )
        })
        .collect();
    let prefixes = change.cidrs.iter().map(|(prefix, _)| *prefix);
    let prefixes: Vec<(Prefix, u32)> = prefixes
        .map(|prefix| (prefix, tables.prefix_id(prefix)))
        .collect();
    tables.make(change);
    let addrs: Vec<(IpAddr, Pair)> = (addrs.into_iter())
        .map(|(addr, now)| {
            let next = tables.id(addr);
            let now = now.unwrap_or(next);
            (addr, Pair { now, next })
        })
        .collect();
    let prefixes: Vec<(Prefix, Pair)> = (prefixes.into_iter())
        .map(|(prefix, now)| {
            let next = tables.prefix_id(prefix);
            (prefix, Pair { now, next })
        })
        .collect();
    let moves = (addrs.iter().map(|(_, pair)| pair))
        .chain(prefixes.iter().map(|(_, pair)| pair))
        .filter(|pair| pair.now != pair.next)
        .count();
    Plan {
        addrs,
        prefixes,
        switch: moves > 1,
    }
}
