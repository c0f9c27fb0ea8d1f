//! Bringing the tables to what the rules should be: one process for each family if all is as expected.

use std::{collections::HashSet, net::IpAddr, thread};

use skiff_cni::{
    firewall::{Batch, Family, FirewallError, Owner, Table, change, restore, save},
    skel::{Call, Target},
    types::{CniError, ContainerId},
};

use super::{
    differs, refused,
    rules::{Layout, TABLE, plan_delete},
};

/// Plans with a look at the table.
fn look_and_apply(family: Family, plan: impl Fn(&Table) -> Batch) -> Result<(), FirewallError> {
    change(family, TABLE, &[], plan).map(drop)
}

/// Runs `f` for the families, which have tables of their own, at once.
fn for_each<T: Send>(families: &[Family], f: impl Fn(Family) -> T + Sync) -> Vec<T> {
    match families {
        [] => Vec::new(),
        [one] => vec![f(*one)],
        many => thread::scope(|scope| {
            let threads: Vec<_> = many
                .iter()
                .map(|family| scope.spawn(|| f(*family)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, T>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        }),
    }
}

fn families(addresses: &[IpAddr]) -> Vec<Family> {
    Family::BOTH
        .into_iter()
        .filter(|family| addresses.iter().any(|ip| Family::of(*ip) == *family))
        .collect()
}

fn of_family(addresses: &[IpAddr], family: Family) -> Vec<IpAddr> {
    let of = |ip: &&IpAddr| Family::of(**ip) == family;
    addresses.iter().filter(of).copied().collect()
}

fn join(results: Vec<Result<(), CniError>>) -> Result<(), CniError> {
    CniError::join(results.into_iter().filter_map(Result::err).collect())
}

pub(super) fn add(
    layout: &Layout,
    addresses: &[IpAddr],
    call: &Call,
    target: &Target,
) -> Result<(), CniError> {
    if layout.is_empty() {
        return Ok(());
    }
    let owner = Owner::comment(&call.conf.name, &target.container_id);
    let added = for_each(&families(addresses), |family| {
        let addresses = of_family(addresses, family);
        match restore(family, &layout.expect_and_append(&addresses, &owner)) {
            Err(error) if error.is_refusal() => {
                look_and_apply(family, |table| layout.plan_add(table, &addresses, &owner))
            }
            added => added,
        }
        .map_err(refused("cannot let the container's packets through"))
    });
    let added = join(added);
    if added.is_err() {
        // The first error is the one to report.
        delete(addresses, call, target).ok();
    }
    added
}

pub(super) fn delete(known: &[IpAddr], call: &Call, target: &Target) -> Result<(), CniError> {
    delete_where(known, |owner| {
        owner.is_network(&call.conf.name) && owner.is_container(&target.container_id)
    })
}

/// Deletes the rules of this network's containers that are not valid any more.
pub(super) fn sweep(call: &Call) -> Result<(), CniError> {
    let keys = call.conf.valid_attachments.iter().flatten();
    let valid: HashSet<&ContainerId> = keys.map(|key| &key.container_id).collect();
    delete_where(&[], |owner| {
        owner.is_network(&call.conf.name) && !valid.iter().any(|id| owner.is_container(id))
    })
}

fn delete_where(
    known: &[IpAddr],
    is_doomed: impl Fn(&Owner<'_>) -> bool + Sync,
) -> Result<(), CniError> {
    let mut wanted = families(known);
    if wanted.is_empty() {
        wanted.extend(Family::BOTH);
    }
    // A family without programs has no rules.
    wanted.retain(|family| family.is_installed());
    join(for_each(&wanted, |family| {
        let known = of_family(known, family);
        let deleted = look_and_apply(family, |table| plan_delete(table, &known, &is_doomed));
        match deleted {
            // A kernel without IPv6 has programs that cannot do anything, and no rules.
            Err(error) if error.is_refusal() && family == Family::V6 && known.is_empty() => Ok(()),
            deleted => deleted.map_err(refused("cannot remove the container's rules")),
        }
    }))
}

pub(super) fn check(layout: &Layout, addresses: &[IpAddr]) -> Result<(), CniError> {
    if layout.is_empty() {
        return Ok(());
    }
    join(for_each(&families(addresses), |family| {
        let table = save(family, TABLE).map_err(refused("cannot read the rules"))?;
        match layout.missing(&table, &of_family(addresses, family)) {
            Some(missing) => Err(differs(missing)),
            None => Ok(()),
        }
    }))
}
