//! Waiting for whatever the shim has open.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    container::Container,
    error::{ShimError, system},
    shim::Shim,
};

/// How often a log that cannot be written is tried again.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// What a descriptor that is ready belongs to.
pub(crate) enum Source {
    Listener,
    Signals,
    Connection(u64),
    /// By the number of its descriptor.
    Fork(i32),
    Output(String, usize),
    /// A container with a client that has room for output, or has left.
    Followers(String),
}

impl Shim {
    /// Waits until something is ready.
    pub(crate) fn ready(&self) -> Result<Vec<Source>, ShimError> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.listener.as_fd(), self.signals.as_fd()];
        for (id, socket) in &self.connections {
            sources.push(Source::Connection(*id));
            fds.push(socket.as_fd());
        }
        for fork in &self.forks {
            sources.push(Source::Fork(fork.socket.as_raw_fd()));
            fds.push(fork.socket.as_fd());
        }
        for (id, container) in &self.containers {
            // From the last: an ended stream is taken out and moves those behind it.
            let mut streams: Vec<_> = container.readable_streams().collect();
            streams.reverse();
            for (number, fd) in streams {
                sources.push(Source::Output(id.clone(), number));
                fds.push(fd);
            }
        }
        let mut polled: Vec<_> = fds
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        for (id, container) in &self.containers {
            for (fd, events) in container.watched_followers() {
                sources.push(Source::Followers(id.clone()));
                polled.push(PollFd::new(fd, events));
            }
        }
        let blocked = self.containers.values().any(Container::is_blocked);
        let timeout = if blocked {
            PollTimeout::try_from(LOG_RETRY).ok()
        } else {
            None
        };
        match poll(&mut polled, timeout.unwrap_or(PollTimeout::NONE)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(system("polling")(errno)),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let ready: Vec<bool> = polled.iter().map(ready).collect();
        Ok(sources
            .into_iter()
            .zip(ready)
            .filter_map(|(s, ready)| ready.then_some(s))
            .collect())
    }
}
