//! Asking other resolvers about names that are not the cluster's.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use skiff_netns::NodeNetns;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::timeout,
};

/// How long one resolver is waited for before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// Largest DNS message.
const MAX_MESSAGE: usize = 65_535;

/// Passes questions on, unread, from sockets of the node's namespace.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    netns: NodeNetns,
}

/// How a question came, and so how it goes on: a truncated answer over UDP makes the client ask over TCP.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>, netns: NodeNetns) -> Self {
        Self { upstreams, netns }
    }

    /// The first answer that a resolver gives; `None` if none does.
    pub(crate) async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for upstream in &self.upstreams {
            let asking = async {
                match transport {
                    Transport::Udp => self.ask_udp(*upstream, question).await,
                    Transport::Tcp => self.ask_tcp(*upstream, question).await,
                }
            };
            match timeout(PATIENCE, asking).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "resolver failed"),
                Err(_elapsed) => tracing::debug!(%upstream, "resolver did not answer"),
            }
        }
        None
    }

    async fn ask_udp(&self, upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let any: SocketAddr = match upstream {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        // A fresh port for each question, and connected: only the resolver itself can answer.
        let socket = self
            .netns
            .run_blocking(move || std::net::UdpSocket::bind(any))
            .await
            .map_err(io::Error::other)??;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(upstream).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // The identifier must be the question's.
            if length > 2 && buffer.get(..2) == question.get(..2) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn ask_tcp(&self, upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let make = move || match upstream {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = self
            .netns
            .run_blocking(make)
            .await
            .map_err(io::Error::other)??;
        let mut stream = socket.connect(upstream).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes(), question].concat())
            .await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}
