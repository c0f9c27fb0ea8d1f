//! Services as iptables rules, with real sockets: what pods behind a bridge, the node and the world see.

mod changes;
mod clients;

use std::net::SocketAddr;

use anyhow::Result;
use skiff_ebpf_loader::{
    Backend, DesiredTables, Frontend, FrontendSpec, IpFamily, Protocol, SetId, TableDiff,
};
use skiff_service_proxy::{Dataplane as _, Iptables, IptablesConfig};
use skiff_tests_datapath::{BridgedNode, PODS, TARGET, UPLINK};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
const EHOSTUNREACH: i32 = 113;
const NODE_PORT: u16 = 30_080;

/// The rules of a node, and what they are to be.
struct Rules {
    iptables: Iptables,
}

impl Rules {
    async fn open(node: &BridgedNode) -> Result<Self> {
        let config = IptablesConfig {
            netns: node.node_netns()?,
            node_addresses: vec![UPLINK.into()],
            pod_ranges: vec!["10.88.0.0/24".parse()?, "fd88::/64".parse()?],
            service_ranges: vec!["10.96.0.0/16".parse()?],
        };
        Ok(Self {
            iptables: Iptables::open(config).await?,
        })
    }

    /// Makes the tables so, all of them compared.
    fn program(&mut self, tables: &DesiredTables) -> Result<()> {
        let view = self.iptables.view();
        let diff = TableDiff {
            publish: tables
                .sets
                .iter()
                .filter(|(id, members)| !view.set_is(**id, members))
                .map(|(id, members)| (*id, members.clone()))
                .collect(),
            upsert: tables
                .frontends
                .iter()
                .filter(|(frontend, spec)| view.frontend(frontend).as_ref() != Some(*spec))
                .map(|(frontend, spec)| (*frontend, spec.clone()))
                .collect(),
            remove_frontends: view
                .frontends()
                .into_iter()
                .filter(|frontend| !tables.frontends.contains_key(frontend))
                .collect(),
            remove_sets: view
                .sets()
                .into_iter()
                .filter(|id| !tables.sets.contains_key(id))
                .collect(),
        };
        Ok(self.iptables.apply(&diff)?)
    }
}

fn set(name: &str) -> SetId {
    SetId::of(&["test", name])
}

#[expect(clippy::unwrap_used, reason = "the tests' own addresses")]
fn address(addr: &str, protocol: Protocol) -> Frontend {
    let addr: SocketAddr = addr.parse().unwrap();
    Frontend::Address {
        addr: addr.ip(),
        port: addr.port(),
        protocol,
    }
}

fn node_port(protocol: Protocol) -> Frontend {
    Frontend::NodePort {
        family: IpFamily::V4,
        port: NODE_PORT,
        protocol,
    }
}

fn inside(set: SetId) -> FrontendSpec {
    FrontendSpec::to(set)
}

/// These pods as backends.
fn backends(numbers: &[usize]) -> Vec<Backend> {
    let backend = |number: &usize| Backend::new(PODS[*number].into(), TARGET);
    numbers.iter().map(backend).collect()
}

fn names(numbers: &[usize]) -> Vec<String> {
    let name = |number: &usize| PODS[*number].to_string();
    numbers.iter().map(name).collect()
}
