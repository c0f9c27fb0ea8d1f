//! Typed calls on links, addresses and routes. The only user of rtnetlink.
//!
//! A [`Netlink`] is bound for good to the network namespace that it was opened in, whatever thread uses it. Every
//! request goes through [`Netlink::request`], which repeats what the kernel interrupted. Requests take their turns, as
//! they do in the kernel.

mod addr;
mod bridge;
mod detached;
mod error;
mod exchange;
mod group;
mod link;
mod neigh;
mod probe;
mod route;
mod tc;
mod tuning;
mod turn;
mod vxlan;
mod watch;

use std::sync::{Mutex, MutexGuard, PoisonError};

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST},
    packet_route::RouteNetlinkMessage,
};
use skiff_netns::{NetNs, NodeNetns};

use exchange::Exchange;

pub use addr::DuplicateDetection;
pub use bridge::{BridgeSpec, PortFlags, PortSettings, PortVlan, VlanOwner};
pub use error::NetlinkError;
pub use group::Deletion;
pub use link::{Link, VethSpec};
pub use neigh::{FdbEntry, Neighbour};
pub use route::RouteSpec;
pub use tc::{LinkLimit, RemoteAddress, Shaped, TokenBucket};
pub use tuning::LinkChange;
pub use vxlan::{VxlanLink, VxlanSpec};
pub use watch::Watch;

/// How often an interrupted dump is repeated: links come and go all the time on a busy node.
const DUMP_ATTEMPTS: usize = 20;

/// A connection to the kernel's routing tables in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    exchange: Mutex<Exchange>,
}

/// What kind of request, as netlink flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// Fails if it exists.
    Create,
    /// Changes or deletes what exists.
    Change,
    /// Makes it, or puts it in the place of what exists.
    Replace,
    /// One object.
    Get,
    /// All objects.
    Dump,
}

impl Verb {
    fn flags(self) -> u16 {
        NLM_F_REQUEST
            | match self {
                Self::Create => NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                Self::Change => NLM_F_ACK,
                Self::Replace => NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
                Self::Get => 0,
                Self::Dump => NLM_F_DUMP,
            }
    }
}

impl Netlink {
    /// Connects to the namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`].
    pub fn open() -> Result<Self, NetlinkError> {
        let exchange = Exchange::open().map_err(|source| NetlinkError::Connect { source })?;
        Ok(Self {
            exchange: Mutex::new(exchange),
        })
    }

    /// Connects to a pod's namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`], [`NetlinkError::Netns`].
    pub fn open_in(netns: &NetNs) -> Result<Self, NetlinkError> {
        netns.run_here(Self::open)?
    }

    /// Connects to a node's namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`], [`NetlinkError::Netns`].
    pub fn open_in_node(netns: &NodeNetns) -> Result<Self, NetlinkError> {
        netns.run(Self::open)?
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one request and collects the answer. A dump that the kernel interrupted (`EINTR`, or marked as
    /// inconsistent) is repeated from its start.
    async fn request(
        &self,
        action: &'static str,
        message: RouteNetlinkMessage,
        verb: Verb,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut exchange = self.exchange();
        for _attempt in 0..DUMP_ATTEMPTS {
            match exchange.ask(action, message.clone(), verb.flags()) {
                Ok(answer) if answer.is_inconsistent && verb == Verb::Dump => {}
                Ok(answer) => return Ok(answer.messages),
                Err(error) if error.is(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Interrupted { action })
    }
}
