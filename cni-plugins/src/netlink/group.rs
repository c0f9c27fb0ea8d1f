//! Deleting links in groups: one request for all who wait.
//!
//! The kernel takes 20 ms and more to delete a link, nearly all of it waiting for grace periods, and no longer to delete
//! fifty. So whoever wants a link deleted first marks it as one of a group, then waits for the lock of this network
//! namespace; whoever holds it deletes the whole group by one request, and the others find theirs gone.
//!
//! ```text
//! A  mark a, lock, delete {a} ........ unlock
//! B     mark b, lock ................. delete {b, c, d} ....... unlock
//! C        mark c, lock ....................................... gone, unlock
//! ```
//! A process that is killed leaves at most a marked link, which was to be deleted anyway and goes with the next group.

use std::{io, path::Path};

use rtnetlink::{
    LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
};

use super::{Netlink, NetlinkError, Verb};
use crate::ByteLock;

/// The group of links that are to be deleted: nobody else uses this number ("skif").
const DOOMED: u32 = 0x736b_6966;
/// One lock for each namespace, by its number.
const LOCK_FILE: &str = "/run/skiff-cni/delete.lock";

impl Netlink {
    /// Deletes links by their numbers, together with those of other processes that wait in the same network namespace.
    /// Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_links_grouped(&self, indexes: &[u32]) -> Result<(), NetlinkError> {
        let mut marked = Vec::with_capacity(indexes.len());
        for index in indexes {
            let message = LinkUnspec::new_with_index(*index)
                .link_group(DOOMED)
                .build();
            match self
                .new_link("marking a link for deletion", message, Verb::Change)
                .await
            {
                Ok(()) => marked.push(*index),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(first) = marked.first() else {
            return Ok(());
        };
        let lock = GroupLock::take(Path::new(LOCK_FILE), self.netns_inode()).await;
        let deleted = match &lock {
            // Whoever had it may have deleted ours: all of a group go at once.
            Ok(lock) if lock.waited && self.find_link_by_index(*first).await?.is_none() => Ok(()),
            Ok(_) => self.delete_group().await,
            // Without a place for the lock file nobody waits for anybody, which is slower and no less right.
            Err(_unlockable) => self.delete_group().await,
        };
        drop(lock);
        deleted
    }

    async fn delete_group(&self) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(DOOMED));
        let request = RouteNetlinkMessage::DelLink(message);
        match self
            .request("deleting a group of links", request, Verb::Change)
            .await
        {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The right to delete the group of one network namespace.
#[derive(Debug)]
struct GroupLock {
    /// Whether somebody else had it first.
    waited: bool,
    _lock: ByteLock,
}

impl GroupLock {
    /// Waits for the lock, on a thread of its own so that the caller's other requests go on.
    async fn take(file: &Path, netns: u64) -> io::Result<Self> {
        if let Some(lock) = ByteLock::try_take(file, netns)? {
            return Ok(Self {
                waited: false,
                _lock: lock,
            });
        }
        let file = file.to_owned();
        let waiting = tokio::task::spawn_blocking(move || ByteLock::take(&file, netns));
        Ok(Self {
            waited: true,
            _lock: waiting.await.map_err(io::Error::other)??,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn a_lock_is_waited_for_and_namespaces_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let first = GroupLock::take(&dir.path().join("lock"), 1).await.unwrap();
        let other = GroupLock::take(&dir.path().join("lock"), 2).await.unwrap();
        assert!(!first.waited && !other.waited);
        let path = dir.path().join("lock");
        let mut second = tokio::spawn(async move { GroupLock::take(&path, 1).await.unwrap() });
        let early = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
        assert!(early.is_err(), "it is held");
        drop(first);
        assert!(second.await.unwrap().waited);
    }

    #[tokio::test]
    async fn many_never_hold_a_lock_together() {
        let dir = tempfile::tempdir().unwrap();
        let held = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (path, held) = (dir.path().join("lock"), Arc::clone(&held));
                tokio::spawn(async move {
                    for _ in 0..20 {
                        let _lock = GroupLock::take(&path, 1).await.unwrap();
                        assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0);
                        tokio::task::yield_now().await;
                        held.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}
