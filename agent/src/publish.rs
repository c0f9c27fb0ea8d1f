//! Ports of Services on the machine's own addresses, for a node that lives in a network namespace.
//!
//! Bytes are carried between a listener outside and a connection made inside to the Service's cluster IP, where
//! the node's own datapath takes over.

use std::{io, net::SocketAddr, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use skiff_netns::NodeNetns;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// One `ADDRESS:PORT=NAMESPACE/SERVICE:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) listen: SocketAddr,
    namespace: String,
    service: String,
    port: u16,
}

impl FromStr for Publication {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (listen, target) = text.split_once('=')?;
            let (namespace, rest) = target.split_once('/')?;
            let (service, port) = rest.rsplit_once(':')?;
            Some(Self {
                listen: listen.parse().ok()?,
                namespace: namespace.to_owned(),
                service: service.to_owned(),
                port: port.parse().ok()?,
            })
        };
        match parse() {
            Some(publication) => Ok(publication),
            None => bail!("--publish {text:?} is not ADDRESS:PORT=NAMESPACE/SERVICE:PORT"),
        }
    }
}

/// A publication that has its port.
#[derive(Debug)]
pub(crate) struct Publisher {
    publication: Publication,
    listener: TcpListener,
}

impl Publisher {
    /// Takes the port.
    pub(crate) async fn bind(publication: Publication) -> Result<Self> {
        let listener = TcpListener::bind(publication.listen)
            .await
            .with_context(|| format!("--publish: listening on {}", publication.listen))?;
        Ok(Self {
            publication,
            listener,
        })
    }

    /// Carries connections until `token` is cancelled.
    pub(crate) async fn run(self, client: Client, netns: NodeNetns, token: CancellationToken) {
        let services: Api<Service> = Api::namespaced(client, &self.publication.namespace);
        let mut connections = JoinSet::new();
        let accepting = async {
            loop {
                while connections.try_join_next().is_some() {}
                match self.listener.accept().await {
                    Ok((outside, _)) => {
                        let (publication, services) = (self.publication.clone(), services.clone());
                        let netns = netns.clone();
                        connections.spawn(async move {
                            // On an error the connection is closed, which is all that a client can be told.
                            if let Err(error) = carry(outside, &publication, &services, &netns).await {
                                let service = &publication.service;
                                tracing::debug!(%service, error = format!("{error:#}"), "published port");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting on a published port");
                        // Out of file descriptors, most likely: some will be closed.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        token.run_until_cancelled(accepting).await;
    }
}

async fn carry(
    mut outside: TcpStream,
    publication: &Publication,
    services: &Api<Service>,
    netns: &NodeNetns,
) -> Result<()> {
    let service = services.get(&publication.service).await?;
    let ip = service
        .spec
        .and_then(|spec| spec.cluster_ip)
        .unwrap_or_default();
    let ip = ip
        .parse()
        .with_context(|| format!("the Service's cluster IP is {ip:?}"))?;
    let target = SocketAddr::new(ip, publication.port);
    let make = move || {
        if target.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
    };
    let socket = netns.run_blocking(make).await?.context("making a socket")?;
    let mut inside = socket
        .connect(target)
        .await
        .with_context(|| format!("connecting to {target}"))?;
    match tokio::io::copy_bidirectional(&mut outside, &mut inside).await {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publications_are_read() {
        let read: Publication = "127.0.0.1:8080=default/web:80".parse().unwrap();
        let expected = Publication {
            listen: "127.0.0.1:8080".parse().unwrap(),
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port: 80,
        };
        assert_eq!(read, expected);
        for bad in [
            "",
            "8080=default/web:80",
            "127.0.0.1:8080",
            "127.0.0.1:8080=web:80",
            "127.0.0.1:8080=a/b:http",
        ] {
            assert!(bad.parse::<Publication>().is_err(), "{bad}");
        }
    }
}
