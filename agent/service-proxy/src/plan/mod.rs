//! What one Service needs in the tables. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use skiff_ebpf_loader::{
    Backend, DesiredTables, Frontend, FrontendSpec, IpFamily, Prefix, Protocol, SetId,
};

use crate::{
    objects::{EndpointInfo, Hints, PortInfo, ServiceInfo, ServiceName, SliceInfo},
    tracker::Tracker,
};

/// The tables' share of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its backend sets.
    pub sets: Vec<(SetId, Vec<Backend>)>,
    /// Its frontends.
    pub frontends: Vec<(Frontend, FrontendSpec)>,
    /// Its backends that are on their way out and still serve, as far as connections to others are ended: clients that have
    /// one keep it.
    pub draining: Vec<SocketAddr>,
    /// What load balancers are told, if they may ask.
    pub health: Option<HealthCheck>,
}

/// A port on which load balancers ask whether to send connections of a Service to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// Plans one Service, for a node in that zone.
pub fn plan_service<'a>(
    name: &ServiceName,
    service: &ServiceInfo,
    slices: impl Iterator<Item = &'a SliceInfo> + Clone,
    zone: Option<&str>,
) -> ServicePlan {
    let mut plan = ServicePlan {
        health: service.health_port.map(|port| HealthCheck {
            port,
            local_endpoints: local_endpoints(slices.clone()),
        }),
        ..ServicePlan::default()
    };
    for port in &service.ports {
        plan_port(&mut plan, name, service, port, (slices.clone(), zone));
    }
    plan
}

/// The addresses, not their ports: an endpoint with two ports is one.
fn local_endpoints<'a>(slices: impl Iterator<Item = &'a SliceInfo>) -> usize {
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|endpoint| endpoint.ready && endpoint.local);
    local
        .map(|endpoint| endpoint.addr)
        .collect::<BTreeSet<_>>()
        .len()
}

fn plan_port<'a>(
    plan: &mut ServicePlan,
    name: &ServiceName,
    service: &ServiceInfo,
    port: &PortInfo,
    (slices, zone): (impl Iterator<Item = &'a SliceInfo>, Option<&str>),
) {
    let endpoints = endpoints_of(port, slices);
    if port.protocol == Protocol::Udp || service.ends_streams {
        let draining = endpoints.iter().filter(|(_, e)| e.serving && e.terminating);
        let draining = draining.map(|(port, e)| SocketAddr::new(e.addr, *port));
        plan.draining.extend(draining);
    }
    for family in [IpFamily::V4, IpFamily::V6] {
        if service
            .cluster_ips
            .iter()
            .any(|ip| IpFamily::of(*ip) == family)
        {
            let endpoints = endpoints
                .iter()
                .filter(|(_, e)| IpFamily::of(e.addr) == family);
            plan_family(plan, name, service, port, (family, endpoints, zone));
        }
    }
}

/// The sets and frontends of a port for one family of addresses. A Service is of a family if it has such a ClusterIP.
fn plan_family<'a>(
    plan: &mut ServicePlan,
    name: &ServiceName,
    service: &ServiceInfo,
    port: &PortInfo,
    (family, endpoints, zone): (
        IpFamily,
        impl Iterator<Item = &'a (u16, EndpointInfo)> + Clone,
        Option<&str>,
    ),
) {
    let near = Reach::of(endpoints.clone(), zone);
    let all = usable(endpoints.clone(), near);
    let local = || usable(endpoints.clone().filter(|(_, e)| e.local), Reach::Any);
    let set = set_id(name, port, family, "cluster");
    let internal_set = if service.internal_local {
        set_id(name, port, family, "local")
    } else {
        set
    };
    let mut exposed_ips = service.external_ips.iter().chain(&service.balancer_ips);
    let is_exposed = port.node_port.is_some() || exposed_ips.any(|ip| IpFamily::of(*ip) == family);
    let outside = is_exposed.then(|| outside_set_id(name, port, family));
    let exposed = outside.map(|outside| {
        let members = if service.external_local {
            local()
        } else {
            all.clone()
        };
        (outside, members)
    });
    plan.sets.push((set, all));
    if service.internal_local {
        plan.sets.push((internal_set, local()));
    }
    plan.sets.extend(exposed);
    let sets = (internal_set, set, outside);
    plan_frontends(plan, service, port, family, sets);
}

/// The frontends, with the sets for ClusterIPs, for other addresses, and for clients outside.
fn plan_frontends(
    plan: &mut ServicePlan,
    service: &ServiceInfo,
    port: &PortInfo,
    family: IpFamily,
    (internal, external, outside): (SetId, SetId, Option<SetId>),
) {
    let protocol = port.protocol;
    let internal = FrontendSpec {
        affinity_seconds: service.affinity_seconds,
        ends_streams: service.ends_streams && protocol == Protocol::Tcp,
        ..FrontendSpec::to(internal)
    };
    // Clients in the cluster reach external addresses by all backends, as with upstream's proxy:
    // `externalTrafficPolicy: Local` is about clients outside.
    let external = FrontendSpec {
        inside: external,
        outside,
        local_only: outside.is_some() && service.external_local,
        ..internal.clone()
    };
    let restricted = FrontendSpec {
        sources: sources_of(service, family),
        ..external.clone()
    };
    let mut add = |addrs: &[IpAddr], spec: &FrontendSpec| {
        for addr in addrs.iter().filter(|addr| IpFamily::of(**addr) == family) {
            let at = Frontend::Address {
                addr: *addr,
                port: port.port,
                protocol,
            };
            plan.frontends.push((at, spec.clone()));
        }
    };
    add(&service.cluster_ips, &internal);
    add(&service.external_ips, &external);
    let balancers = service.balancer_ips.iter().copied();
    // An external IP is open to everybody, whatever else it is.
    let balancers = balancers.filter(|addr| !service.external_ips.contains(addr));
    add(&balancers.collect::<Vec<_>>(), &restricted);
    if let Some(port) = port.node_port {
        let at = Frontend::NodePort {
            family,
            port,
            protocol,
        };
        plan.frontends.push((at, external));
    }
}

/// The clients that a Service's load balancers are for; none: all. As with upstream's proxy a family without a range is open
/// to everybody, and ranges say nothing of other frontends.
fn sources_of(service: &ServiceInfo, family: IpFamily) -> Option<Arc<[Prefix]>> {
    let ranges = service.source_ranges.iter();
    let ranges = ranges.filter(|range| IpFamily::of(range.addr()) == family);
    let list: Arc<[Prefix]> = ranges.copied().collect();
    let is_open = list.is_empty() || list.iter().any(|range| range.is_empty());
    (!is_open).then_some(list)
}

/// The name of the set for clients on this node.
fn set_id(name: &ServiceName, port: &PortInfo, family: IpFamily, scope: &str) -> SetId {
    SetId::of(&set_name(name, port, family, scope))
}

/// The name of the set for packets from outside.
fn outside_set_id(name: &ServiceName, port: &PortInfo, family: IpFamily) -> SetId {
    SetId::of_outside(&set_name(name, port, family, "outside"))
}

fn set_name<'a>(
    name: &'a ServiceName,
    port: &'a PortInfo,
    family: IpFamily,
    scope: &'a str,
) -> [&'a str; 6] {
    let protocol = match port.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    let family = match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    };
    [
        &name.namespace,
        &name.name,
        &port.name,
        protocol,
        family,
        scope,
    ]
}

/// The endpoints of one port, each once: an endpoint may be in two slices while it moves from one to the other.
fn endpoints_of<'a>(
    port: &PortInfo,
    slices: impl Iterator<Item = &'a SliceInfo>,
) -> Vec<(u16, EndpointInfo)> {
    let mut all = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter();
        for target in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let known = all
                    .entry((endpoint.addr, target.port))
                    .or_insert_with(|| endpoint.clone());
                if endpoint.ready && !known.ready {
                    *known = endpoint.clone();
                }
            }
        }
    }
    all.into_iter()
        .map(|((_, port), endpoint)| (port, endpoint))
        .collect()
}

/// Which of the ready endpoints of a Service a node uses (upstream's topology mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach<'a> {
    /// All.
    Any,
    /// Those meant for the node's zone.
    Zone(&'a str),
    /// Those meant for the node.
    Node,
}

impl<'a> Reach<'a> {
    /// Hints are followed only if every ready endpoint has them and one of them is meant for us: half-written hints must
    /// not leave a node without endpoints, or with too few.
    fn of<'e>(
        endpoints: impl Iterator<Item = &'e (u16, EndpointInfo)> + Clone,
        zone: Option<&'a str>,
    ) -> Self {
        let mut ready = endpoints.filter(|(_, e)| e.ready).map(|(_, e)| &e.hints);
        // Most Services have no hints at all.
        let first = ready.clone().next();
        if first.is_none_or(|hints| hints.this_node.is_none() && hints.zones.is_empty()) {
            return Self::Any;
        }
        let mut all = ready.clone();
        if all.all(|hints| hints.this_node.is_some())
            && ready.clone().any(|hints| hints.this_node == Some(true))
        {
            return Self::Node;
        }
        match zone {
            Some(zone)
                if ready.clone().all(|hints| !hints.zones.is_empty())
                    && ready.any(|hints| names_zone(hints, zone)) =>
            {
                Self::Zone(zone)
            }
            _ => Self::Any,
        }
    }

    fn has(self, endpoint: &EndpointInfo) -> bool {
        match self {
            Self::Any => true,
            Self::Zone(zone) => names_zone(&endpoint.hints, zone),
            Self::Node => endpoint.hints.this_node == Some(true),
        }
    }
}

fn names_zone(hints: &Hints, zone: &str) -> bool {
    hints.zones.iter().any(|named| &**named == zone)
}

/// The ready ones within reach; if there is none, those that are terminating but still serve, wherever they are.
fn usable<'a>(
    endpoints: impl Iterator<Item = &'a (u16, EndpointInfo)> + Clone,
    reach: Reach<'_>,
) -> Vec<Backend> {
    let backend = |(port, endpoint): &(u16, EndpointInfo), terminating| Backend {
        addr: endpoint.addr,
        port: *port,
        local: endpoint.local,
        terminating,
    };
    let ready = endpoints.clone().filter(|(_, e)| e.ready && reach.has(e));
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
