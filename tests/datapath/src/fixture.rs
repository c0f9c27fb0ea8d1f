//! The Services that most tests use.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use skiff_ebpf_loader::{
    Backend, Datapath, DesiredTables, Frontend, FrontendSpec, Protocol, SetId,
};

use crate::{PODS, Probe, TestNode, protocol::Command};

/// A Service with backends.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 80), 80);
/// A Service without.
pub const EMPTY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 81), 80);
/// Where the backends listen.
pub const TARGET: u16 = 8080;

/// A TCP frontend.
#[must_use]
pub fn tcp(addr: SocketAddrV4) -> Frontend {
    Frontend::Address {
        addr: (*addr.ip()).into(),
        port: addr.port(),
        protocol: Protocol::Tcp,
    }
}

/// A UDP frontend.
#[must_use]
pub fn udp(addr: SocketAddrV4) -> Frontend {
    Frontend::Address {
        addr: (*addr.ip()).into(),
        port: addr.port(),
        protocol: Protocol::Udp,
    }
}

/// A frontend of all members of a set.
#[must_use]
pub fn spec(set: SetId) -> FrontendSpec {
    FrontendSpec {
        inside: set,
        outside: None,
        affinity_seconds: 0,
    }
}

/// The set behind [`VIP`].
#[must_use]
pub fn web() -> SetId {
    SetId::of(&["test", "web", "http"])
}

/// The first pods as backends.
#[must_use]
pub fn pods(count: usize) -> Vec<Backend> {
    PODS.iter()
        .take(count)
        .map(|addr| Backend::new((*addr).into(), TARGET))
        .collect()
}

/// The first pods' names, as the servers answer.
#[must_use]
pub fn pod_names(count: usize) -> Vec<String> {
    PODS.iter().take(count).map(ToString::to_string).collect()
}

/// The first pods behind TCP and UDP of [`VIP`], nothing behind [`EMPTY`].
#[must_use]
pub fn tables(count: usize) -> DesiredTables {
    let none = SetId::of(&["test", "empty", "http"]);
    DesiredTables {
        sets: [(web(), pods(count)), (none, Vec::new())].into(),
        frontends: [
            (tcp(VIP), spec(web())),
            (udp(VIP), spec(web())),
            (tcp(EMPTY), spec(none)),
            (udp(EMPTY), spec(none)),
        ]
        .into(),
    }
}

/// Makes the tables so.
///
/// # Errors
/// As [`Datapath::apply`].
pub fn program(datapath: &mut Datapath, tables: &DesiredTables) -> Result<()> {
    let diff = datapath.diff(tables);
    Ok(datapath.apply(&diff)?)
}

/// Servers on all pod addresses, which answer with their address.
///
/// # Errors
/// If they cannot be started.
pub fn servers(node: &TestNode) -> Result<Probe> {
    let mut probe = node.pod()?;
    for addr in PODS {
        let (addr, name) = (SocketAddrV4::new(addr, TARGET), addr.to_string());
        probe.tell(&Command::TcpServe {
            addr: addr.into(),
            name: name.clone(),
        })?;
        probe.tell(&Command::UdpServe {
            addr: addr.into(),
            name,
        })?;
    }
    Ok(probe)
}
