//! UDP flows that go on to where their Service no longer leads: UDP knows no end, so connection tracking would keep them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use skiff_cni::firewall::{Family, FirewallError, UdpFlow, delete_udp_flows};
use skiff_ebpf_loader::{Frontend, IpFamily, Protocol};

use super::{chain::family_of, state::State};

/// Who may answer for which frontend.
#[derive(Debug, Default)]
pub(super) struct Answerers {
    addresses: HashMap<SocketAddr, HashSet<SocketAddr>>,
    node_ports: HashMap<u16, HashSet<SocketAddr>>,
}

impl Answerers {
    /// Those of the UDP frontends among these; nobody may answer for one that is gone.
    pub(super) fn of(state: &State, frontends: &BTreeSet<Frontend>, family: IpFamily) -> Self {
        let mut all = Self::default();
        for frontend in frontends {
            let spec = state.frontends().get(frontend);
            let sets = spec.map(|spec| [Some(spec.inside), spec.outside]);
            let members = || {
                let sets = sets.iter().flatten().flatten();
                let members = sets.flat_map(|set| state.members(*set));
                members
                    .map(|member| SocketAddr::new(member.addr, member.port))
                    .collect()
            };
            match *frontend {
                Frontend::Address {
                    addr,
                    port,
                    protocol: Protocol::Udp,
                } if IpFamily::of(addr) == family => {
                    all.addresses.insert(SocketAddr::new(addr, port), members());
                }
                Frontend::NodePort {
                    family: of,
                    port,
                    protocol: Protocol::Udp,
                } if of == family => {
                    all.node_ports.insert(port, members());
                }
                Frontend::Address { .. } | Frontend::NodePort { .. } => {}
            }
        }
        all
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty()
    }

    /// Whether somebody answers who may not.
    fn is_stale(&self, flow: &UdpFlow, node: &HashSet<IpAddr>) -> bool {
        let (ip, port) = (flow.destination.ip(), flow.destination.port());
        let may = self.addresses.get(&flow.destination).or_else(|| {
            let port = self.node_ports.get(&port)?;
            node.contains(&ip).then_some(port)
        });
        may.is_some_and(|may| !may.contains(&flow.responder))
    }
}

/// Ends the flows of one family whose answerers are no backends, in the calling thread's network namespace.
pub(super) fn end_stale(answerers: &Answerers, family: IpFamily) -> Result<usize, FirewallError> {
    if answerers.is_empty() {
        return Ok(0);
    }
    let node = if answerers.node_ports.is_empty() {
        HashSet::new()
    } else {
        local_addresses()
    };
    let family: Family = family_of(family);
    delete_udp_flows(family, |flow| answerers.is_stale(flow, &node))
}

/// The addresses of the calling thread's network namespace.
fn local_addresses() -> HashSet<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return HashSet::new();
    };
    all.filter_map(|link| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use skiff_ebpf_loader::{Backend, FrontendSpec, SetId, TableDiff};

    use super::*;

    fn flow(destination: &str, responder: &str) -> UdpFlow {
        UdpFlow {
            destination: destination.parse().unwrap(),
            responder: responder.parse().unwrap(),
        }
    }

    #[test]
    fn a_flow_is_stale_if_no_backend_answers_it() {
        let set = SetId::of(&["dns"]);
        let address = Frontend::Address {
            addr: "10.96.0.10".parse().unwrap(),
            port: 53,
            protocol: Protocol::Udp,
        };
        let gone = Frontend::Address {
            addr: "10.96.0.11".parse().unwrap(),
            port: 53,
            protocol: Protocol::Udp,
        };
        let node_port = Frontend::NodePort {
            family: IpFamily::V4,
            port: 30_053,
            protocol: Protocol::Udp,
        };
        let spec = FrontendSpec {
            outside: Some(set),
            ..FrontendSpec::to(set)
        };
        let mut state = State::default();
        let mut touched = state.apply(&TableDiff {
            publish: vec![(set, vec![Backend::new("10.1.0.2".parse().unwrap(), 5353)])],
            upsert: vec![(address, spec.clone()), (node_port, spec)],
            ..TableDiff::default()
        });
        touched.frontends.insert(gone);
        let answerers = Answerers::of(&state, &touched.frontends, IpFamily::V4);
        let node = HashSet::from(["192.168.0.1".parse().unwrap()]);
        for (destination, responder, stale) in [
            ("10.96.0.10:53", "10.1.0.2:5353", false),
            ("10.96.0.10:53", "10.1.0.3:5353", true),
            // Sent before the Service had a backend.
            ("10.96.0.10:53", "10.96.0.10:53", true),
            ("10.96.0.11:53", "10.1.0.2:5353", true),
            ("192.168.0.1:30053", "10.1.0.2:5353", false),
            ("192.168.0.1:30053", "192.168.0.1:30053", true),
            // Of another node, and nobody's frontend.
            ("192.168.0.2:30053", "10.1.0.3:5353", false),
            ("10.96.0.10:54", "10.96.0.10:54", false),
        ] {
            assert_eq!(
                answerers.is_stale(&flow(destination, responder), &node),
                stale,
                "{destination} {responder}"
            );
        }
        let v6 = Answerers::of(&state, &touched.frontends, IpFamily::V6);
        assert!(v6.is_empty());
    }
}
