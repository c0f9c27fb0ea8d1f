//! What one Service needs in the tables. Pure.

use std::collections::BTreeMap;

use skiff_ebpf_loader::{Backend, DesiredTables, Frontend, FrontendSpec, Protocol, SetId};

use crate::{
    objects::{EndpointInfo, PortInfo, ServiceInfo, ServiceName, SliceInfo},
    tracker::Tracker,
};

/// The tables' share of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its backend sets.
    pub sets: Vec<(SetId, Vec<Backend>)>,
    /// Its frontends.
    pub frontends: Vec<(Frontend, FrontendSpec)>,
}

/// Plans one Service.
pub fn plan_service<'a>(
    name: &ServiceName,
    service: &ServiceInfo,
    slices: impl Iterator<Item = &'a SliceInfo> + Clone,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    for port in &service.ports {
        plan_port(&mut plan, name, service, port, slices.clone());
    }
    plan
}

fn plan_port<'a>(
    plan: &mut ServicePlan,
    name: &ServiceName,
    service: &ServiceInfo,
    port: &PortInfo,
    slices: impl Iterator<Item = &'a SliceInfo>,
) {
    let endpoints = endpoints_of(service, port, slices);
    let set = set_id(name, port, "cluster");
    plan.sets.push((set, usable(endpoints.iter())));
    let local_set = (service.internal_local || service.external_local).then(|| {
        let local = set_id(name, port, "local");
        plan.sets
            .push((local, usable(endpoints.iter().filter(|(_, e)| e.local))));
        local
    });
    let spec = |local_set, local_only| FrontendSpec {
        set,
        local_set,
        local_only,
        affinity_seconds: service.affinity_seconds,
    };
    let internal = spec(
        local_set.filter(|_| service.internal_local),
        service.internal_local,
    );
    // Clients in the cluster reach external addresses by all backends, as with upstream's proxy:
    // `externalTrafficPolicy: Local` is about clients outside, whose path uses the local set.
    let external = spec(local_set.filter(|_| service.external_local), false);
    let protocol = port.protocol;
    let at = |addr| Frontend::Address {
        addr,
        port: port.port,
        protocol,
    };
    let v4 = |addr: &&std::net::IpAddr| addr.is_ipv4();
    for addr in service.cluster_ips.iter().filter(v4) {
        plan.frontends.push((at(*addr), internal));
    }
    for addr in service.external_ips.iter().filter(v4) {
        plan.frontends.push((at(*addr), external));
    }
    if let Some(node_port) = port.node_port {
        plan.frontends.push((
            Frontend::NodePort {
                port: node_port,
                protocol,
            },
            external,
        ));
    }
}

fn set_id(name: &ServiceName, port: &PortInfo, scope: &str) -> SetId {
    let protocol = match port.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    SetId::of(&[&name.namespace, &name.name, &port.name, protocol, scope])
}

/// The endpoints of one port, each once: an endpoint may be in two slices while it moves from one to the other.
fn endpoints_of<'a>(
    service: &ServiceInfo,
    port: &PortInfo,
    slices: impl Iterator<Item = &'a SliceInfo>,
) -> Vec<(u16, EndpointInfo)> {
    let mut all = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter();
        for target in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let mut endpoint = endpoint.clone();
                endpoint.ready |= service.publish_not_ready;
                let known = all
                    .entry((endpoint.addr, target.port))
                    .or_insert(endpoint.clone());
                if endpoint.ready && !known.ready {
                    *known = endpoint;
                }
            }
        }
    }
    all.into_iter()
        .map(|((_, port), endpoint)| (port, endpoint))
        .collect()
}

/// The ready ones; if there is none, those that are terminating but still serve.
fn usable<'a>(endpoints: impl Iterator<Item = &'a (u16, EndpointInfo)> + Clone) -> Vec<Backend> {
    let backend = |(port, endpoint): &(u16, EndpointInfo), terminating| Backend {
        addr: endpoint.addr,
        port: *port,
        local: endpoint.local,
        terminating,
    };
    let ready = endpoints.clone().filter(|(_, e)| e.ready);
    let ready: Vec<Backend> = ready.map(|endpoint| backend(endpoint, false)).collect();
    if !ready.is_empty() {
        return ready;
    }
    let last = endpoints.filter(|(_, e)| e.serving && e.terminating);
    last.map(|endpoint| backend(endpoint, true)).collect()
}

/// The whole tables for these objects.
pub fn plan_tables<'a>(
    services: impl IntoIterator<Item = (&'a ServiceName, &'a ServiceInfo)>,
    slices: impl IntoIterator<Item = (&'a str, &'a SliceInfo)>,
) -> DesiredTables {
    let mut tracker = Tracker::default();
    for (name, service) in services {
        tracker.set_service(name.clone(), Some(service.clone()));
    }
    for (name, slice) in slices {
        tracker.set_slice(&slice.service.namespace, name, Some(slice.clone()));
    }
    tracker.into_desired()
}

#[cfg(test)]
mod tests;
