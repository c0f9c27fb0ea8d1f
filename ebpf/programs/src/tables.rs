//! The maps, and `ebpf/lb`'s view of them.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    helpers::{
        bpf_get_prandom_u32,
        generated::{
            bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_set_retval,
        },
    },
    macros::map,
    maps::{
        Array, HashMap, LruHashMap, PerCpuArray, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::SockAddrContext,
};
use skiff_ebpf_common::{
    Addr, Affinity, AffinityKey, Backend, BackendSet, Client, Config, METRICS, Metric, PROTO_TCP,
    PROTO_UDP, RevNat, RevNatKey, SOURCE_BITS, Service, ServiceKey, Slot, Source, TraceEvent,
    TraceHook, TraceVerdict, limits,
};
use skiff_lb::{Request, Sticky, Tables, Verdict};

use crate::trace;

/// The user side writes these arrays through a mapping: a store is a store, not a system call.
const MMAPABLE: u32 = aya_ebpf::bindings::BPF_F_MMAPABLE;

#[map]
static LB_SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(limits::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static LB_SETS: Array<BackendSet> = Array::with_max_entries(limits::SETS, MMAPABLE);
#[map]
static LB_SLOTS: Array<Slot> = Array::with_max_entries(limits::SLOTS, MMAPABLE);
#[map]
static LB_BACKENDS: Array<Backend> = Array::with_max_entries(limits::BACKENDS, MMAPABLE);
#[map]
static LB_REV_NAT: LruHashMap<RevNatKey, RevNat> = LruHashMap::with_max_entries(limits::REV_NAT, 0);
#[map]
static LB_AFFINITY: LruHashMap<AffinityKey, Affinity> =
    LruHashMap::with_max_entries(limits::AFFINITY, 0);
#[map]
static LB_FLOWS: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(limits::FLOWS, 0);
#[map]
static LB_SOURCES: LpmTrie<Source, u32> =
    LpmTrie::with_max_entries(limits::SOURCES, BPF_F_NO_PREALLOC);
#[map]
static LB_CLIENTS: HashMap<u64, Client> =
    HashMap::with_max_entries(limits::CLIENTS, BPF_F_NO_PREALLOC);
#[map]
static LB_NEW_CLIENTS: RingBuf = RingBuf::with_byte_size(limits::NEW_CLIENTS_BYTES, 0);
#[map]
static LB_NODE_ADDRS: HashMap<Addr, u32> =
    HashMap::with_max_entries(limits::NODE_ADDRS, BPF_F_NO_PREALLOC);
#[map]
static LB_CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static LB_METRICS: PerCpuArray<u64> = PerCpuArray::with_max_entries(METRICS, 0);
#[map]
static LB_CONNECTIONS: Array<u64> = Array::with_max_entries(limits::SETS, 0);

/// The kernel's maps.
pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let service = LB_SERVICES.get_ptr(key)?;
        // SAFETY: the element is the map's and stays mapped while the program runs. Its key is read after the
        // rest (both volatile, so in this order): it tells whether the element changed hands meanwhile.
        unsafe {
            let rest = ptr::read_volatile(service);
            let key = ptr::read_volatile(&raw const (*service).key);
            Some(Service { key, ..rest })
        }
    }

    #[inline(always)]
    fn set_word(&self, set: u32) -> Option<u64> {
        let set = LB_SETS.get_ptr(set)?;
        // SAFETY: array elements are never freed; the word is aligned, so this is one load.
        Some(unsafe { ptr::read_volatile(&raw const (*set).word) })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        LB_SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        LB_BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn config(&self) -> Option<Config> {
        LB_CONFIG.get(0).copied()
    }

    #[inline(always)]
    fn is_node_address(&self, addr: &Addr) -> bool {
        LB_NODE_ADDRS.get_ptr(addr).is_some()
    }

    #[inline(always)]
    fn affinity(&self, of: Sticky, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: a copy is taken; one that is torn fails the check of generation and set.
        unsafe {
            match of {
                Sticky::Client => LB_AFFINITY.get(key),
                Sticky::Socket => LB_FLOWS.get(key),
            }
        }
        .copied()
    }

    #[inline(always)]
    fn set_affinity(&self, of: Sticky, key: &AffinityKey, value: &Affinity) {
        let written = match of {
            Sticky::Client => LB_AFFINITY.insert(key, value, u64::from(BPF_ANY)),
            Sticky::Socket => LB_FLOWS.insert(key, value, u64::from(BPF_ANY)),
        };
        if written.is_err() {
            count(Metric::TableFull);
        }
    }

    #[inline(always)]
    fn is_source(&self, list: u16, addr: &Addr) -> bool {
        let source = Source {
            list,
            pad: 0,
            addr: *addr,
        };
        LB_SOURCES.get(Key::new(SOURCE_BITS, source)).is_some()
    }

    #[inline(always)]
    fn client(&self, netns: u64) -> Option<Client> {
        // SAFETY: a copy is taken at once.
        let known = unsafe { LB_CLIENTS.get(netns) }.copied();
        if known.is_none() {
            // No room: whoever reads has not yet seen others, and will look for all.
            if let Some(mut entry) = LB_NEW_CLIENTS.reserve::<u64>(0) {
                entry.write(netns);
                entry.submit(0);
            }
        }
        known
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: has no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: has no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(metric: Metric) {
    add(metric, 1);
}

/// Adds to a counter of this CPU.
#[inline(always)]
pub(crate) fn add(metric: Metric, amount: u64) {
    if let Some(counter) = LB_METRICS.get_ptr_mut(metric as u32) {
        // SAFETY: this CPU's own element; the hooks do not interrupt each other on a CPU in a way that matters
        // for a counter.
        unsafe { *counter += amount }
    }
}

/// Adds one to the connections of a set.
#[inline(always)]
pub(crate) fn count_connection(set: u32) {
    if let Some(counter) = LB_CONNECTIONS.get_ptr_mut(set) {
        // SAFETY: array elements are never freed, are aligned, and are only added to. Atomic rather than per CPU: a
        // connection costs a thousand times as much, and memory would grow with the number of CPUs.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
    }
}

/// The call goes on, with the address as it now is.
pub(crate) const PROCEED: i32 = 1;
/// The call fails.
const FAIL: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EADDRINUSE: i32 = 98;

/// TCP or UDP, or nothing that we translate.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the context is valid while the program runs.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol == u32::from(PROTO_TCP) {
        Some(PROTO_TCP)
    } else if protocol == u32::from(PROTO_UDP) {
        Some(PROTO_UDP)
    } else {
        None
    }
}

/// Where the hook finds the peer's address, and leaves another one. Network byte order.
pub(crate) trait Peer {
    /// Address and port.
    fn get(ctx: &SockAddrContext) -> (Addr, u16);
    /// Writes what [`Peer::get`] has read, or another address of the same kind; false if the hook cannot.
    fn set(ctx: &SockAddrContext, addr: &Addr, port: u16) -> bool;
}

/// An IPv4 socket's.
pub(crate) struct V4;

impl Peer for V4 {
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> (Addr, u16) {
        // SAFETY: the context is valid while the program runs. The port is a 16-bit field shown as 32 bits.
        let (addr, port) =
            unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port as u16) };
        (Addr::v4(addr), port)
    }

    #[inline(always)]
    fn set(ctx: &SockAddrContext, addr: &Addr, port: u16) -> bool {
        if !addr.is_v4() {
            return false;
        }
        // SAFETY: both fields may be written by all hooks of the family.
        unsafe {
            (*ctx.sock_addr).user_ip4 = addr.as_v4();
            (*ctx.sock_addr).user_port = u32::from(port);
        }
        true
    }
}

/// An IPv6 socket's. It may well talk IPv4: `::ffff:a.b.c.d`, as programs do that open one socket for both families.
pub(crate) struct V6;

impl Peer for V6 {
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> (Addr, u16) {
        // SAFETY: as above. Word by word: a slice would be read with a length that the verifier does not know.
        unsafe {
            let ip = &raw const (*ctx.sock_addr).user_ip6;
            (
                Addr([
                    ptr::read_volatile(&raw const (*ip)[0]),
                    ptr::read_volatile(&raw const (*ip)[1]),
                    ptr::read_volatile(&raw const (*ip)[2]),
                    ptr::read_volatile(&raw const (*ip)[3]),
                ]),
                (*ctx.sock_addr).user_port as u16,
            )
        }
    }

    #[inline(always)]
    fn set(ctx: &SockAddrContext, addr: &Addr, port: u16) -> bool {
        let Addr([one, two, three, four]) = *addr;
        // SAFETY: as above, and again word by word.
        unsafe {
            let ip = &raw mut (*ctx.sock_addr).user_ip6;
            ptr::write_volatile(&raw mut (*ip)[0], one);
            ptr::write_volatile(&raw mut (*ip)[1], two);
            ptr::write_volatile(&raw mut (*ip)[2], three);
            ptr::write_volatile(&raw mut (*ip)[3], four);
            (*ctx.sock_addr).user_port = u32::from(port);
        }
        true
    }
}

/// Towards a Service: `connect` and `sendmsg`.
#[inline(always)]
pub(crate) fn forward<P: Peer>(ctx: &SockAddrContext, unconnected: bool) -> i32 {
    let Some(proto) = protocol(ctx) else {
        return PROCEED;
    };
    let (addr, port) = P::get(ctx);
    // SAFETY: the context is valid while the program runs.
    let (netns, cookie) = unsafe {
        (
            bpf_get_netns_cookie(ctx.as_ptr()),
            bpf_get_socket_cookie(ctx.as_ptr()),
        )
    };
    let socket = if unconnected { cookie } else { 0 };
    let request = Request {
        addr,
        port,
        proto,
        netns,
        socket,
    };
    let verdict = skiff_lb::decide(&KernelTables, &request);
    trace::tell(|| forward_event(&request, &verdict, cookie));
    match verdict {
        Verdict::Pass => PROCEED,
        Verdict::Refuse => refuse(Metric::Refused),
        Verdict::Inconsistent => refuse(Metric::Inconsistent),
        Verdict::To {
            backend,
            by_affinity,
        } => {
            let key = RevNatKey {
                cookie,
                addr: backend.addr,
                port: backend.port,
                pad: [0; 3],
            };
            if !P::set(ctx, &backend.addr, backend.port) {
                return refuse(Metric::Inconsistent);
            }
            remember_service(&key, &RevNat { addr, port, pad: 0 }, unconnected);
            count(if unconnected {
                Metric::Datagrams
            } else {
                Metric::Connects
            });
            if !unconnected {
                count_connection(backend.set);
            }
            if by_affinity {
                count(Metric::AffinityHits);
            }
            PROCEED
        }
    }
}

/// What a tracer is told of a request.
#[inline(always)]
fn forward_event(request: &Request, verdict: &Verdict, cookie: u64) -> TraceEvent {
    let nowhere = (request.addr.any(), 0);
    let (verdict, (backend, backend_port)) = match verdict {
        Verdict::Pass => (TraceVerdict::Pass, nowhere),
        Verdict::Refuse => (TraceVerdict::Refused, nowhere),
        Verdict::Inconsistent => (TraceVerdict::Inconsistent, nowhere),
        Verdict::To {
            backend,
            by_affinity,
        } => (
            if *by_affinity {
                TraceVerdict::SameBackend
            } else {
                TraceVerdict::Backend
            },
            (backend.addr, backend.port),
        ),
    };
    let hook = if request.socket == 0 {
        TraceHook::Connect
    } else {
        TraceHook::Sendmsg
    };
    TraceEvent {
        time: 0,
        cookie,
        netns: request.netns,
        client: request.addr.any(),
        asked: request.addr,
        backend,
        client_port: 0,
        asked_port: request.port,
        backend_port,
        proto: request.proto,
        hook: hook as u8,
        verdict: verdict as u8,
        pad: [0; 3],
        ifindex: 0,
        subject: 0,
        peer: 0,
    }
}

/// Notes which Service the socket means by that backend. A socket that connects is new here; datagrams mostly
/// find it noted.
#[inline(always)]
fn remember_service(key: &RevNatKey, service: &RevNat, mostly_known: bool) {
    if mostly_known {
        // SAFETY: a copy is taken at once.
        let known = unsafe { LB_REV_NAT.get(key) }.copied();
        if known == Some(*service) {
            return;
        }
    }
    if LB_REV_NAT.insert(key, service, u64::from(BPF_ANY)).is_err() {
        count(Metric::TableFull);
    }
}

/// From a backend: the source of a datagram and the name of the peer are turned back into the Service's.
#[inline(always)]
pub(crate) fn reverse<P: Peer>(ctx: &SockAddrContext, metric: Metric) -> i32 {
    let Some(proto) = protocol(ctx) else {
        return PROCEED;
    };
    let (addr, port) = P::get(ctx);
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: a copy is taken at once.
    let known = unsafe {
        LB_REV_NAT.get(RevNatKey {
            cookie,
            addr,
            port,
            pad: [0; 3],
        })
    }
    .copied();
    if let Some(service) = known
        && P::set(ctx, &service.addr, service.port)
    {
        count(metric);
        trace::tell(|| TraceEvent {
            time: 0,
            cookie,
            // SAFETY: the context is valid while the program runs.
            netns: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
            client: addr.any(),
            asked: service.addr,
            backend: addr,
            client_port: 0,
            asked_port: service.port,
            backend_port: port,
            proto,
            hook: TraceHook::Recvmsg as u8,
            verdict: TraceVerdict::Reply as u8,
            pad: [0; 3],
            ifindex: 0,
            subject: 0,
            peer: 0,
        });
    }
    PROCEED
}

/// Keeps sockets of the node off NodePorts, as long as a Service has them.
#[inline(always)]
pub(crate) fn guard_node_port<P: Peer>(ctx: &SockAddrContext) -> i32 {
    let Some(proto) = protocol(ctx) else {
        return PROCEED;
    };
    let (addr, port) = P::get(ctx);
    // SAFETY: the context is valid while the program runs.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if !skiff_lb::is_taken_by_node_port(&KernelTables, &addr, port, proto, netns) {
        return PROCEED;
    }
    trace::tell(|| TraceEvent {
        time: 0,
        cookie: 0,
        netns,
        client: addr,
        asked: addr,
        backend: addr.any(),
        client_port: 0,
        asked_port: port,
        backend_port: 0,
        proto,
        hook: TraceHook::Bind as u8,
        verdict: TraceVerdict::NodePortTaken as u8,
        pad: [0; 3],
        ifindex: 0,
        subject: 0,
        peer: 0,
    });
    // SAFETY: bind may set the value that the call returns (5.18 and newer).
    unsafe { bpf_set_retval(-EADDRINUSE) };
    FAIL
}

#[inline(always)]
fn refuse(metric: Metric) -> i32 {
    count(metric);
    // SAFETY: connect and sendmsg may set the value that the call returns (5.18 and newer).
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}
