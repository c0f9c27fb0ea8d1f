//! The records of one Service: its address, or its endpoints if it is headless.

use std::{net::IpAddr, sync::Arc};

use hickory_proto::rr::{Name, RData, rdata::CNAME};
use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use super::address_data;
use crate::directory::cluster_ips;

/// A Service with its endpoints.
pub(super) struct ServiceView<'a> {
    service: &'a Service,
    slices: &'a [Arc<EndpointSlice>],
}

/// An address as a label.
pub(super) fn dashed(address: &str) -> String {
    address.replace(['.', ':'], "-")
}

impl<'a> ServiceView<'a> {
    pub(super) fn new(service: &'a Service, slices: &'a [Arc<EndpointSlice>]) -> Self {
        Self { service, slices }
    }

    fn spec(&self) -> Option<&'a ServiceSpec> {
        self.service.spec.as_ref()
    }

    fn is_headless(&self) -> bool {
        self.spec().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
    }

    fn external_name(&self) -> Option<Name> {
        let spec = self.spec()?;
        if spec.type_.as_deref() != Some("ExternalName") {
            return None;
        }
        let mut name = Name::from_ascii(spec.external_name.as_deref()?).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    /// Records of the Service's own name.
    pub(super) fn own(&self) -> Vec<RData> {
        if let Some(name) = self.external_name() {
            return vec![RData::CNAME(CNAME(name))];
        }
        let addresses: Vec<IpAddr> = if self.is_headless() {
            self.endpoints()
                .flat_map(|(_, endpoint)| addresses(endpoint))
                .collect()
        } else {
            cluster_ips(self.service)
                .iter()
                .filter_map(|ip| ip.parse().ok())
                .collect()
        };
        unique(addresses).into_iter().map(address_data).collect()
    }

    /// Records of an endpoint's name below a Service: its host name, or its address with dashes.
    pub(super) fn host(&self, label: &str) -> Vec<RData> {
        let mut found = Vec::new();
        for (_, endpoint) in self.endpoints() {
            for address in addresses(endpoint) {
                let host = endpoint.hostname.as_deref();
                if host == Some(label) || (host.is_none() && dashed(&address.to_string()) == label)
                {
                    found.push(address);
                }
            }
        }
        unique(found).into_iter().map(address_data).collect()
    }

    /// Where a named port is: the label of the host below the Service, `None` for the Service itself.
    pub(super) fn ports(&self, name: &str, protocol: &str) -> Vec<(Option<String>, u16)> {
        if !self.is_headless() {
            let ports = self.spec().and_then(|spec| spec.ports.as_ref());
            return ports
                .into_iter()
                .flatten()
                .filter(|port| port.name.as_deref().unwrap_or_default() == name)
                .filter(|port| is_protocol(port.protocol.as_deref(), protocol))
                .filter_map(|port| Some((None, u16::try_from(port.port).ok()?)))
                .collect();
        }
        let mut found = Vec::new();
        for (slice, endpoint) in self.endpoints() {
            for port in slice.ports.iter().flatten() {
                if port.name.as_deref().unwrap_or_default() != name
                    || !is_protocol(port.protocol.as_deref(), protocol)
                {
                    continue;
                }
                let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else {
                    continue;
                };
                for address in addresses(endpoint) {
                    let host = endpoint.hostname.clone();
                    found.push((
                        Some(host.unwrap_or_else(|| dashed(&address.to_string()))),
                        number,
                    ));
                }
            }
        }
        unique(found)
    }

    /// Endpoints that may be named: ready ones, or all if the Service publishes those that are not.
    fn endpoints(&self) -> impl Iterator<Item = (&'a EndpointSlice, &'a Endpoint)> {
        let publish_all = self
            .spec()
            .and_then(|spec| spec.publish_not_ready_addresses)
            .unwrap_or_default();
        let slices: &'a [Arc<EndpointSlice>] = self.slices;
        slices
            .iter()
            .flat_map(|slice| {
                slice
                    .endpoints
                    .iter()
                    .flatten()
                    .map(move |ep| (slice.as_ref(), ep))
            })
            .filter(move |(_, endpoint)| {
                let ready = endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready);
                publish_all || ready.unwrap_or(true)
            })
    }
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    endpoint
        .addresses
        .iter()
        .filter_map(|address| address.parse().ok())
}

fn is_protocol(protocol: Option<&str>, label: &str) -> bool {
    protocol.unwrap_or("TCP").eq_ignore_ascii_case(label)
}

fn unique<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items.dedup();
    items
}
