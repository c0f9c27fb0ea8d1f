//! Which clients a frontend serves: `loadBalancerSourceRanges`. Asked of new connections only, and only for frontends that
//! have such a list.

use skiff_ebpf_common::{Addr, SERVICE_SOURCES, Service};

use crate::{Request, Tables};

/// Whether a client that sends from this address is served.
#[inline(always)]
pub fn serves<T: Tables>(tables: &T, service: &Service, client: &Addr) -> bool {
    service.flags & SERVICE_SOURCES == 0 || tables.is_source(service.sources, client)
}

/// The same for a socket of the node or of a pod. It has no address yet: it counts as its network namespace's.
#[inline(always)]
pub fn serves_socket<T: Tables>(tables: &T, service: &Service, request: &Request) -> bool {
    if service.flags & SERVICE_SOURCES == 0 {
        return true;
    }
    let Some(client) = tables.client(request.netns) else {
        return false;
    };
    let addr = if request.addr.is_v4() {
        client.v4
    } else {
        client.v6
    };
    addr != addr.any() && tables.is_source(service.sources, &addr)
}
