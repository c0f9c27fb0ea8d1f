//! Allocation of ClusterIPs and NodePorts. An allocation is a key of its own, written in the transaction of
//! its Service: two Services cannot get the same, and none outlives its Service.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use skiff_api::resource::GroupKind;
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;
use skiff_storage::{Op, Precondition, Txn};

use crate::failure::Failure;
use crate::object::{self, at, meta, random_below, text};
use crate::server::Core;

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
    plan_ip(core, new).await?;
    plan_ports(core, &before, new).await?;
    let after = Held::by(new);
    let owner = Bytes::from(format!("{}/{}", meta(new, "namespace"), meta(new, "name")));
    for ip in after.ips.difference(&before.ips) {
        let key = ip_key(ip);
        check_ip(core, new, ip, &key).await?;
        txn.preconditions.push(Precondition::Absent(key.clone()));
        txn.ops.push(Op::Put {
            key,
            value: owner.clone(),
        });
    }
    for port in after.ports.difference(&before.ports) {
        let key = port_key(*port);
        check_port(core, new, *port, &key).await?;
        txn.preconditions.push(Precondition::Absent(key.clone()));
        txn.ops.push(Op::Put {
            key,
            value: owner.clone(),
        });
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

fn invalid(service: &Value, error: FieldError) -> Failure {
    let kind = GroupKind {
        group: "",
        kind: "Service",
    };
    ApiStatus::invalid(kind, meta(service, "name"), &[error]).into()
}

async fn check_ip(core: &Core, service: &Value, ip: &str, key: &str) -> Result<(), Failure> {
    let refuse = |why: String| {
        let why = format!("failed to allocate IP {ip}: {why}");
        Err(invalid(
            service,
            FieldError::invalid("spec.clusterIPs", json!([ip]), why),
        ))
    };
    let cidr = core.options.service_cidr;
    let inside = ip
        .parse::<IpAddr>()
        .is_ok_and(|ip| cidr.contains(ip) && is_usable(cidr, ip));
    if !inside {
        return refuse(format!(
            "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}"
        ));
    }
    if core.store.get(key).await?.0.is_some() {
        return refuse("provided IP is already allocated".to_owned());
    }
    Ok(())
}

async fn check_port(core: &Core, service: &Value, port: u16, key: &str) -> Result<(), Failure> {
    let index = ports(service)
        .iter()
        .position(|p| p.get("nodePort") == Some(&json!(port)));
    let field = match index {
        Some(index) => format!("spec.ports[{index}].nodePort"),
        None => "spec.healthCheckNodePort".to_owned(),
    };
    let range = &core.options.node_port_range;
    if !range.contains(&port) {
        let why = format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            range.start(),
            range.end()
        );
        return Err(invalid(service, FieldError::invalid(field, port, why)));
    }
    if core.store.get(key).await?.0.is_some() {
        let why = "provided port is already allocated";
        return Err(invalid(service, FieldError::invalid(field, port, why)));
    }
    Ok(())
}

/// Gives a Service that needs one a free ClusterIP.
async fn plan_ip(core: &Core, service: &mut Value) -> Result<(), Failure> {
    if text(service, &["spec", "type"]) == "ExternalName" {
        return Ok(());
    }
    let mut ip = text(service, &["spec", "clusterIP"]).to_owned();
    if ip.is_empty() {
        ip = free_ip(core, service).await?.to_string();
    }
    let spec = object::section(service, "spec");
    spec.insert("clusterIP".to_owned(), ip.clone().into());
    let list = spec.get("clusterIPs").and_then(Value::as_array);
    if list.is_none_or(Vec::is_empty) {
        spec.insert("clusterIPs".to_owned(), json!([ip]));
    }
    Ok(())
}

fn wants_node_ports(service: &Value) -> bool {
    match text(service, &["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => {
            at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

/// Gives every port that needs one a free NodePort. Ports that differ in protocol alone share one.
async fn plan_ports(core: &Core, before: &Held, service: &mut Value) -> Result<(), Failure> {
    if !wants_node_ports(service) {
        return Ok(());
    }
    let mut taken = Held::by(service).ports;
    taken.extend(&before.ports);
    let mut list = ports(service).to_vec();
    for index in 0..list.len() {
        if list[index]
            .get("nodePort")
            .and_then(Value::as_u64)
            .unwrap_or_default()
            != 0
        {
            continue;
        }
        let (port, protocol) = (
            list[index].get("port").cloned(),
            list[index].get("protocol").cloned(),
        );
        let sibling = list.iter().find_map(|other| {
            let shares =
                other.get("port") == port.as_ref() && other.get("protocol") != protocol.as_ref();
            other
                .get("nodePort")
                .filter(|p| shares && p.as_u64() != Some(0))
                .cloned()
        });
        let node_port = match sibling {
            Some(node_port) => node_port,
            None => json!(free_port(core, service, &mut taken).await?),
        };
        if let Some(port) = list[index].as_object_mut() {
            port.insert("nodePort".to_owned(), node_port);
        }
    }
    let local = text(service, &["spec", "externalTrafficPolicy"]) == "Local";
    let balancer = text(service, &["spec", "type"]) == "LoadBalancer";
    let has_check = at(service, &["spec", "healthCheckNodePort"])
        .and_then(Value::as_u64)
        .unwrap_or_default()
        != 0;
    if local && balancer && !has_check {
        let port = free_port(core, service, &mut taken).await?;
        object::section(service, "spec").insert("healthCheckNodePort".to_owned(), port.into());
    }
    object::section(service, "spec").insert("ports".to_owned(), list.into());
    Ok(())
}

/// Network and broadcast addresses are not handed out.
fn is_usable(cidr: IpNetwork, ip: IpAddr) -> bool {
    match cidr {
        IpNetwork::V4(cidr) => ip != cidr.network() && ip != cidr.broadcast(),
        IpNetwork::V6(cidr) => ip != cidr.network(),
    }
}

fn size(cidr: IpNetwork) -> u64 {
    match cidr {
        IpNetwork::V4(cidr) => u64::from(cidr.size()),
        IpNetwork::V6(cidr) => u64::try_from(cidr.size()).unwrap_or(u64::MAX).min(1 << 20),
    }
}

fn nth(cidr: IpNetwork, offset: u64) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).unwrap_or_default();
            Ipv4Addr::from(u32::from(base).wrapping_add(offset)).into()
        }
        IpAddr::V6(base) => {
            Ipv6Addr::from(u128::from(base).wrapping_add(u128::from(offset))).into()
        }
    }
}

/// The lower part of a range is for addresses that somebody asks for by number, as upstream splits it.
fn static_band(size: u64) -> u64 {
    if size <= 16 {
        0
    } else {
        (size / 16).clamp(16, 256)
    }
}

async fn free_ip(core: &Core, service: &Value) -> Result<IpAddr, Failure> {
    let cidr = core.options.service_cidr;
    let size = size(cidr);
    let band = static_band(size);
    let usable = |offset: &u64| is_usable(cidr, nth(cidr, *offset));
    for _ in 0..RANDOM_PICKS {
        let offset = band + random_below(size - band);
        let ip = nth(cidr, offset);
        if usable(&offset) && core.store.get(&ip_key(&ip.to_string())).await?.0.is_none() {
            return Ok(ip);
        }
    }
    let taken = taken(core, IP_PREFIX).await?;
    (band..size)
        .chain(0..band)
        .filter(usable)
        .map(|offset| nth(cidr, offset))
        .find(|ip| !taken.contains(&ip.to_string()))
        .ok_or_else(|| {
            let why = "failed to allocate a serviceIP: range is full";
            ApiStatus::internal(format!("{}: {why}", meta(service, "name"))).into()
        })
}

async fn free_port(core: &Core, service: &Value, mine: &mut BTreeSet<u16>) -> Result<u16, Failure> {
    let range = &core.options.node_port_range;
    let size = u64::from(range.end().saturating_sub(*range.start())) + 1;
    let band = if size <= 16 {
        0
    } else {
        (size / 32).clamp(16, 128)
    };
    let port = |offset: u64| range.start() + u16::try_from(offset).unwrap_or_default();
    for _ in 0..RANDOM_PICKS {
        let port = port(band + random_below(size - band));
        if !mine.contains(&port) && core.store.get(&port_key(port)).await?.0.is_none() {
            mine.insert(port);
            return Ok(port);
        }
    }
    let taken = taken(core, PORT_PREFIX).await?;
    let found = (band..size)
        .chain(0..band)
        .map(port)
        .find(|port| !mine.contains(port) && !taken.contains(&port.to_string()));
    let found = found.ok_or_else(|| {
        let why = "failed to allocate a nodePort: range is full";
        Failure::from(ApiStatus::internal(format!(
            "{}: {why}",
            meta(service, "name")
        )))
    })?;
    mine.insert(found);
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_holds_addresses_and_ports() {
        let service = json!({"spec": {
            "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
            "ports": [{"nodePort": 30001}, {"nodePort": 30001}, {"port": 80}],
            "healthCheckNodePort": 30002,
        }});
        let held = Held::by(&service);
        assert_eq!(held.ips.len(), 1);
        assert_eq!(held.ports, BTreeSet::from([30001, 30002]));
        assert_eq!(release_all(&service).len(), 3);
        assert_eq!(
            Held::by(&json!({"spec": {"clusterIP": "None"}})),
            Held::default()
        );
    }

    #[test]
    fn the_edges_of_a_range_are_not_handed_out() {
        let cidr: IpNetwork = "10.96.0.0/29".parse().unwrap();
        let usable: Vec<_> = (0..size(cidr))
            .filter(|o| is_usable(cidr, nth(cidr, *o)))
            .collect();
        assert_eq!(usable, [1, 2, 3, 4, 5, 6]);
        assert_eq!(static_band(65536), 256);
        assert_eq!(static_band(16), 0);
    }
}
