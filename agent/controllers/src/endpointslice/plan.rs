//! Which endpoints a Service has, and which slices to write so that they say so. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::informers::SERVICE_NAME_LABEL;
use crate::owner::controller_reference;
use crate::pods;

pub(crate) const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const MAX_ENDPOINTS: usize = 100;

/// One address of one pod under one set of ports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) address_type: &'static str,
}

/// What to write.
#[derive(Debug, Default)]
pub(crate) struct SliceChanges {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false)
}

fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.as_ref());
    let types: Vec<_> = families
        .into_iter()
        .flatten()
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if !types.is_empty() {
        return types;
    }
    let ip = service
        .spec
        .as_ref()
        .and_then(|s| s.cluster_ip.as_deref())
        .unwrap_or_default();
    if ip.contains(':') {
        vec!["IPv6"]
    } else {
        vec!["IPv4"]
    }
}

/// The pod's addresses of that family.
fn addresses<'a>(pod: &'a Pod, address_type: &'a str) -> impl Iterator<Item = &'a str> {
    let status = pod.status.as_ref();
    let listed = status
        .and_then(|s| s.pod_ips.as_ref())
        .filter(|ips| !ips.is_empty());
    let first = status
        .and_then(|s| s.pod_ip.as_deref())
        .filter(|_| listed.is_none());
    let listed = listed.into_iter().flatten().map(|ip| ip.ip.as_str());
    let all = listed.chain(first);
    all.filter(move |ip| !ip.is_empty() && ip.contains(':') == (address_type == "IPv6"))
}

fn container_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.as_ref();
    let sidecars = spec
        .and_then(|s| s.init_containers.as_ref())
        .into_iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.into_iter().flat_map(|s| &s.containers);
    containers
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
}

/// The number behind the Service's target port in this pod; none when the pod has no such name.
pub(crate) fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        // The API server fills it in; zero stands for "as the port".
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => container_ports(pod)
            .find(|p| {
                p.name.as_deref() == Some(name)
                    && p.protocol.as_deref().unwrap_or("TCP") == protocol
            })
            .map(|p| p.container_port),
    }
}

fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    let ports = ports.into_iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target_port(port, pod)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

/// The endpoints of a Service, given the pods that its selector selects.
pub(crate) fn plan_backends(
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> Vec<Backend> {
    let mut backends = Vec::new();
    for address_type in address_types(service) {
        for pod in pods.iter().filter(|pod| !pods::is_finished(pod)) {
            let ports = ports_of(service, pod);
            // Upstream publishes the first address of a family only.
            let Some(address) = addresses(pod, address_type).next() else {
                continue;
            };
            let endpoint = endpoint_of(service, pod, address, &zone_of);
            backends.push(Backend {
                endpoint,
                ports,
                address_type,
            });
        }
    }
    backends
}

fn endpoint_of(
    service: &Service,
    pod: &Pod,
    address: &str,
    zone_of: &impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let node = pods::node_name(pod);
    let spec = pod.spec.as_ref();
    let in_subdomain =
        spec.and_then(|s| s.subdomain.as_deref()) == service.metadata.name.as_deref();
    let hostname = spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| in_subdomain && !h.is_empty());
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let zone = node.and_then(zone_of);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: node.map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        hints: ready
            .then(|| hints_of(service, node, zone.as_deref()))
            .flatten(),
        zone,
        ..Endpoint::default()
    }
}

/// Whom a ready endpoint is meant for, by the Service's `trafficDistribution`. Proxies look at the hints of ready endpoints only.
fn hints_of(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let for_zones = zone.map(|zone| {
        vec![ForZone {
            name: zone.to_owned(),
        }]
    });
    let hints = match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => EndpointHints {
            for_zones,
            ..EndpointHints::default()
        },
        // The zone is for nodes that have no endpoint of their own.
        "PreferSameNode" => EndpointHints {
            for_nodes: node.map(|node| {
                vec![ForNode {
                    name: node.to_owned(),
                }]
            }),
            for_zones,
        },
        _ => return None,
    };
    (hints != EndpointHints::default()).then_some(hints)
}

/// Labels of the Service's slices.
fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(
        SERVICE_NAME_LABEL.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels
}

/// What tells slices apart: address type and ports.
fn group_key(address_type: &str, ports: &[EndpointPort]) -> String {
    let mut parts: Vec<String> = ports
        .iter()
        .map(|p| {
            format!(
                "{}/{}/{}/{}",
                p.name.as_deref().unwrap_or_default(),
                p.protocol.as_deref().unwrap_or("TCP"),
                p.port.unwrap_or(0),
                p.app_protocol.as_deref().unwrap_or_default()
            )
        })
        .collect();
    parts.sort();
    format!("{address_type} {}", parts.join(" "))
}

fn endpoint_key(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|r| r.uid.clone())
        .unwrap_or_default();
    (uid, endpoint.addresses.first().cloned().unwrap_or_default())
}

#[derive(Default)]
struct Group {
    address_type: &'static str,
    ports: Vec<EndpointPort>,
    /// In the order of the pods.
    wanted: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
}

/// Compares the slices that exist with the endpoints that ought to be, and touches as few slices as
/// it can: an endpoint stays in the slice where it is.
pub(crate) fn plan_slices(
    service: &Service,
    backends: Vec<Backend>,
    existing: &[Arc<EndpointSlice>],
) -> SliceChanges {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for address_type in address_types(service) {
        let without_ports = Group {
            address_type,
            ..Group::default()
        };
        let of_type = || backends.iter().filter(|b| b.address_type == address_type);
        if of_type().next().is_none() {
            // A Service without endpoints has one empty slice of each family.
            groups.insert(group_key(address_type, &[]), without_ports);
        }
    }
    for backend in backends {
        let key = group_key(backend.address_type, &backend.ports);
        let group = groups.entry(key).or_insert_with(|| Group {
            address_type: backend.address_type,
            ports: backend.ports,
            ..Group::default()
        });
        group.wanted.push(backend.endpoint);
    }
    let mut changes = SliceChanges::default();
    for slice in existing
        .iter()
        .filter(|s| s.metadata.deletion_timestamp.is_none())
    {
        let ports = slice.ports.as_deref().unwrap_or_default();
        match groups.get_mut(&group_key(&slice.address_type, ports)) {
            Some(group) => group.slices.push(Arc::clone(slice)),
            None => changes.delete.push(Arc::clone(slice)),
        }
    }
    let mut names = Names::new(service, existing);
    for group in groups.into_values() {
        plan_group(service, group, &mut names, &mut changes);
    }
    changes
}

fn plan_group(service: &Service, group: Group, names: &mut Names, changes: &mut SliceChanges) {
    let labels = labels_of(service);
    let mut wanted: HashMap<_, _> = group
        .wanted
        .iter()
        .map(|endpoint| (endpoint_key(endpoint), endpoint.clone()))
        .collect();
    let mut slices: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in group.slices {
        let kept: Vec<Endpoint> = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|e| wanted.remove(&endpoint_key(e)))
            .collect();
        slices.push((slice, kept));
    }
    let mut new: Vec<Endpoint> = group
        .wanted
        .iter()
        .filter_map(|endpoint| wanted.remove(&endpoint_key(endpoint)))
        .collect();
    // Those that must be written anyway are filled first, then the fullest.
    slices.sort_by_key(|(slice, kept)| {
        let unchanged = slice.endpoints.as_deref().unwrap_or_default() == kept.as_slice();
        (unchanged, std::cmp::Reverse(kept.len()))
    });
    for (_, kept) in &mut slices {
        let room = MAX_ENDPOINTS.saturating_sub(kept.len()).min(new.len());
        kept.extend(new.drain(..room));
    }
    let mut keeps_empty = group.wanted.is_empty();
    for (slice, endpoints) in slices {
        if endpoints.is_empty() && !std::mem::take(&mut keeps_empty) {
            changes.delete.push(slice);
            continue;
        }
        let same = slice.endpoints.as_deref().unwrap_or_default() == endpoints.as_slice()
            && slice.metadata.labels.as_ref() == Some(&labels);
        if !same {
            let mut updated = (*slice).clone();
            updated.endpoints = Some(endpoints);
            updated.metadata.labels = Some(labels.clone());
            changes.update.push(updated);
        }
    }
    while !new.is_empty() || keeps_empty {
        keeps_empty = false;
        let chunk = new.drain(..new.len().min(MAX_ENDPOINTS)).collect();
        changes.create.push(EndpointSlice {
            metadata: ObjectMeta {
                name: Some(names.next()),
                namespace: service.metadata.namespace.clone(),
                labels: Some(labels.clone()),
                owner_references: Some(vec![controller_reference(service)]),
                ..ObjectMeta::default()
            },
            address_type: group.address_type.to_owned(),
            endpoints: Some(chunk),
            ports: Some(group.ports.clone()),
        });
    }
}

/// Names for new slices. They follow from the Service's UID and the names in use, so that a
/// reconcile on an old cache collides with its own earlier slice instead of making a second one.
struct Names {
    service: String,
    uid: String,
    taken: Vec<String>,
    next: u32,
}

impl Names {
    fn new(service: &Service, existing: &[Arc<EndpointSlice>]) -> Names {
        Names {
            service: service.metadata.name.clone().unwrap_or_default(),
            uid: service.metadata.uid.clone().unwrap_or_default(),
            taken: existing
                .iter()
                .filter_map(|s| s.metadata.name.clone())
                .collect(),
            next: 0,
        }
    }

    fn next(&mut self) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        loop {
            let seed = format!("{}#{}", self.uid, self.next);
            self.next += 1;
            let mut hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let mut name = format!("{}-", self.service);
            for _ in 0..5 {
                let index = usize::try_from(hash % 27).unwrap_or(0);
                name.push(char::from(ALPHABET[index]));
                hash /= 27;
            }
            if !self.taken.contains(&name) {
                self.taken.push(name.clone());
                return name;
            }
        }
    }
}
