//! Cluster DNS: names of Services and their endpoints, answered from informers; everything else is forwarded.
//!
//! [`DnsServer::bind`] makes the sockets in the node's network namespace, [`DnsServer::run`] serves them:
//!
//! ```text
//! informers (Services, EndpointSlices) --> zone (pure) --> server (UDP, TCP)
//!                                                             |
//!                                               forward <-----+ names outside the cluster's domain
//! ```
//!
//! The names are those of the Kubernetes DNS specification, version 1.1.0.

mod directory;
mod forward;
mod server;
mod zone;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client};
use skiff_client::Informer;
use skiff_netns::{NetnsError, NodeNetns};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{directory::InformerDirectory, forward::Forwarder, server::Sockets, zone::Zone};

/// What the DNS server must know.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Address to listen on in the node's namespace, UDP and TCP.
    pub listen: SocketAddr,
    /// The node's network namespace: all sockets are made there.
    pub node_netns: NodeNetns,
    /// The cluster's domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// Resolvers for names outside the cluster; none answers them with SERVFAIL.
    pub upstreams: Vec<SocketAddr>,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A socket could not be made.
    #[error("listening for DNS on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The node's network namespace could not be entered.
    #[error("entering the node's network namespace")]
    Netns {
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// The cluster domain is not a domain name.
    #[error("cluster domain {domain:?} is not a domain name")]
    Domain {
        /// What was given.
        domain: String,
    },
}

/// A server that has its sockets and waits to be run.
#[derive(Debug)]
pub struct DnsServer {
    sockets: Sockets,
    zone_name: hickory_proto::rr::Name,
    forwarder: Forwarder,
}

impl DnsServer {
    /// Makes the sockets.
    ///
    /// # Errors
    /// [`DnsError`] if the address is in use or the configuration is wrong.
    pub async fn bind(config: DnsConfig) -> Result<Self, DnsError> {
        let zone_name =
            zone::parse_domain(&config.cluster_domain).ok_or_else(|| DnsError::Domain {
                domain: config.cluster_domain.clone(),
            })?;
        let sockets = Sockets::bind(config.listen, &config.node_netns).await?;
        // Asking ourselves would go round for ever.
        let upstreams = config
            .upstreams
            .into_iter()
            .filter(|addr| *addr != config.listen)
            .collect();
        Ok(Self {
            sockets,
            zone_name,
            forwarder: Forwarder::new(upstreams, config.node_netns),
        })
    }

    /// Answers until `token` is cancelled. Questions wait until Services are known.
    pub async fn run(self, client: Client, token: CancellationToken) {
        let mut tasks = JoinSet::new();
        let services: Informer<Service> = Informer::builder()
            .transform(directory::trim_service)
            .index("clusterIP", directory::cluster_ips)
            .start(Api::all(client.clone()), &mut tasks, &token);
        let slices: Informer<EndpointSlice> = Informer::builder()
            .index("service", directory::service_of)
            .index("address", directory::addresses_of)
            .start(Api::all(client), &mut tasks, &token);
        if services.synced().await && slices.synced().await {
            let directory = InformerDirectory { services, slices };
            let zone = Zone::new(self.zone_name, Box::new(directory));
            server::serve(
                self.sockets,
                Arc::new(zone),
                Arc::new(self.forwarder),
                token,
            )
            .await;
        }
        tasks.join_all().await;
    }
}

/// The resolvers that a `resolv.conf` names, for [`DnsConfig::upstreams`].
#[must_use]
pub fn parse_nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_and_the_rest_ignored() {
        let text = "# local\nnameserver 192.0.2.1\nsearch a b\n nameserver  2001:db8::1 # x\nnameserver fe80::1%eth0\nnameserver\n";
        assert_eq!(
            parse_nameservers(text),
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse().unwrap()
            ]
        );
    }
}
