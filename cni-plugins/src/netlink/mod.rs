//! Typed calls on links, addresses and routes. The only user of rtnetlink.
//!
//! A [`Netlink`] is bound for good to the network namespace that it was opened in, whatever thread uses it. Every
//! request goes through [`Netlink::request`], which repeats what the kernel interrupted.

mod addr;
mod error;
mod link;
mod route;

use std::time::Duration;

use futures::StreamExt as _;
use rtnetlink::{
    Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
};
use skiff_netns::{NetNs, NodeNetns};
use tokio::task::AbortHandle;

pub use error::NetlinkError;
pub use link::{BridgeSpec, Link, PortSettings, VethSpec};
pub use route::RouteSpec;

/// How often an interrupted dump is repeated: links come and go all the time on a busy node.
const DUMP_ATTEMPTS: usize = 20;
/// No request takes this long, except deletions under load.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the kernel's routing tables in one network namespace. Its task ends when this is dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    driver: AbortHandle,
}

/// What kind of request, as netlink flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// Fails if it exists.
    Create,
    /// Changes or deletes what exists.
    Change,
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
                Self::Get => 0,
                Self::Dump => NLM_F_DUMP,
            }
    }
}

impl Netlink {
    /// Connects to the namespace of the calling thread. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`].
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_on(&tokio::runtime::Handle::current())
    }

    /// Connects to a pod's namespace. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`], [`NetlinkError::Netns`].
    pub fn open_in(netns: &NetNs) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| Self::open_on(&runtime))?
    }

    /// Connects to a node's namespace. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`], [`NetlinkError::Netns`].
    pub fn open_in_node(netns: &NodeNetns) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| Self::open_on(&runtime))?
    }

    fn open_on(runtime: &tokio::runtime::Handle) -> Result<Self, NetlinkError> {
        let _context = runtime.enter();
        let (connection, handle, _notifications) =
            rtnetlink::new_connection().map_err(|source| NetlinkError::Connect { source })?;
        let driver = runtime.spawn(connection).abort_handle();
        Ok(Self { handle, driver })
    }

    /// Sends one request and collects the answer. A dump that the kernel interrupted (`EINTR`, or marked as
    /// inconsistent) is repeated from its start.
    async fn request(
        &self,
        action: &'static str,
        message: RouteNetlinkMessage,
        verb: Verb,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _attempt in 0..DUMP_ATTEMPTS {
            let once = self.request_once(action, message.clone(), verb);
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, once)
                .await
                .map_err(|_elapsed| NetlinkError::Timeout { action })?;
            match answer {
                Ok((_, true)) if verb == Verb::Dump => {}
                Ok((messages, _)) => return Ok(messages),
                Err(error) if error.is(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Interrupted { action })
    }

    async fn request_once(
        &self,
        action: &'static str,
        message: RouteNetlinkMessage,
        verb: Verb,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = verb.flags();
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_unsent| NetlinkError::Closed { action })?;
        let mut messages = Vec::new();
        let mut inconsistent = false;
        while let Some(answer) = answers.next().await {
            inconsistent |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetlinkError::Kernel {
                        action,
                        source: error.to_io(),
                    });
                }
                _ => {}
            }
        }
        Ok((messages, inconsistent))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
