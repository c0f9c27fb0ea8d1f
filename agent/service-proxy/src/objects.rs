//! What the proxy needs of the API's objects, and nothing else: they are many.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use k8s_openapi::api::{
    core::v1::{Node, Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};
use skiff_ebpf_loader::{Prefix, Protocol};

/// Upstream's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// Services with this label belong to another proxy.
const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// With the value `true`: TCP connections to an endpoint are ended when the Service loses it. There is nothing of upstream's
/// that asks for it; a connection otherwise lasts as long as the endpoint does.
const ANNOTATION_END_CONNECTIONS: &str = "skiff.io/end-connections";
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name in it.
    pub name: Arc<str>,
}

impl ServiceName {
    /// From its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service with addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    /// When it was made, in seconds: of two that claim the same frontend the older one has it.
    pub created: i64,
    /// ClusterIPs.
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs.
    pub external_ips: Vec<IpAddr>,
    /// The IPs of load balancers.
    pub balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`, in order.
    pub source_ranges: Box<[Prefix]>,
    /// Its ports.
    pub ports: Vec<PortInfo>,
    /// `sessionAffinity: ClientIP` for so many seconds; 0 for none.
    pub affinity_seconds: u32,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// TCP connections to endpoints that are gone are ended.
    pub ends_streams: bool,
    /// Where load balancers ask whether there are endpoints on this node (`healthCheckNodePort`).
    pub health_port: Option<u16>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its name, empty if it has none.
    pub name: String,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The NodePort, if it has one.
    pub node_port: Option<u16>,
}

/// An EndpointSlice of addresses that the proxy can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceInfo {
    /// Whose endpoints.
    pub service: ServiceName,
    /// Their ports.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<EndpointInfo>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: String,
    /// The target port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Its address.
    pub addr: IpAddr,
    /// Ready for new connections.
    pub ready: bool,
    /// Able to serve, even if it is terminating.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    /// Whom it is meant for.
    pub hints: Hints,
}

/// Whom an endpoint is meant for (`hints` of the EndpointSlice).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Whether this node is among those named; none if no node is.
    pub this_node: Option<bool>,
    /// The zones named.
    pub zones: Box<[Box<str>]>,
}

impl ServiceInfo {
    /// What is needed of `service`; none if it has no frontend here (headless, ExternalName, another proxy's).
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let labels = service.metadata.labels.as_ref();
        let annotations = service.metadata.annotations.as_ref();
        let another_proxy = labels.is_some_and(|labels| labels.contains_key(LABEL_PROXY_NAME));
        if another_proxy || spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let listed = spec.cluster_ips.iter().flatten();
        let mut cluster_ips = addresses(listed.chain(&spec.cluster_ip));
        cluster_ips.dedup();
        if cluster_ips.is_empty() {
            return None;
        }
        let status = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = status
            .and_then(|status| status.ingress.as_ref())
            .into_iter()
            .flatten();
        let balancers = ingress
            .filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
            .filter_map(|ingress| ingress.ip.as_ref());
        let created = service.metadata.creation_timestamp.as_ref();
        let mut info = Self {
            created: created.map_or(i64::MAX, |time| time.0.as_second()),
            cluster_ips,
            external_ips: addresses(spec.external_ips.iter().flatten()),
            balancer_ips: addresses(balancers),
            source_ranges: source_ranges(spec),
            ports: spec
                .ports
                .iter()
                .flatten()
                .filter_map(|p| port_info(spec, p))
                .collect(),
            affinity_seconds: affinity_seconds(spec),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            ends_streams: annotations
                .and_then(|all| all.get(ANNOTATION_END_CONNECTIONS))
                .is_some_and(|value| value == "true"),
            health_port: health_port(spec),
        };
        // They are kept, and many.
        info.cluster_ips.shrink_to_fit();
        info.external_ips.shrink_to_fit();
        info.balancer_ips.shrink_to_fit();
        info.ports.shrink_to_fit();
        Some(info)
    }
}

impl SliceInfo {
    /// What is needed of `slice`; none if it belongs to no Service or has addresses of another kind.
    #[must_use]
    pub fn of(slice: &EndpointSlice, node: &str) -> Option<Self> {
        if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
            return None;
        }
        let name = slice.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME)?;
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.clone().unwrap_or_default(),
                port: u16::try_from(port.port?).ok()?,
                protocol: protocol(port.protocol.as_deref())?,
            })
        });
        let endpoints = slice.endpoints.iter().flatten();
        let mut info = Self {
            service: ServiceName::new(slice.metadata.namespace.as_deref()?, name),
            ports: ports.collect(),
            endpoints: endpoints
                .filter_map(|endpoint| endpoint_info(endpoint, node))
                .collect(),
        };
        // They are kept, and many.
        info.ports.shrink_to_fit();
        info.endpoints.shrink_to_fit();
        Some(info)
    }
}

/// The zone that a node says it is in.
#[must_use]
pub fn zone_of(node: &Node) -> Option<String> {
    let zone = node.metadata.labels.as_ref()?.get(LABEL_ZONE)?;
    Some(zone.clone()).filter(|zone| !zone.is_empty())
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    // "None" and "" are no addresses: headless.
    for addr in texts.filter_map(|text| text.parse().ok()) {
        if !all.contains(&addr) {
            all.push(addr);
        }
    }
    all
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

fn port_info(spec: &ServiceSpec, port: &ServicePort) -> Option<PortInfo> {
    let with_node_port = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
    Some(PortInfo {
        name: port.name.clone().unwrap_or_default(),
        port: u16::try_from(port.port).ok()?,
        protocol: protocol(port.protocol.as_deref())?,
        node_port: node_port.filter(|port| with_node_port && *port != 0),
    })
}

fn health_port(spec: &ServiceSpec) -> Option<u16> {
    let local = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| local)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn source_ranges(spec: &ServiceSpec) -> Box<[Prefix]> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let ranges: BTreeSet<Prefix> = ranges
        .filter_map(|text| text.trim().parse().ok())
        .filter_map(|range: IpNetwork| Prefix::of(range.ip(), range.prefix()))
        .collect();
    ranges.into_iter().collect()
}

fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|all| all.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds);
    seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .unwrap_or(DEFAULT_AFFINITY_SECONDS)
}

fn endpoint_info(endpoint: &Endpoint, node: &str) -> Option<EndpointInfo> {
    let conditions = endpoint.conditions.as_ref();
    // Upstream: unknown is to be taken as ready, and serving as ready.
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    Some(EndpointInfo {
        // Clients use the first address only.
        addr: endpoint.addresses.first()?.parse().ok()?,
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(node),
        hints: hints(endpoint, node),
    })
}

fn hints(endpoint: &Endpoint, node: &str) -> Hints {
    let Some(hints) = &endpoint.hints else {
        return Hints::default();
    };
    let nodes = hints.for_nodes.as_deref().unwrap_or_default();
    let zones = hints.for_zones.iter().flatten();
    Hints {
        this_node: (!nodes.is_empty()).then(|| nodes.iter().any(|hint| hint.name == node)),
        zones: zones.map(|zone| zone.name.as_str().into()).collect(),
    }
}
