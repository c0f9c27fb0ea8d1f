//! The user side's values as they lie in the maps, and back.

use std::{collections::HashMap, net::IpAddr};

use skiff_ebpf_common as abi;

use super::{Backend, Frontend, FrontendSpec, Protocol, SetId, v4};
use crate::DatapathError;

fn proto_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => abi::PROTO_TCP,
        Protocol::Udp => abi::PROTO_UDP,
    }
}

pub(super) fn key_of(frontend: &Frontend) -> Result<abi::ServiceKey, DatapathError> {
    Ok(match *frontend {
        Frontend::Address {
            addr,
            port,
            protocol,
        } => abi::ServiceKey {
            addr: u32::from_ne_bytes(v4(addr)?.octets()),
            port: port.to_be(),
            proto: proto_of(protocol),
            scope: abi::SCOPE_ADDRESS,
        },
        Frontend::NodePort { port, protocol } => abi::ServiceKey {
            addr: 0,
            port: port.to_be(),
            proto: proto_of(protocol),
            scope: abi::SCOPE_NODE_PORT,
        },
    })
}

pub(super) fn frontend_of(key: &abi::ServiceKey) -> Frontend {
    let protocol = if key.proto == abi::PROTO_UDP {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let port = u16::from_be(key.port);
    if key.scope == abi::SCOPE_NODE_PORT {
        Frontend::NodePort { port, protocol }
    } else {
        Frontend::Address {
            addr: IpAddr::from(key.addr.to_ne_bytes()),
            port,
            protocol,
        }
    }
}

pub(super) fn spec_of(
    service: &abi::Service,
    owners: &HashMap<u32, SetId>,
) -> Option<FrontendSpec> {
    let local_set = match service.set_local {
        0 => None,
        index => Some(*owners.get(&index)?),
    };
    Some(FrontendSpec {
        set: *owners.get(&service.set)?,
        local_set,
        local_only: service.flags & abi::SERVICE_LOCAL_ONLY != 0,
        affinity_seconds: service.affinity_seconds,
    })
}

pub(super) fn backend_of(found: &abi::Backend) -> Backend {
    Backend {
        addr: IpAddr::from(found.addr.to_ne_bytes()),
        port: u16::from_be(found.port),
        local: found.flags & abi::BACKEND_LOCAL != 0,
        terminating: found.flags & abi::BACKEND_TERMINATING != 0,
    }
}

pub(super) fn value_of(
    backend: &Backend,
    set: u32,
    generation: u32,
) -> Result<abi::Backend, DatapathError> {
    let flag = |on: bool, bit: u16| if on { bit } else { 0 };
    Ok(abi::Backend {
        addr: u32::from_ne_bytes(v4(backend.addr)?.octets()),
        port: backend.port.to_be(),
        flags: flag(backend.local, abi::BACKEND_LOCAL)
            | flag(backend.terminating, abi::BACKEND_TERMINATING),
        set,
        generation,
    })
}
