//! Sockets that talk to a backend which their Service no longer has.
//!
//! A connected UDP socket was translated once, at `connect`: nothing that is written into the tables later reaches it. So that
//! its owner moves on at once, the socket is ended ([`end_sockets`]) when its backend leaves the Service. Only sockets
//! that a Service sent to that backend are: the table of translated peers knows them by their cookies, which the
//! kernel never uses twice. Whoever talks to a pod directly is left alone.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
};

use skiff_ebpf_common::{self as abi, PROTO_TCP, PROTO_UDP};

use crate::{
    inspect::socket_addr,
    sys::SockDiag,
    tables::{Frontend, FrontendSpec, IpFamily, Protocol, SetId, TableState},
};

/// A socket, what it asked for, and the backend that it was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StalePeer {
    pub(crate) key: abi::RevNatKey,
}

impl std::fmt::Debug for StalePeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StalePeer")
            .field("cookie", &self.key.cookie)
            .field("backend", &self.backend())
            .finish()
    }
}

impl StalePeer {
    /// The backend.
    #[must_use]
    pub fn backend(&self) -> SocketAddr {
        socket_addr(self.key.addr, self.key.port)
    }
}

/// What became of some sockets.
#[derive(Debug, Default)]
pub struct Ended {
    /// They were ended.
    pub ended: Vec<StalePeer>,
    /// They exist, and talk to nobody or somebody else now, or are no UDP sockets.
    pub alive: Vec<StalePeer>,
    /// They are TCP sockets: these end by themselves.
    pub streams: Vec<StalePeer>,
}

/// The entries of the table of translated peers that no Service accounts for any more. `draining` are backends that have
/// left their sets but still serve the clients they have.
pub(crate) fn find(
    state: &TableState,
    entries: Vec<(abi::RevNatKey, abi::RevNat)>,
    draining: &HashSet<SocketAddr>,
) -> Vec<StalePeer> {
    let mut members: HashMap<SetId, HashSet<SocketAddr>> = HashMap::new();
    let mut leads = |spec: Option<FrontendSpec>, backend: &SocketAddr| {
        let Some(spec) = spec else { return false };
        let set = members.entry(spec.inside).or_insert_with(|| {
            let set = state.set(spec.inside).into_iter().flatten();
            set.map(|b| SocketAddr::new(b.addr, b.port)).collect()
        });
        set.contains(backend)
    };
    let mut stale = Vec::new();
    for (key, service) in entries {
        let backend = socket_addr(key.addr, key.port);
        let asked = socket_addr(service.addr, service.port);
        if draining.contains(&backend) {
            continue;
        }
        let datagrams = frontend(state, asked, Protocol::Udp);
        // The table does not say which protocol the socket has. Where only TCP is served it is clear.
        let streams = frontend(state, asked, Protocol::Tcp);
        if leads(datagrams, &backend) || (datagrams.is_none() && leads(streams, &backend)) {
            continue;
        }
        stale.push(StalePeer { key });
    }
    stale
}

/// How the address is served: as one of a Service, or else as a NodePort (it was one of the node's, then).
fn frontend(state: &TableState, asked: SocketAddr, protocol: Protocol) -> Option<FrontendSpec> {
    let (addr, port) = (asked.ip(), asked.port());
    let exact = Frontend::Address {
        addr,
        port,
        protocol,
    };
    let node_port = Frontend::NodePort {
        family: IpFamily::of(addr),
        port,
        protocol,
    };
    let exact = state.frontend(&exact);
    exact.or_else(|| state.frontend(&node_port))
}

/// Ends those of the sockets that are in the calling thread's network namespace and still connected to their stale
/// backend over UDP.
///
/// # Errors
/// [`io::Error`] if the kernel does not list sockets or refuses to end one.
pub fn end_sockets(peers: &[StalePeer]) -> io::Result<Ended> {
    let mut wanted: HashMap<u64, Vec<StalePeer>> = HashMap::new();
    for peer in peers {
        wanted.entry(peer.key.cookie).or_default().push(*peer);
    }
    let mut diag = SockDiag::open()?;
    let mut result = Ended::default();
    for socket in diag.sockets(PROTO_UDP)? {
        let peers = wanted.remove(&socket.cookie()).unwrap_or_default();
        for peer in peers {
            let connected = socket.peer() == Some((peer.key.addr, peer.key.port));
            if connected && diag.destroy(PROTO_UDP, &socket)? {
                result.ended.push(peer);
            } else {
                result.alive.push(peer);
            }
        }
    }
    if !wanted.is_empty() {
        for socket in diag.sockets(PROTO_TCP)? {
            let peers = wanted.remove(&socket.cookie());
            result.streams.extend(peers.into_iter().flatten());
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use crate::tables::{Backend, addr_of};

    use super::*;

    fn entry(cookie: u64, asked: &str, backend: &str) -> (abi::RevNatKey, abi::RevNat) {
        let (asked, backend): (SocketAddr, SocketAddr) =
            (asked.parse().unwrap(), backend.parse().unwrap());
        let key = abi::RevNatKey {
            cookie,
            addr: addr_of(backend.ip()),
            port: backend.port().to_be(),
            pad: [0; 3],
        };
        let service = abi::RevNat {
            addr: addr_of(asked.ip()),
            port: asked.port().to_be(),
            pad: 0,
        };
        (key, service)
    }

    fn state() -> TableState {
        let set = |name: &str, members: &[&str]| {
            let members = members.iter().map(|member| {
                let addr: SocketAddr = member.parse().unwrap();
                Backend::new(addr.ip(), addr.port())
            });
            (SetId::of(&[name]), members.collect::<Vec<_>>())
        };
        let spec = |name: &str| FrontendSpec {
            inside: SetId::of(&[name]),
            outside: None,
            affinity_seconds: 0,
            local_only: false,
        };
        let at = |addr: &str, protocol| {
            let addr: SocketAddr = addr.parse().unwrap();
            Frontend::Address {
                addr: addr.ip(),
                port: addr.port(),
                protocol,
            }
        };
        let node_port = Frontend::NodePort {
            family: IpFamily::V4,
            port: 30_053,
            protocol: Protocol::Udp,
        };
        TableState::for_tests(
            [
                set("udp", &["10.0.0.1:53", "10.0.0.2:53"]),
                set("tcp", &["10.0.0.1:53", "10.0.0.3:53"]),
                set("six", &["[fd00::1]:53"]),
            ],
            [
                (at("10.96.0.10:53", Protocol::Udp), spec("udp")),
                (at("10.96.0.10:53", Protocol::Tcp), spec("tcp")),
                (at("10.96.0.11:53", Protocol::Tcp), spec("tcp")),
                (at("[fd96::10]:53", Protocol::Udp), spec("six")),
                (node_port, spec("udp")),
            ],
        )
    }

    #[test]
    fn a_peer_is_stale_when_no_service_leads_to_it_from_where_it_asked() {
        // What it asked, the backend, whether it is stale.
        let cases = [
            ("10.96.0.10:53", "10.0.0.1:53", false),
            ("10.96.0.10:53", "10.0.0.9:53", true),
            // Perhaps a TCP socket; whoever looks for UDP sockets does not find it then.
            ("10.96.0.10:53", "10.0.0.3:53", true),
            ("10.96.0.11:53", "10.0.0.3:53", false),
            ("10.96.0.11:53", "10.0.0.9:53", true),
            // A deleted Service.
            ("10.96.0.12:53", "10.0.0.1:53", true),
            ("10.88.0.1:30053", "10.0.0.2:53", false),
            ("127.0.0.1:30053", "10.0.0.9:53", true),
            ("[fd96::10]:53", "[fd00::1]:53", false),
            ("[fd96::10]:53", "[fd00::2]:53", true),
        ];
        let state = state();
        for (asked, backend, expected) in cases {
            let found = find(&state, vec![entry(1, asked, backend)], &HashSet::new());
            assert_eq!(!found.is_empty(), expected, "{asked} -> {backend}");
        }
    }

    #[test]
    fn a_backend_that_drains_keeps_its_clients() {
        let entries = || {
            vec![
                entry(1, "10.96.0.10:53", "10.0.0.8:53"),
                entry(2, "10.96.0.10:53", "10.0.0.9:53"),
            ]
        };
        let draining = HashSet::from(["10.0.0.8:53".parse().unwrap()]);
        let found = find(&state(), entries(), &draining);
        let backends: Vec<_> = found.iter().map(StalePeer::backend).collect();
        assert_eq!(backends, ["10.0.0.9:53".parse().unwrap()]);
        assert_eq!(find(&state(), entries(), &HashSet::new()).len(), 2);
    }
}
