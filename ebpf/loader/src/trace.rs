//! Listening to the programs' decisions.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use aya::maps::{Map, MapData, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use skiff_ebpf_common::{Addr, TraceEvent, TraceFilter, maps};
pub use skiff_ebpf_common::{TraceHook, TraceVerdict};

use crate::{
    DatapathError, Protocol, bpffs,
    inspect::socket_addr,
    sys::{self, HashTable},
    tables::{addr_of, proto_of, protocol_of},
};

/// So long the programs go on telling after a tracer was last heard of.
const GRACE: Duration = Duration::from_secs(3);

/// What is to be told; what is left out is not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// An end's address, or the one that was asked for.
    pub addr: Option<IpAddr>,
    /// The same for ports.
    pub port: Option<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
}

/// A decision of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// When: the kernel's coarse monotonic clock.
    pub time: Duration,
    /// Which program.
    pub hook: TraceHook,
    /// What it decided.
    pub verdict: TraceVerdict,
    /// The protocol; none: another than those of Services.
    pub protocol: Option<Protocol>,
    /// Its number in IP headers. 0: not known.
    pub ip_protocol: u8,
    /// The socket's cookie, unless it was a packet.
    pub cookie: Option<u64>,
    /// The cookie of the socket's network namespace, unless it was a packet.
    pub netns_cookie: Option<u64>,
    /// The link that the packet came in by, or of the pod whose policies denied it.
    pub ifindex: Option<u32>,
    /// Of a packet that policies denied: the identities of the pod that has them, and of the other end.
    pub identities: Option<(u32, u32)>,
    /// Who asked, as far as it is known.
    pub client: SocketAddr,
    /// Where it wanted to go.
    pub asked: SocketAddr,
    /// Where it was sent instead.
    pub backend: Option<SocketAddr>,
}

/// Listens until it is dropped. There can be one for each node.
pub struct Tracer {
    filter: HashTable<u32, TraceFilter>,
    events: RingBuf<MapData>,
    want: Want,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer")
            .field("want", &self.want)
            .finish_non_exhaustive()
    }
}

impl Tracer {
    /// Asks the programs of the node with its pins in `bpffs_dir`.
    ///
    /// # Errors
    /// [`DatapathError`] if the node has no such tables.
    pub fn start(bpffs_dir: &Path, want: Want) -> Result<Self, DatapathError> {
        let folder = bpffs::maps_in_force(bpffs_dir)?;
        let events = MapData::from_pin(folder.join(maps::TRACE_EVENTS))
            .and_then(|data| RingBuf::try_from(Map::RingBuf(data)))
            .map_err(DatapathError::Trace)?;
        let mut tracer = Self {
            filter: HashTable::open(&folder, maps::TRACE_FILTER)?,
            events,
            want,
        };
        // What an earlier tracer left unread.
        while tracer.events.next().is_some() {}
        tracer.renew()?;
        Ok(tracer)
    }

    fn renew(&self) -> Result<(), DatapathError> {
        let until = sys::monotonic() + GRACE;
        self.filter.set(
            0,
            TraceFilter {
                until: u64::try_from(until.as_nanos()).unwrap_or(u64::MAX),
                addr: self.want.addr.map_or(Addr::ANY_V6, addr_of),
                port: self.want.port.unwrap_or(0).to_be(),
                proto: self.want.protocol.map_or(0, proto_of),
                pad: [0; 5],
            },
        )
    }

    /// What was decided meanwhile; waits for up to a second. Call it again and again, or the programs fall silent.
    ///
    /// # Errors
    /// [`DatapathError`] if the tables are gone.
    pub fn next_events(&mut self) -> Result<Vec<Traced>, DatapathError> {
        const WAIT: u16 = 1000;
        self.renew()?;
        let mut all = Vec::new();
        loop {
            while let Some(item) = self.events.next() {
                all.extend(read_event(&item));
            }
            if !all.is_empty() {
                return Ok(all);
            }
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(WAIT)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(all),
                Ok(_) => {}
                Err(error) => {
                    return Err(DatapathError::io("waiting for", "events", error.into()));
                }
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // If it fails, the programs fall silent by themselves.
        if let Err(error) = self.filter.set(0, TraceFilter::default()) {
            tracing::debug!(%error, "ending the trace");
        }
    }
}

fn read_event(bytes: &[u8]) -> Option<Traced> {
    if bytes.len() < size_of::<TraceEvent>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is an event. The ring aligns to eight bytes only.
    let event = unsafe { bytes.as_ptr().cast::<TraceEvent>().read_unaligned() };
    let verdict = TraceVerdict::from_code(event.verdict)?;
    let by_policy = matches!(
        verdict,
        TraceVerdict::DeniedEgress | TraceVerdict::DeniedIngress | TraceVerdict::PolicyUnknown
    );
    Some(Traced {
        time: Duration::from_nanos(event.time),
        hook: TraceHook::from_code(event.hook)?,
        verdict,
        protocol: protocol_of(event.proto),
        ip_protocol: event.proto,
        identities: by_policy.then_some((event.subject, event.peer)),
        cookie: Some(event.cookie).filter(|cookie| *cookie != 0),
        netns_cookie: Some(event.netns).filter(|cookie| *cookie != 0),
        ifindex: Some(event.ifindex).filter(|index| *index != 0),
        client: socket_addr(event.client, event.client_port),
        asked: socket_addr(event.asked, event.asked_port),
        backend: (event.backend_port != 0).then(|| socket_addr(event.backend, event.backend_port)),
    })
}
