//! Which backend a client gets, and (in [`policy`]) which packets pass: look-up and selection, generic over map access.
//!
//! Pure: the kernel side (`ebpf/programs`) and host tests give it their [`Tables`]. It never translates an address
//! that is no frontend; what is left alone then meets the node's unreachable routes.

#![no_std]

use skiff_ebpf_common::{
    Addr, Affinity, AffinityKey, Backend, Client, Config, FLOW_SECONDS, PROTO_UDP, SCOPE_ADDRESS,
    SCOPE_NODE_PORT, Service, ServiceKey, SetWord, Slot,
};

pub mod icmp;
pub mod nat;
pub mod packet;
pub mod sources;
pub mod sum;

#[cfg(test)]
extern crate std;

pub mod policy;

#[cfg(test)]
mod tests;

/// How often a reader starts again when what it read was given to somebody else meanwhile.
const ATTEMPTS: u32 = 3;

/// A memory younger than this is not renewed: timeouts are in seconds, writes cost more than reads.
const REFRESH_NS: u64 = 500_000_000;

/// Access to the maps. Each read returns a copy.
pub trait Tables {
    /// A frontend. [`Service::key`] must be read last.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The word of a set (`BackendSet::word`), in one load.
    fn set_word(&self, set: u32) -> Option<u64>;
    /// A member of a set.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A backend.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// The node's settings.
    fn config(&self) -> Option<Config>;
    /// Whether the address is one of the node's.
    fn is_node_address(&self, addr: &Addr) -> bool;
    /// The remembered backend of a client or of a socket.
    fn affinity(&self, of: Sticky, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers it.
    fn set_affinity(&self, of: Sticky, key: &AffinityKey, value: &Affinity);
    /// Whether a list of source ranges has the address.
    fn is_source(&self, list: u16, addr: &Addr) -> bool;
    /// What sockets of a network namespace send from. If that is not known, somebody is asked to find out.
    fn client(&self, netns: u64) -> Option<Client>;
    /// Uniformly random.
    fn random(&self) -> u32;
    /// Monotonic nanoseconds.
    fn now(&self) -> u64;
}

/// What keeps its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// `sessionAffinity: ClientIP`.
    Client,
    /// An unconnected UDP socket: its datagrams are one flow.
    Socket,
}

/// Where a socket wants to go, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The address.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// IPPROTO_*.
    pub proto: u8,
    /// The cookie of the socket's network namespace.
    pub netns: u64,
    /// The cookie of an unconnected UDP socket; 0 if this is a `connect`.
    pub socket: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not a Service: leave it alone.
    Pass,
    /// Go there instead.
    To {
        /// The backend.
        backend: Backend,
        /// Whether session affinity chose it.
        by_affinity: bool,
    },
    /// The Service has no backend, or none for this client: refuse at once.
    Refuse,
    /// What was read never fitted together: refuse, and count it.
    Inconsistent,
}

/// Decides one request.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, request: &Request) -> Verdict {
    let Some(service) = find_service(tables, request) else {
        return Verdict::Pass;
    };
    let set = service.inside;
    if set == 0 || !sources::serves_socket(tables, &service, request) {
        return Verdict::Refuse;
    }
    if service.affinity_seconds != 0 {
        return sticky(
            tables,
            Sticky::Client,
            request.netns,
            set,
            service.affinity_seconds,
        );
    }
    if request.proto == PROTO_UDP && request.socket != 0 {
        return sticky(tables, Sticky::Socket, request.socket, set, FLOW_SECONDS);
    }
    match pick(tables, set, || tables.random()) {
        Pick::Backend(_, backend) => Verdict::To {
            backend,
            by_affinity: false,
        },
        Pick::Empty => Verdict::Refuse,
        Pick::Inconsistent => Verdict::Inconsistent,
    }
}

/// The frontend that the request names: by its address, or as a NodePort of this node.
#[inline(always)]
pub fn find_service<T: Tables>(tables: &T, request: &Request) -> Option<Service> {
    let exact = ServiceKey {
        addr: request.addr,
        port: request.port,
        proto: request.proto,
        scope: SCOPE_ADDRESS,
    };
    if let Some(service) = consistent_service(tables, &exact) {
        return Some(service);
    }
    let config = tables.config()?;
    let port = u16::from_be(request.port);
    if port < config.node_port_first || port > config.node_port_last {
        return None;
    }
    // A loopback address means the node only in the node's own namespace: a pod's loopback is the pod's.
    let here = if request.addr.is_loopback() {
        request.netns == config.node_netns
    } else {
        tables.is_node_address(&request.addr)
    };
    if !here {
        return None;
    }
    consistent_service(
        tables,
        &ServiceKey {
            addr: request.addr.any(),
            scope: SCOPE_NODE_PORT,
            ..exact
        },
    )
}

/// Whether a socket of the node that binds there would stand behind a Service's NodePort. The addresses of pods and
/// Services are no addresses of the node.
#[inline(always)]
pub fn is_taken_by_node_port<T: Tables>(
    tables: &T,
    addr: &Addr,
    port: u16,
    proto: u8,
    netns: u64,
) -> bool {
    let Some(config) = tables.config() else {
        return false;
    };
    let number = u16::from_be(port);
    if number < config.node_port_first
        || number > config.node_port_last
        || netns != config.node_netns
        || !(*addr == addr.any() || tables.is_node_address(addr))
    {
        return false;
    }
    let taken = |addr| {
        let key = ServiceKey {
            addr,
            port,
            proto,
            scope: SCOPE_NODE_PORT,
        };
        consistent_service(tables, &key).is_some()
    };
    // A socket on `::` takes IPv4 too.
    taken(addr.any()) || (*addr == Addr::ANY_V6 && taken(Addr::ANY_V4))
}

#[inline(always)]
fn consistent_service<T: Tables>(tables: &T, key: &ServiceKey) -> Option<Service> {
    for _ in 0..ATTEMPTS {
        let service = tables.service(key)?;
        if service.key == *key {
            return Some(service);
        }
    }
    None
}

/// What [`pick`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// A backend and its slot.
    Backend(Slot, Backend),
    /// The set has no member.
    Empty,
    /// No attempt saw a whole set.
    Inconsistent,
}

/// The member of a set that a number names: random, or a flow's hash.
#[inline(always)]
pub fn pick<T: Tables>(tables: &T, set: u32, number: impl Fn() -> u32) -> Pick {
    for _ in 0..ATTEMPTS {
        let Some(word) = tables.set_word(set) else {
            return Pick::Empty;
        };
        let run = SetWord::unpack(word);
        if run.count == 0 {
            return Pick::Empty;
        }
        // Scales the number to the count without a division.
        let offset = ((u64::from(number()) * u64::from(run.count)) >> 32) as u32;
        let Some(slot) = tables.slot(run.base.wrapping_add(offset)) else {
            continue;
        };
        if let Some(backend) = member(tables, set, slot.backend, slot.generation) {
            return Pick::Backend(slot, backend);
        }
    }
    Pick::Inconsistent
}

/// The backend, if it still is the one meant.
#[inline(always)]
fn member<T: Tables>(tables: &T, set: u32, id: u32, generation: u32) -> Option<Backend> {
    let backend = tables.backend(id)?;
    (backend.set == set && backend.generation == generation).then_some(backend)
}

/// The remembered backend while it is in the set and the memory is fresh, else a new one.
#[inline(always)]
fn sticky<T: Tables>(tables: &T, of: Sticky, client: u64, set: u32, seconds: u32) -> Verdict {
    match remembered(tables, (of, client), set, seconds, || tables.random()) {
        (by_affinity, Pick::Backend(_, backend)) => Verdict::To {
            backend,
            by_affinity,
        },
        (_, Pick::Empty) => Verdict::Refuse,
        (_, Pick::Inconsistent) => Verdict::Inconsistent,
    }
}

/// As [`pick`], but whoever was here before gets the same again. Tells whether that was so.
#[inline(always)]
fn remembered<T: Tables>(
    tables: &T,
    (of, client): (Sticky, u64),
    set: u32,
    seconds: u32,
    number: impl Fn() -> u32,
) -> (bool, Pick) {
    let key = AffinityKey {
        client,
        set,
        pad: 0,
    };
    let now = tables.now();
    if let Some(known) = tables.affinity(of, &key)
        && now.wrapping_sub(known.last_used) <= u64::from(seconds) * 1_000_000_000
        && let Some(backend) = member(tables, set, known.backend, known.generation)
    {
        if now.wrapping_sub(known.last_used) >= REFRESH_NS {
            let value = Affinity {
                last_used: now,
                ..known
            };
            tables.set_affinity(of, &key, &value);
        }
        let slot = Slot {
            backend: known.backend,
            generation: known.generation,
        };
        return (true, Pick::Backend(slot, backend));
    }
    let picked = pick(tables, set, number);
    if let Pick::Backend(slot, _) = picked {
        let value = Affinity {
            backend: slot.backend,
            generation: slot.generation,
            last_used: now,
        };
        tables.set_affinity(of, &key, &value);
    }
    (false, picked)
}
