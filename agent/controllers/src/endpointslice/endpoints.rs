//! The v1 Endpoints object of a Service, as upstream still keeps it beside the slices. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{Backend, HEADLESS_LABEL, is_headless, publishes_not_ready};
use crate::pods;

const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpoint-controller";

/// The object as it ought to be; `pods` are the selected ones.
pub(crate) fn plan_endpoints(
    service: &Service,
    backends: &[Backend],
    pods: &[Arc<Pod>],
) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    let terminating: Vec<_> = pods
        .iter()
        .filter(|p| pods::is_terminating(p))
        .map(|p| &p.metadata.uid)
        .collect();
    let first_family = backends.first().map(|b| b.address_type);

    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    let mut over_capacity = false;
    for backend in backends
        .iter()
        .filter(|b| Some(b.address_type) == first_family)
    {
        let uid = backend.endpoint.target_ref.as_ref().map(|r| &r.uid);
        let is_terminating = uid.is_some_and(|uid| terminating.contains(&uid));
        if is_terminating && !publishes_not_ready(service) {
            continue;
        }
        if count >= MAX_ADDRESSES {
            over_capacity = true;
            break;
        }
        count += 1;
        let subset = subsets
            .entry(format!("{:?}", backend.ports))
            .or_insert_with(|| EndpointSubset {
                ports: ports_of(backend),
                ..EndpointSubset::default()
            });
        let ready = backend
            .endpoint
            .conditions
            .as_ref()
            .and_then(|c| c.ready)
            .unwrap_or(false);
        let list = if ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(EndpointAddress {
            ip: backend
                .endpoint
                .addresses
                .first()
                .cloned()
                .unwrap_or_default(),
            hostname: backend.endpoint.hostname.clone(),
            node_name: backend.endpoint.node_name.clone(),
            target_ref: backend.endpoint.target_ref.clone(),
        });
    }
    let annotations =
        over_capacity.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        },
        subsets: Some(subsets.into_values().map(sorted).collect()),
    }
}

fn ports_of(backend: &Backend) -> Option<Vec<EndpointPort>> {
    let ports = backend.ports.iter().map(|p| EndpointPort {
        name: p.name.clone().filter(|name| !name.is_empty()),
        port: p.port.unwrap_or(0),
        protocol: p.protocol.clone(),
        app_protocol: p.app_protocol.clone(),
    });
    Some(ports.collect::<Vec<_>>()).filter(|ports| !ports.is_empty())
}

fn sorted(mut subset: EndpointSubset) -> EndpointSubset {
    for list in [&mut subset.addresses, &mut subset.not_ready_addresses] {
        list.iter_mut()
            .for_each(|l| l.sort_by(|a, b| a.ip.cmp(&b.ip)));
    }
    subset
}

/// Whether a reader would see a difference.
pub(crate) fn endpoints_differ(old: &Endpoints, new: &Endpoints) -> bool {
    old.subsets.as_deref().unwrap_or_default() != new.subsets.as_deref().unwrap_or_default()
        || old.metadata.labels.clone().unwrap_or_default()
            != new.metadata.labels.clone().unwrap_or_default()
}
