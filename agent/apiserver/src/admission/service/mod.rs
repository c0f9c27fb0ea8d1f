//! Allocation of ClusterIPs and NodePorts, and the families of a Service. An allocation is a key of its own, written in the transaction of
//! its Service: two Services cannot get the same, and none outlives its Service.

mod addresses;
mod families;
mod ports;
mod repair;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::Value;
use skiff_api::resource::GroupKind;
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;
use skiff_storage::{Op, Precondition, Txn};

use crate::failure::Failure;
use crate::object::{at, meta, text};
use crate::server::Core;

pub(crate) use repair::repair;

const IP_PREFIX: &str = "/registry/allocations/clusterips/";
const PORT_PREFIX: &str = "/registry/allocations/nodeports/";
/// Random picks before the range is searched in order.
const RANDOM_PICKS: usize = 16;

/// What a Service holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    ips: BTreeSet<String>,
    ports: BTreeSet<u16>,
}

impl Held {
    fn by(service: &Value) -> Self {
        let list = at(service, &["spec", "clusterIPs"]).and_then(Value::as_array);
        let ips = list
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .chain([text(service, &["spec", "clusterIP"])])
            .filter(|ip| !ip.is_empty() && *ip != "None")
            .map(str::to_owned)
            .collect();
        let ports = ports(service)
            .iter()
            .filter_map(|port| port.get("nodePort"));
        let ports = ports
            .chain(at(service, &["spec", "healthCheckNodePort"]))
            .filter_map(|port| u16::try_from(port.as_u64()?).ok())
            .filter(|port| *port != 0)
            .collect();
        Self { ips, ports }
    }
}

fn ports(service: &Value) -> &[Value] {
    at(service, &["spec", "ports"])
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn ip_key(ip: &str) -> String {
    format!("{IP_PREFIX}{ip}")
}

fn port_key(port: u16) -> String {
    format!("{PORT_PREFIX}{port}")
}

/// The changes that give back everything a Service holds.
pub(crate) fn release_all(service: &Value) -> Vec<Op> {
    let held = Held::by(service);
    let ips = held.ips.iter().map(|ip| Op::Delete { key: ip_key(ip) });
    ips.chain(held.ports.iter().map(|port| Op::Delete {
        key: port_key(*port),
    }))
    .collect()
}

/// Fills in what a Service needs, and puts into `txn` what it takes and gives back.
pub(crate) async fn plan(
    core: &Core,
    old: Option<&Value>,
    new: &mut Value,
    txn: &mut Txn,
) -> Result<(), Failure> {
    let before = old.map(Held::by).unwrap_or_default();
    let ranges = &core.options.service_cidrs;
    families::settle(ranges, old, new).map_err(|errors| invalid(new, &errors))?;
    addresses::fill(core, new).await?;
    ports::fill(core, &before, new).await?;
    let after = Held::by(new);
    let owner = owner(new);
    for ip in after.ips.difference(&before.ips) {
        let key = ip_key(ip);
        addresses::check(core, new, ip, &key).await?;
        take(txn, key, &owner);
    }
    for port in after.ports.difference(&before.ports) {
        let key = port_key(*port);
        ports::check(core, new, *port, &key).await?;
        take(txn, key, &owner);
    }
    let ips = before.ips.difference(&after.ips).map(|ip| ip_key(ip));
    let ports = before
        .ports
        .difference(&after.ports)
        .map(|port| port_key(*port));
    txn.ops
        .extend(ips.chain(ports).map(|key| Op::Delete { key }));
    Ok(())
}

/// What the key of an allocation holds: whose it is.
fn owner(service: &Value) -> Bytes {
    format!("{}/{}", meta(service, "namespace"), meta(service, "name")).into()
}

fn take(txn: &mut Txn, key: String, owner: &Bytes) {
    txn.preconditions.push(Precondition::Absent(key.clone()));
    txn.ops.push(Op::Put {
        key,
        value: owner.clone(),
    });
}

fn invalid(service: &Value, errors: &[FieldError]) -> Failure {
    let kind = GroupKind {
        group: "",
        kind: "Service",
    };
    ApiStatus::invalid(kind, meta(service, "name"), errors).into()
}

async fn taken(core: &Core, prefix: &str) -> Result<BTreeSet<String>, Failure> {
    let listing = core.store.list(prefix, None, 0).await?;
    let name = |key: &str| key.strip_prefix(prefix).map(str::to_owned);
    Ok(listing
        .items
        .iter()
        .filter_map(|kv| name(&kv.key))
        .collect())
}
