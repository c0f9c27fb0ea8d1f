//! Whose turn it is to delete links in a network namespace, and what the others wait for.
//!
//! Both are locks in one empty file for each namespace, so that whoever is killed is out of it at once and leaves
//! nothing behind. The first byte is the turn. Every other byte stands for a link, and whoever wants that deleted holds
//! its byte, shared, from before it waits: the one whose turn it is sees it there.

use std::{fs::File, io, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::{byte_lock, fingerprint};

/// The byte of the turn: no link has the number 0.
const TURN: i64 = 0;
/// The first byte of the first link.
const LINKS: i64 = 1 << 32;
/// So many others' links are taken along at most.
const MOST: usize = 4096;

/// A link that somebody wants deleted, with what shows that it still is the one that was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    pub(super) index: u32,
    alias: u32,
}

impl Ticket {
    pub(super) fn new(index: u32, alias: &str) -> Self {
        let alias = u32::from_str_radix(&fingerprint(&[alias], 8), 16).unwrap_or_default();
        Self { index, alias }
    }

    /// Numbers of links have 31 bits.
    fn place(self) -> i64 {
        i64::from(self.index & i32::MAX.cast_unsigned()) << 32 | i64::from(self.alias)
    }

    fn at(place: i64) -> Option<Self> {
        Some(Self {
            index: u32::try_from(place >> 32).ok()?,
            alias: u32::try_from(place & i64::from(u32::MAX)).ok()?,
        })
    }
}

/// The turn, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    file: File,
    /// Whether somebody else had it first.
    pub(super) waited: bool,
}

impl Turn {
    /// Says what is to be deleted and waits for the turn.
    pub(super) fn take(
        folder: &Path,
        netns: u64,
        tickets: impl Iterator<Item = Ticket>,
    ) -> io::Result<Self> {
        let file = byte_lock::open(&folder.join(format!("delete-{netns}.lock")))?;
        for ticket in tickets.take(MOST) {
            let shared = range(libc::F_RDLCK, ticket.place(), ticket.place())?;
            fcntl(&file, FcntlArg::F_OFD_SETLK(&shared))?;
        }
        let turn = range(libc::F_WRLCK, TURN, TURN)?;
        let waited = match fcntl(&file, FcntlArg::F_OFD_SETLK(&turn)) {
            Ok(_) => {
                return Ok(Self {
                    file,
                    waited: false,
                });
            }
            Err(Errno::EAGAIN | Errno::EACCES) => true,
            Err(errno) => return Err(errno.into()),
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&turn)) {
                Ok(_) => return Ok(Self { file, waited }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What others want deleted.
    pub(super) fn others(&self) -> io::Result<Vec<Ticket>> {
        let mut found = Vec::new();
        let mut unseen = vec![(LINKS, i64::MAX)];
        while let Some((first, last)) = unseen.pop() {
            // Tells of one of the locks that are in the way of this one.
            let mut lock = range(libc::F_WRLCK, first, last)?;
            fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock))?;
            if lock.l_type == kind(libc::F_UNLCK)? || found.len() == MOST {
                continue;
            }
            let place = lock.l_start.clamp(first, last);
            found.extend(Ticket::at(place));
            if place > first {
                unseen.push((first, place - 1));
            }
            if place < last {
                unseen.push((place + 1, last));
            }
        }
        Ok(found)
    }
}

fn range(lock: libc::c_int, first: i64, last: i64) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: kind(lock)?,
        l_whence: kind(libc::SEEK_SET)?,
        l_start: first,
        l_len: last - first + 1,
        l_pid: 0,
    })
}

fn kind(value: libc::c_int) -> io::Result<libc::c_short> {
    value.try_into().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn whoever_waits_is_seen_and_namespaces_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let ticket = |index| Ticket::new(index, "alias");
        let first = Turn::take(dir.path(), 1, [ticket(7)].into_iter()).unwrap();
        let other = Turn::take(dir.path(), 2, [ticket(8)].into_iter()).unwrap();
        assert!(!first.waited && !other.waited);
        assert_eq!(first.others().unwrap(), [], "its own it knows");
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for index in [1, 2, i32::MAX.cast_unsigned()] {
                let (sender, dir) = (sender.clone(), dir.path());
                scope.spawn(move || {
                    let turn = Turn::take(dir, 1, [ticket(index)].into_iter()).unwrap();
                    sender.send(turn.waited).unwrap();
                });
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut seen = first.others().unwrap();
            while seen.len() < 3 && Instant::now() < deadline {
                seen = first.others().unwrap();
            }
            seen.sort_by_key(|ticket| ticket.index);
            assert_eq!(seen, [1, 2, i32::MAX.cast_unsigned()].map(ticket));
            assert!(receiver.try_recv().is_err(), "it is held");
            drop(first);
            assert!(receiver.iter().take(3).all(|waited| waited));
        });
        let last = Turn::take(dir.path(), 1, std::iter::empty()).unwrap();
        assert_eq!(last.others().unwrap(), [], "they are gone");
    }

    #[test]
    fn many_never_have_the_turn_together() {
        let dir = tempfile::tempdir().unwrap();
        let holders = AtomicU32::new(0);
        thread::scope(|scope| {
            for index in 1..20 {
                let (dir, holders) = (dir.path(), &holders);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let tickets = [Ticket::new(index, "")].into_iter();
                        let _turn = Turn::take(dir, 1, tickets).unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        holders.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
