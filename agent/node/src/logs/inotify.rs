//! Waiting for a directory to change.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Tells when a file in a directory is written, made, moved or removed.
pub(super) struct DirWatch {
    fd: AsyncFd<OwnedFd>,
}

impl DirWatch {
    /// Watches from now on.
    #[expect(
        deprecated,
        reason = "its doubts are about types that change their descriptor; OwnedFd does not"
    )]
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let events = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        inotify::add_watch(&fd, directory, events)?;
        Ok(Self {
            fd: AsyncFd::new(fd)?,
        })
    }

    /// Until something has changed since the last call.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let drained = ready.try_io(|fd| {
                let mut buffer = [const { MaybeUninit::<u8>::uninit() }; 4096];
                let mut reader = inotify::Reader::new(fd, &mut buffer);
                let mut any = false;
                loop {
                    match reader.next() {
                        Ok(_) => any = true,
                        Err(_) if any => return Ok(()),
                        Err(error) => return Err(io::Error::from(error)),
                    }
                }
            });
            match drained {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}
