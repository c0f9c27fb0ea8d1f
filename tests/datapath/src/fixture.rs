//! The Services that most tests use.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use anyhow::Result;
use skiff_ebpf_loader::{
    Backend, Datapath, DesiredTables, Frontend, FrontendSpec, Protocol, SetId,
};

use crate::{
    PODS, PODS6, Probe, TestNode,
    protocol::{Answer, Command},
};

/// A Service with backends.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 80), 80);
/// A Service without.
pub const EMPTY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 81), 80);
/// An IPv6 Service with backends.
pub const VIP6: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x80), 80, 0, 0);
/// An IPv6 Service without.
pub const EMPTY6: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x81), 80, 0, 0);
/// Where the backends listen.
pub const TARGET: u16 = 8080;

/// A TCP frontend.
#[must_use]
pub fn tcp(addr: impl Into<SocketAddr>) -> Frontend {
    let addr = addr.into();
    Frontend::Address {
        addr: addr.ip(),
        port: addr.port(),
        protocol: Protocol::Tcp,
    }
}

/// A UDP frontend.
#[must_use]
pub fn udp(addr: impl Into<SocketAddr>) -> Frontend {
    let addr = addr.into();
    Frontend::Address {
        addr: addr.ip(),
        port: addr.port(),
        protocol: Protocol::Udp,
    }
}

/// A frontend of all members of a set.
#[must_use]
pub fn spec(set: SetId) -> FrontendSpec {
    FrontendSpec::to(set)
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

/// The first pods' IPv6 addresses behind TCP and UDP of [`VIP6`], nothing behind [`EMPTY6`].
#[must_use]
pub fn tables6(count: usize) -> DesiredTables {
    let none = SetId::of(&["test", "empty", "http"]);
    let pods = PODS6.iter().take(count);
    let pods = pods.map(|addr| Backend::new((*addr).into(), TARGET));
    DesiredTables {
        sets: [(web(), pods.collect()), (none, Vec::new())].into(),
        frontends: [
            (tcp(VIP6), spec(web())),
            (udp(VIP6), spec(web())),
            (tcp(EMPTY6), spec(none)),
            (udp(EMPTY6), spec(none)),
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
    let all = PODS.into_iter().map(IpAddr::from);
    for ip in all.chain(PODS6.into_iter().map(IpAddr::from)) {
        let (addr, name) = (SocketAddr::new(ip, TARGET), ip.to_string());
        probe.tell(&Command::TcpServe {
            addr,
            name: name.clone(),
        })?;
        probe.tell(&Command::UdpServe { addr, name })?;
    }
    Ok(probe)
}

/// So often this, and nothing else.
#[must_use]
pub fn only(key: impl ToString, count: u32) -> BTreeMap<String, u32> {
    [(key.to_string(), count)].into()
}

/// Who has answered.
#[must_use]
pub fn names(answer: &Answer) -> Vec<&str> {
    answer.names.keys().map(String::as_str).collect()
}
