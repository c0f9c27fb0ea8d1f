//! Clients that follow a container's output while it is written to the log.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// One client's pipe for one of the container's streams.
///
/// As with the log nothing is lost: what the client has not read yet stays here, and as long as there is any the stream
/// is not read, so that the container waits for its slowest client. One that leaves is let go.
pub(crate) struct Follower {
    fd: OwnedFd,
    stream: &'static str,
    pending: Vec<u8>,
    stream_ended: bool,
}

/// Everyone who follows a container.
#[derive(Default)]
pub(crate) struct Followers(Vec<Follower>);

impl Followers {
    /// `fd` is the nonblocking end of a pipe.
    pub(crate) fn add(&mut self, stream: &'static str, fd: OwnedFd) {
        self.0.push(Follower {
            fd,
            stream,
            pending: Vec::new(),
            stream_ended: false,
        });
    }

    /// Hands output on.
    pub(crate) fn write(&mut self, stream: &str, bytes: &[u8]) {
        self.0.retain_mut(|follower| {
            follower.stream != stream || {
                follower.pending.extend_from_slice(bytes);
                follower.flush()
            }
        });
    }

    /// There will be no more output of this stream.
    pub(crate) fn end(&mut self, stream: &str) {
        self.0.retain_mut(|follower| {
            follower.stream != stream || {
                follower.stream_ended = true;
                follower.flush()
            }
        });
    }

    /// Whether somebody has not taken what the stream said until now.
    pub(crate) fn is_behind(&self, stream: &str) -> bool {
        self.0
            .iter()
            .any(|follower| follower.stream == stream && !follower.pending.is_empty())
    }

    /// Tries again to write what waits, and lets go whoever has left.
    pub(crate) fn flush(&mut self) {
        self.0
            .retain_mut(|follower| !follower.has_left() && follower.flush());
    }

    /// The pipes, each with what to watch it for: room if something waits. That a client leaves is always told, so that a
    /// container that says nothing does not gather pipes.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.0.iter().map(|follower| {
            let events = if follower.pending.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::POLLOUT
            };
            (follower.fd.as_fd(), events)
        })
    }
}

impl Follower {
    fn has_left(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Writes what the pipe takes. False if this client is done with, or has left.
    fn flush(&mut self) -> bool {
        let mut written = 0;
        let stays = loop {
            let rest = self.pending.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break !self.stream_ended;
            }
            match nix::unistd::write(&self.fd, rest) {
                Ok(length) => written += length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break true,
                Err(_left) => break false,
            }
        };
        self.pending.drain(..written);
        if self.pending.is_empty() {
            // Bursts are rare, and the shim is to stay small.
            self.pending = Vec::new();
        }
        stays
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    const MORE_THAN_A_PIPE: usize = 200_000;

    fn follow(followers: &mut Followers, stream: &'static str) -> File {
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK).unwrap();
        followers.add(stream, writer);
        File::from(reader)
    }

    #[test]
    fn a_slow_client_holds_its_stream_up_and_loses_nothing() {
        let mut followers = Followers::default();
        let mut client = follow(&mut followers, "stdout");
        let text = vec![b'x'; MORE_THAN_A_PIPE];
        followers.write("stdout", &text);
        assert!(followers.is_behind("stdout") && !followers.is_behind("stderr"));
        // Also when the stream ends meanwhile.
        followers.end("stdout");
        let mut read = Vec::new();
        while followers.is_behind("stdout") {
            // The end of what there is shows as an error: the pipe does not block.
            client.read_to_end(&mut read).ok();
            followers.flush();
        }
        client.read_to_end(&mut read).unwrap();
        assert!(read == text);
    }

    #[test]
    fn a_client_that_leaves_holds_nobody_up() {
        let mut followers = Followers::default();
        let left = follow(&mut followers, "stdout");
        let mut stays = follow(&mut followers, "stdout");
        followers.write("stdout", &vec![b'x'; MORE_THAN_A_PIPE]);
        drop(left);
        followers.flush();
        assert_eq!(followers.watched().count(), 1);
        let mut read = Vec::new();
        stays.read_to_end(&mut read).unwrap_err();
        assert!(!read.is_empty());
    }

    #[test]
    fn a_client_that_leaves_is_noticed_while_nothing_is_said() {
        let mut followers = Followers::default();
        let client = follow(&mut followers, "stdout");
        let ready = |followers: &Followers| {
            let watched = followers.watched();
            let mut fds: Vec<_> = watched
                .map(|(fd, events)| PollFd::new(fd, events))
                .collect();
            poll(&mut fds, PollTimeout::ZERO).unwrap()
        };
        assert_eq!(ready(&followers), 0);
        followers.flush();
        assert_eq!(followers.watched().count(), 1);
        drop(client);
        assert_eq!(ready(&followers), 1);
        followers.flush();
        assert_eq!(followers.watched().count(), 0);
    }
}
