//! Sockets that talk to a backend which their Service no longer has, or that connected before their Service was there.
//!
//! A connected UDP socket was translated once, at `connect`: nothing that is written into the tables later reaches it. So that
//! its owner moves on at once, the socket is ended ([`end_sockets`]) when its backend leaves the Service. Only sockets
//! that a Service sent to that backend are: the table of translated peers knows them by their cookies, which the
//! kernel never uses twice. Whoever talks to a pod directly is left alone. TCP connections go on, unless the frontend says
//! otherwise ([`FrontendSpec::ends_streams`]).

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
    /// It is to end if it is a UDP socket.
    datagrams: bool,
    /// It is to end if it is a TCP socket.
    streams: bool,
}

impl std::fmt::Debug for StalePeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StalePeer")
            .field("cookie", &self.key.cookie)
            .field("backend", &self.backend())
            .finish_non_exhaustive()
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
    /// They exist, and talk to nobody or somebody else now.
    pub alive: Vec<StalePeer>,
    /// They are TCP sockets that are left to end by themselves.
    pub streams: Vec<StalePeer>,
    /// So many were ended for their Service to have come after them.
    pub early: usize,
}

/// The entries of the table of translated peers that no Service accounts for any more. `draining` are backends that have
/// left their sets but still serve the clients they have.
pub(crate) fn find(
    state: &TableState,
    entries: Vec<(abi::RevNatKey, abi::RevNat)>,
    draining: &HashSet<SocketAddr>,
) -> Vec<StalePeer> {
    let mut members: HashMap<SetId, HashSet<SocketAddr>> = HashMap::new();
    let mut leads = |spec: Option<&FrontendSpec>, backend: &SocketAddr| {
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
        let by_streams = leads(streams, &backend);
        let by_datagrams = leads(datagrams, &backend) || (datagrams.is_none() && by_streams);
        let ends = streams.is_some_and(|spec| spec.ends_streams);
        let peer = StalePeer {
            key,
            datagrams: !by_datagrams,
            streams: ends && !by_streams,
        };
        if peer.datagrams || peer.streams {
            stale.push(peer);
        }
    }
    stale
}

/// How the address is served: as one of a Service, or else as a NodePort (it was one of the node's, then).
fn frontend(state: &TableState, asked: SocketAddr, protocol: Protocol) -> Option<&FrontendSpec> {
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
    let exact = state.spec(&exact);
    exact.or_else(|| state.spec(&node_port))
}

/// Ends those of the sockets that are in the calling thread's network namespace and still connected to their stale
/// backend: over UDP, and over TCP where that is asked for. Also ends UDP sockets that are connected to one of the frontends in
/// `early`: they were before their Service, so nothing was translated for them, and nothing would ever be.
///
/// # Errors
/// [`io::Error`] if the kernel does not list sockets or refuses to end one.
pub fn end_sockets(peers: &[StalePeer], early: &HashSet<SocketAddr>) -> io::Result<Ended> {
    let mut wanted: HashMap<u64, Vec<StalePeer>> = HashMap::new();
    for peer in peers {
        wanted.entry(peer.key.cookie).or_default().push(*peer);
    }
    let mut diag = SockDiag::open()?;
    let mut result = Ended::default();
    for socket in diag.sockets(PROTO_UDP)? {
        let peer = socket.peer();
        if peer.is_some_and(|(addr, port)| early.contains(&socket_addr(addr, port))) {
            result.early += usize::from(diag.destroy(PROTO_UDP, &socket)?);
        }
        for stale in wanted.remove(&socket.cookie()).unwrap_or_default() {
            let connected = peer == Some((stale.key.addr, stale.key.port));
            if stale.datagrams && connected && diag.destroy(PROTO_UDP, &socket)? {
                result.ended.push(stale);
            } else {
                result.alive.push(stale);
            }
        }
    }
    if !wanted.is_empty() {
        for socket in diag.sockets(PROTO_TCP)? {
            for stale in wanted.remove(&socket.cookie()).unwrap_or_default() {
                let connected = socket.far_end() == (stale.key.addr, stale.key.port);
                if stale.streams && connected && diag.destroy(PROTO_TCP, &socket)? {
                    result.ended.push(stale);
                } else {
                    result.streams.push(stale);
                }
            }
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
        let spec = |name: &str| FrontendSpec::to(SetId::of(&[name]));
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
    fn streams_are_stale_where_that_is_asked_for() {
        let mut state = state();
        let tcp = Frontend::Address {
            addr: "10.96.0.10".parse().unwrap(),
            port: 53,
            protocol: Protocol::Tcp,
        };
        let spec = state.frontends.get_mut(&tcp).unwrap();
        spec.ends_streams = true;
        // The backend, and whether a UDP or a TCP socket ends.
        let cases = [
            ("10.0.0.1:53", None),
            ("10.0.0.2:53", Some((false, true))),
            ("10.0.0.3:53", Some((true, false))),
            ("10.0.0.9:53", Some((true, true))),
        ];
        for (backend, expected) in cases {
            let entries = vec![entry(1, "10.96.0.10:53", backend)];
            let found = find(&state, entries, &HashSet::new());
            let found = found.first().map(|peer| (peer.datagrams, peer.streams));
            assert_eq!(found, expected, "{backend}");
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
