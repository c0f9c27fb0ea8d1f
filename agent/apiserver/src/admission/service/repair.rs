//! Allocations rebuilt from the Services, at start: an allocation that was lost would be given out twice, one that
//! nobody holds never again.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;
use skiff_api::resource::{Kind, Registry};
use skiff_storage::{Op, Precondition, StorageError, Txn};

use super::{Held, IP_PREFIX, PORT_PREFIX, ip_key, owner, port_key};
use crate::object::meta;
use crate::server::Core;

/// Makes the allocations fit the Services that are stored.
///
/// # Errors
/// [`StorageError`] if the store fails.
pub(crate) async fn repair(core: &Core) -> Result<(), StorageError> {
    let prefix = Registry::of(Kind::Service).map_or("", |resource| resource.storage_prefix);
    let services = core.store.list(prefix, None, 0).await?;
    let services = services.items.iter();
    let services: Vec<Value> = services
        .filter_map(|kv| serde_json::from_slice(&kv.value).ok())
        .collect();
    let mut have = BTreeMap::new();
    for prefix in [IP_PREFIX, PORT_PREFIX] {
        for kv in core.store.list(prefix, None, 0).await?.items {
            have.insert(kv.key, (kv.value, kv.mod_revision));
        }
    }
    let wanted = wanted(services);
    for (key, owner) in &wanted {
        let found = have.remove(key);
        if found.as_ref().is_some_and(|(value, _)| value == owner) {
            continue;
        }
        tracing::warn!(key, ?owner, "an allocation was not noted");
        let precondition = match found {
            Some((_, revision)) => Precondition::Unchanged(key.clone(), revision),
            None => Precondition::Absent(key.clone()),
        };
        let op = Op::Put {
            key: key.clone(),
            value: owner.clone(),
        };
        write(core, precondition, op).await?;
    }
    for (key, (_, revision)) in have {
        tracing::warn!(key, "an allocation that no Service holds");
        let precondition = Precondition::Unchanged(key.clone(), revision);
        write(core, precondition, Op::Delete { key }).await?;
    }
    Ok(())
}

/// A conflict means that somebody else has just written it, who knows better.
async fn write(core: &Core, precondition: Precondition, op: Op) -> Result<(), StorageError> {
    let txn = Txn {
        preconditions: vec![precondition],
        ops: vec![op],
    };
    core.store.txn(txn).await.map(drop)
}

/// The keys that ought to be, and whose they are. What two Services have is the older one's.
fn wanted(mut services: Vec<Value>) -> BTreeMap<String, Bytes> {
    services.sort_by_key(|service| meta(service, "creationTimestamp").to_owned());
    let mut wanted = BTreeMap::new();
    for service in &services {
        let held = Held::by(service);
        let ips = held.ips.iter().map(|ip| ip_key(ip));
        for key in ips.chain(held.ports.iter().map(|port| port_key(*port))) {
            let owner = owner(service);
            let first = wanted.entry(key).or_insert_with(|| owner.clone());
            if *first != owner {
                tracing::warn!(?first, second = ?owner, "two Services have one address or port");
            }
        }
    }
    wanted
}
