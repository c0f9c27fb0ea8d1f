//! Names for addresses, from the API.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use skiff_ebpf_loader::{Frontend, Protocol, netns_cookie};
use skiff_netns::NetNs;

/// Where pods' namespaces are pinned, and how.
const NETNS_DIR: &str = "/run/netns";
const NETNS_PREFIX: &str = "skiff-";

/// What is called how. Empty if the API does not answer.
#[derive(Debug, Default)]
pub(super) struct Names {
    addresses: HashMap<(SocketAddr, Protocol), String>,
    node_ports: HashMap<(u16, Protocol), String>,
    pods: HashMap<IpAddr, String>,
    /// By the cookie of their network namespace.
    namespaces: HashMap<u64, String>,
}

impl Names {
    /// Asks the API.
    pub(super) async fn ask(client: Client) -> Result<Self> {
        let all = ListParams::default();
        let services = Api::<Service>::all(client.clone()).list(&all).await?;
        let pods = Api::<Pod>::all(client).list(&all).await?;
        let mut names = Self::default();
        for service in &services.items {
            names.add_service(service);
        }
        names.add_pods(&pods.items);
        Ok(names)
    }

    fn add_service(&mut self, service: &Service) {
        let Some(spec) = &service.spec else { return };
        let status = service.status.as_ref();
        let ingress = status
            .and_then(|status| status.load_balancer.as_ref())
            .and_then(|balancer| balancer.ingress.as_deref())
            .unwrap_or_default();
        let texts = spec.cluster_ips.iter().flatten();
        let texts = texts.chain(spec.external_ips.iter().flatten());
        let texts = texts.chain(ingress.iter().filter_map(|ingress| ingress.ip.as_ref()));
        let addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        for port in spec.ports.iter().flatten() {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                None | Some("TCP") => Protocol::Tcp,
                Some(_) => continue,
            };
            let what = port.name.clone().unwrap_or_else(|| port.port.to_string());
            let name = format!(
                "{}/{}:{what}",
                service.namespace().unwrap_or_default(),
                service.name_any()
            );
            if let Ok(number) = u16::try_from(port.port) {
                let known = addresses
                    .iter()
                    .map(|addr| ((SocketAddr::new(*addr, number), protocol), name.clone()));
                self.addresses.extend(known);
            }
            if let Some(Ok(number)) = port.node_port.map(u16::try_from) {
                self.node_ports.insert((number, protocol), name);
            }
        }
    }

    fn add_pods(&mut self, pods: &[Pod]) {
        let mut by_uid = HashMap::new();
        for pod in pods {
            let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
            let status = pod.status.as_ref();
            let ips = status.and_then(|status| status.pod_ips.as_deref());
            let ips = ips.unwrap_or_default().iter().filter(|_| !on_host);
            let known = ips.filter_map(|ip| Some((ip.ip.parse().ok()?, name.clone())));
            self.pods.extend(known);
            by_uid.insert(pod.uid().unwrap_or_default(), name);
        }
        let pins = std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
        for pin in pins {
            let file = pin.file_name();
            let uid = file
                .to_str()
                .and_then(|name| name.strip_prefix(NETNS_PREFIX));
            let Some(name) = uid.and_then(|uid| by_uid.get(uid)) else {
                continue;
            };
            // A pod that ends meanwhile has no name any more.
            let cookie = NetNs::open(pin.path()).and_then(|netns| netns.run(netns_cookie));
            if let Ok(Ok(cookie)) = cookie {
                self.namespaces.insert(cookie, name.clone());
            }
        }
    }

    /// The Service and port that a frontend is of.
    pub(super) fn frontend(&self, frontend: &Frontend) -> Option<&str> {
        let name = match *frontend {
            Frontend::Address {
                addr,
                port,
                protocol,
            } => self.addresses.get(&(SocketAddr::new(addr, port), protocol)),
            Frontend::NodePort { port, protocol, .. } => self.node_ports.get(&(port, protocol)),
        };
        name.map(String::as_str)
    }

    /// The Service that is asked for by address and port, be it a NodePort.
    pub(super) fn asked(&self, asked: SocketAddr, protocol: Protocol) -> Option<&str> {
        let by_address = self.addresses.get(&(asked, protocol));
        let found = by_address.or_else(|| self.node_ports.get(&(asked.port(), protocol)));
        found.map(String::as_str)
    }

    /// The Service and port that have an address, whichever port it is.
    pub(super) fn service_at(&self, addr: IpAddr) -> Option<&str> {
        let mut of = self.addresses.iter().filter(|((at, _), _)| at.ip() == addr);
        of.next().map(|(_, name)| name.as_str())
    }

    /// The pod with an address.
    pub(super) fn pod(&self, addr: IpAddr) -> Option<&str> {
        self.pods.get(&addr).map(String::as_str)
    }

    /// The pod of a network namespace.
    pub(super) fn namespace(&self, cookie: u64) -> Option<&str> {
        self.namespaces.get(&cookie).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_known_by_every_address_and_by_their_node_port() {
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIPs": ["10.96.0.5", "fd00::5"], "externalIPs": ["198.51.100.1"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
        });
        let mut names = Names::default();
        names.add_service(&serde_json::from_value(service).unwrap());
        for addr in ["10.96.0.5", "fd00::5", "198.51.100.1", "203.0.113.7"] {
            let asked = SocketAddr::new(addr.parse().unwrap(), 80);
            assert_eq!(names.asked(asked, Protocol::Tcp), Some("shop/web:http"));
        }
        let asked = "10.96.0.5:53".parse().unwrap();
        assert_eq!(names.asked(asked, Protocol::Udp), Some("shop/web:53"));
        assert_eq!(names.asked(asked, Protocol::Tcp), None);
        let asked = "192.0.2.1:30080".parse().unwrap();
        assert_eq!(names.asked(asked, Protocol::Tcp), Some("shop/web:http"));
    }
}
