//! What the zone looks things up in.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use skiff_client::{Informer, Key};

/// Services and endpoints by the keys that questions have. All names are in lower case.
pub(crate) trait Directory: Send + Sync {
    /// The Service of that name.
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of that Service.
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// The Service that has this cluster IP.
    fn service_by_ip(&self, address: IpAddr) -> Option<Arc<Service>>;
    /// Slices that hold this endpoint address.
    fn slices_by_ip(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>>;
    /// Whether any Service is in the namespace.
    fn has_namespace(&self, namespace: &str) -> bool;
}

/// The API's objects, kept up to date by watches.
#[derive(Debug)]
pub(crate) struct InformerDirectory {
    /// Indexed by `clusterIP`.
    pub(crate) services: Informer<Service>,
    /// Indexed by `service` and `address`.
    pub(crate) slices: Informer<EndpointSlice>,
}

impl Directory for InformerDirectory {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&Key::new(namespace, name))
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices
            .by_index("service", &format!("{namespace}/{service}"))
    }

    fn service_by_ip(&self, address: IpAddr) -> Option<Arc<Service>> {
        self.services
            .by_index("clusterIP", &address.to_string())
            .into_iter()
            .next()
    }

    fn slices_by_ip(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index("address", &address.to_string())
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        !self.services.in_namespace(namespace).is_empty()
    }
}

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Drops what no answer needs.
pub(crate) fn trim_service(service: &mut Service) {
    service.metadata.annotations = None;
    service.metadata.labels = None;
    service.status = None;
}

pub(crate) fn cluster_ips(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let mut ips = spec
        .and_then(|spec| spec.cluster_ips.clone())
        .unwrap_or_default();
    ips.extend(spec.and_then(|spec| spec.cluster_ip.clone()));
    ips.retain(|ip| ip.parse::<IpAddr>().is_ok());
    ips.sort();
    ips.dedup();
    ips
}

pub(crate) fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let service = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_NAME));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    service
        .map(|service| format!("{namespace}/{service}"))
        .into_iter()
        .collect()
}

pub(crate) fn addresses_of(slice: &EndpointSlice) -> Vec<String> {
    slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect()
}
