//! Objects that every cluster of ours has beside those of the API server: the Service of cluster DNS.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::config::DNS_PORT;

const NAMESPACE: &str = "kube-system";
/// As upstream calls it, whatever serves it.
const DNS: &str = "kube-dns";

/// Pause between attempts.
const RETRY: Duration = Duration::from_millis(100);

/// Makes the Service `kube-dns` at `service_ip` and points it to the DNS server on `node_ip`. Tries until it works:
/// the API server may be making its own first objects still.
pub(crate) async fn ensure_dns(client: &Client, service_ip: Ipv4Addr, node_ip: Ipv4Addr) {
    while let Err(error) = try_ensure_dns(client, service_ip, node_ip).await {
        tracing::debug!(error = format!("{error:#}"), "Service kube-dns");
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_ensure_dns(client: &Client, service_ip: Ipv4Addr, node_ip: Ipv4Addr) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    if services
        .get_opt(DNS)
        .await
        .context("reading Service kube-dns")?
        .is_none()
    {
        let created = services
            .create(&PostParams::default(), &dns_service(service_ip))
            .await;
        created.context("creating Service kube-dns")?;
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let slice = dns_endpoints(node_ip);
    if slices
        .get_opt(DNS)
        .await
        .context("reading the endpoints of DNS")?
        .is_some()
    {
        // The node's address may be another one than last time.
        let change = json!({"endpoints": slice.endpoints, "ports": slice.ports});
        slices
            .patch(DNS, &PatchParams::default(), &Patch::Merge(&change))
            .await
            .context("updating the endpoints of DNS")?;
    } else {
        let created = slices.create(&PostParams::default(), &slice).await;
        created.context("creating the endpoints of DNS")?;
    }
    Ok(())
}

fn metadata(labels: &[(&str, &str)]) -> ObjectMeta {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    ObjectMeta {
        name: Some(DNS.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        labels: Some(labels.collect::<BTreeMap<_, _>>()),
        ..ObjectMeta::default()
    }
}

/// Name and protocol of each port.
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

/// Without a selector: its endpoints are written here.
fn dns_service(service_ip: Ipv4Addr) -> Service {
    let ports = PORTS.map(|(name, protocol)| ServicePort {
        name: Some(name.to_owned()),
        port: 53,
        protocol: Some(protocol.to_owned()),
        target_port: Some(IntOrString::Int(i32::from(DNS_PORT))),
        ..ServicePort::default()
    });
    Service {
        metadata: metadata(&[("k8s-app", DNS), ("kubernetes.io/name", "CoreDNS")]),
        spec: Some(ServiceSpec {
            cluster_ip: Some(service_ip.to_string()),
            ports: Some(ports.to_vec()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn dns_endpoints(node_ip: Ipv4Addr) -> EndpointSlice {
    let ports = PORTS.map(|(name, protocol)| EndpointPort {
        name: Some(name.to_owned()),
        port: Some(i32::from(DNS_PORT)),
        protocol: Some(protocol.to_owned()),
        ..EndpointPort::default()
    });
    let endpoint = Endpoint {
        addresses: vec![node_ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
        }),
        ..Endpoint::default()
    };
    EndpointSlice {
        metadata: metadata(&[
            ("kubernetes.io/service-name", DNS),
            ("endpointslice.kubernetes.io/managed-by", "skiff"),
        ]),
        address_type: "IPv4".to_owned(),
        endpoints: Some(vec![endpoint]),
        ports: Some(ports.to_vec()),
    }
}
