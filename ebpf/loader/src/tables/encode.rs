//! The user side's values as they lie in the maps, and back.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use skiff_ebpf_common as abi;

use super::{Backend, Frontend, FrontendSpec, IpFamily, Protocol, SetId, sources::Lists};

/// As the tables have it.
pub(crate) fn addr_of(addr: IpAddr) -> abi::Addr {
    match addr {
        IpAddr::V4(addr) => abi::Addr::v4(u32::from_ne_bytes(addr.octets())),
        IpAddr::V6(addr) => abi::Addr::from_octets(addr.octets()),
    }
}

/// The same backwards.
pub(crate) fn ip_of(addr: abi::Addr) -> IpAddr {
    if addr.is_v4() {
        IpAddr::from(addr.as_v4().to_ne_bytes())
    } else {
        IpAddr::V6(Ipv6Addr::from(addr.octets()))
    }
}

pub(crate) fn proto_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => abi::PROTO_TCP,
        Protocol::Udp => abi::PROTO_UDP,
    }
}

/// The same backwards; none for other protocols.
pub(crate) fn protocol_of(proto: u8) -> Option<Protocol> {
    match proto {
        abi::PROTO_TCP => Some(Protocol::Tcp),
        abi::PROTO_UDP => Some(Protocol::Udp),
        _ => None,
    }
}

pub(super) fn key_of(frontend: &Frontend) -> abi::ServiceKey {
    match *frontend {
        Frontend::Address {
            addr,
            port,
            protocol,
        } => abi::ServiceKey {
            addr: addr_of(addr),
            port: port.to_be(),
            proto: proto_of(protocol),
            scope: abi::SCOPE_ADDRESS,
        },
        Frontend::NodePort {
            family,
            port,
            protocol,
        } => abi::ServiceKey {
            addr: match family {
                IpFamily::V4 => abi::Addr::ANY_V4,
                IpFamily::V6 => abi::Addr::ANY_V6,
            },
            port: port.to_be(),
            proto: proto_of(protocol),
            scope: abi::SCOPE_NODE_PORT,
        },
    }
}

pub(crate) fn frontend_of(key: &abi::ServiceKey) -> Frontend {
    let protocol = if key.proto == abi::PROTO_UDP {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let port = u16::from_be(key.port);
    if key.scope == abi::SCOPE_NODE_PORT {
        Frontend::NodePort {
            family: if key.addr.is_v4() {
                IpFamily::V4
            } else {
                IpFamily::V6
            },
            port,
            protocol,
        }
    } else {
        Frontend::Address {
            addr: ip_of(key.addr),
            port,
            protocol,
        }
    }
}

/// As it was written; none if it names what is not there.
pub(super) fn spec_of(
    service: &abi::Service,
    owners: &HashMap<u32, SetId>,
    lists: &Lists,
) -> Option<FrontendSpec> {
    let outside = match service.outside {
        0 => None,
        index => Some(*owners.get(&index)?),
    };
    let has = |flag| service.flags & flag != 0;
    let sources = if has(abi::SERVICE_SOURCES) {
        Some(lists.get(service.sources)?)
    } else {
        None
    };
    Some(FrontendSpec {
        inside: *owners.get(&service.inside)?,
        outside,
        affinity_seconds: service.affinity_seconds,
        local_only: has(abi::SERVICE_LOCAL_ONLY),
        sources,
        ends_streams: has(abi::SERVICE_ENDS_STREAMS),
    })
}

pub(super) fn flags_of(spec: &FrontendSpec) -> u16 {
    let flag = |on: bool, bit: u16| if on { bit } else { 0 };
    flag(spec.local_only, abi::SERVICE_LOCAL_ONLY)
        | flag(spec.sources.is_some(), abi::SERVICE_SOURCES)
        | flag(spec.ends_streams, abi::SERVICE_ENDS_STREAMS)
}

pub(crate) fn backend_of(found: &abi::Backend) -> Backend {
    Backend {
        addr: ip_of(found.addr),
        port: u16::from_be(found.port),
        local: found.flags & abi::BACKEND_LOCAL != 0,
        terminating: found.flags & abi::BACKEND_TERMINATING != 0,
    }
}

pub(super) fn value_of(backend: &Backend, set: u32, generation: u32) -> abi::Backend {
    let flag = |on: bool, bit: u16| if on { bit } else { 0 };
    abi::Backend {
        addr: addr_of(backend.addr),
        port: backend.port.to_be(),
        flags: flag(backend.local, abi::BACKEND_LOCAL)
            | flag(backend.terminating, abi::BACKEND_TERMINATING),
        set,
        generation,
        pad: 0,
    }
}
