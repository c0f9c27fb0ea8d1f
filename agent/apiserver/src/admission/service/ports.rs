//! NodePorts, and the port for a load balancer's health checks.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;

use super::{Held, PORT_PREFIX, RANDOM_PICKS, invalid, port_key, ports, taken};
use crate::failure::Failure;
use crate::object::{self, at, meta, random_below, text};
use crate::server::Core;

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
pub(super) async fn fill(core: &Core, before: &Held, service: &mut Value) -> Result<(), Failure> {
    let mut taken = Held::by(service).ports;
    taken.extend(&before.ports);
    if wants_node_ports(service) {
        fill_ports(core, &mut taken, service).await?;
    }
    // Also without NodePorts: the nodes tell the load balancer whether they have endpoints.
    let local = text(service, &["spec", "externalTrafficPolicy"]) == "Local";
    let balancer = text(service, &["spec", "type"]) == "LoadBalancer";
    let has_check = at(service, &["spec", "healthCheckNodePort"])
        .and_then(Value::as_u64)
        .unwrap_or_default()
        != 0;
    if local && balancer && !has_check {
        let port = free(core, service, &mut taken).await?;
        object::section(service, "spec").insert("healthCheckNodePort".to_owned(), port.into());
    }
    Ok(())
}

async fn fill_ports(
    core: &Core,
    taken: &mut BTreeSet<u16>,
    service: &mut Value,
) -> Result<(), Failure> {
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
            None => json!(free(core, service, taken).await?),
        };
        if let Some(port) = list[index].as_object_mut() {
            port.insert("nodePort".to_owned(), node_port);
        }
    }
    object::section(service, "spec").insert("ports".to_owned(), list.into());
    Ok(())
}

/// Refuses a port that is not to be had.
pub(super) async fn check(
    core: &Core,
    service: &Value,
    port: u16,
    key: &str,
) -> Result<(), Failure> {
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
        return Err(invalid(service, &[FieldError::invalid(field, port, why)]));
    }
    if core.store.get(key).await?.0.is_some() {
        let why = "provided port is already allocated";
        return Err(invalid(service, &[FieldError::invalid(field, port, why)]));
    }
    Ok(())
}

async fn free(core: &Core, service: &Value, mine: &mut BTreeSet<u16>) -> Result<u16, Failure> {
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
