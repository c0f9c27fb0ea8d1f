//! Being told of changes, instead of asking again and again.

use std::io;

use nix::{errno::Errno, libc::MSG_DONTWAIT};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use skiff_netns::NodeNetns;
use tokio::io::unix::AsyncFd;

use super::NetlinkError;

/// Links, addresses and routes of both families, as bits of `RTMGRP_*`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Tells that links, addresses or routes of a namespace have changed.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<Socket>,
}

impl Watch {
    /// Watches a node's namespace from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`], [`NetlinkError::Netns`].
    #[expect(
        deprecated,
        reason = "its doubts are about types that change their descriptor; a socket does not"
    )]
    pub fn open_in_node(netns: &NodeNetns) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Connect { source };
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            socket.set_non_blocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = netns.run(open)?.map_err(failed)?;
        let socket = AsyncFd::new(socket).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Waits for a change. All that have come until then are one, and what changes while nobody waits is not missed.
    ///
    /// # Errors
    /// [`NetlinkError::Connect`] if the socket breaks.
    pub async fn changed(&self) -> Result<(), NetlinkError> {
        let failed = |source| NetlinkError::Connect { source };
        loop {
            let mut ready = self.socket.readable().await.map_err(failed)?;
            let mut any = false;
            let drained = ready.try_io(|socket| {
                let mut message = Vec::with_capacity(4096);
                loop {
                    message.clear();
                    match socket.get_ref().recv(&mut message, MSG_DONTWAIT) {
                        Ok(_) => any = true,
                        // So many that some were dropped: a change for sure.
                        Err(error) if is(&error, Errno::ENOBUFS) => any = true,
                        Err(error) if is(&error, Errno::EINTR) => {}
                        Err(error) => return Err::<(), _>(error),
                    }
                }
            });
            match drained {
                Ok(Err(error)) => return Err(failed(error)),
                _ if any => return Ok(()),
                _ => {}
            }
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
