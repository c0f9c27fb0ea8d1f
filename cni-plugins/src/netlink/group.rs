//! Deleting links in groups: one request for all who wait.
//!
//! Fifty links that go one by one wait fifty times for the kernel's lock on links, and for readers that it waits for under
//! that lock; a group does most of this once. So whoever wants a link deleted says so and waits for its turn in this
//! network namespace. Whoever has the turn deletes its own link, or, if others wait, marks its own and theirs as one group
//! and deletes the group by one request; the others find theirs gone.
//!
//! ```text
//! A  turn, delete a .. gone
//! B     wants b        turn, delete {b, c, d} .. gone
//! C        wants c                               turn, gone
//! ```
//! Those who wait ask nothing of the kernel's links meanwhile: they would have to wait for its lock, which the deletion
//! holds, and be too late for the next group. A process that is killed leaves at most a marked link, which was to be
//! deleted anyway and goes with its own next deletion or with the next group. For the grace periods that the kernel
//! waits for when the links are gone nobody waits here (`detached`).

use std::{collections::HashSet, path::Path, thread, time::Duration};

use rtnetlink::{
    LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
};

use super::{
    Link, Netlink, NetlinkError, Verb, probe,
    turn::{Ticket, Turn},
};

/// The group of links that are to be deleted: nobody else uses this number ("skif").
const DOOMED: u32 = 0x736b_6966;
const LOCK_FOLDER: &str = "/run/skiff-cni";
/// How often it is looked for others, and after how many looks in vain the group is complete.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
const QUIET_LOOKS: u32 = 2;
const MOST_LOOKS: u32 = 15;

/// The turn to delete links in one network namespace.
#[derive(Debug)]
pub struct Deletion<'a> {
    netlink: &'a Netlink,
    /// Without a place for the lock file nobody waits for anybody, which is slower and no less right.
    turn: Option<Turn>,
}

impl Netlink {
    /// Deletes links, together with those of other processes that wait in the same network namespace. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_links_grouped(&self, links: &[Link]) -> Result<(), NetlinkError> {
        if links.is_empty() {
            return Ok(());
        }
        let known = links.iter().map(|link| (link.index, link.alias.as_str()));
        let deletion = self.wait_to_delete(known);
        let indexes: Vec<u32> = links.iter().map(|link| link.index).collect();
        deletion.delete(&indexes).await
    }

    /// Says which links are to be deleted (by number and alias: what another alias has is left alone), and waits for the
    /// turn to do so. Whoever has it before may have deleted them then. Blocks the thread, as a deletion itself does.
    pub fn wait_to_delete<'a>(&self, links: impl Iterator<Item = (u32, &'a str)>) -> Deletion<'_> {
        let tickets = links.map(|(index, alias)| Ticket::new(index, alias));
        let netns = probe::netns_inode(self.exchange().socket());
        Deletion {
            netlink: self,
            turn: netns
                .and_then(|netns| Turn::take(Path::new(LOCK_FOLDER), netns, tickets))
                .ok(),
        }
    }

    /// Deletes what `message` means, and returns when none of `indexes` is left. Absent is success.
    async fn delete_until_gone(
        &self,
        action: &'static str,
        message: LinkMessage,
        indexes: &[u32],
    ) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelLink(message);
        let gone = self.exchange().delete_detached(request.clone(), indexes);
        if gone {
            return Ok(());
        }
        // Who waits for the answer learns why not.
        match self.request(action, request, Verb::Change).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it was there to be marked.
    async fn mark_doomed(&self, index: u32) -> Result<bool, NetlinkError> {
        let message = LinkUnspec::new_with_index(index).link_group(DOOMED).build();
        match self
            .new_link("marking a link for deletion", message, Verb::Change)
            .await
        {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Deletion<'_> {
    /// Whether somebody else had the turn first, and may have deleted what was asked for.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.waited)
    }

    /// Deletes links by their numbers, and those that others wait for. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete(self, indexes: &[u32]) -> Result<(), NetlinkError> {
        if let &[index] = indexes
            && self.others().is_empty()
        {
            let message = LinkUnspec::new_with_index(index).build();
            return self
                .netlink
                .delete_until_gone("deleting a link", message, indexes)
                .await;
        }
        let mut is_any_there = false;
        for index in indexes {
            is_any_there |= self.netlink.mark_doomed(*index).await?;
        }
        if !is_any_there {
            return Ok(());
        }
        self.take_others_along().await;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(DOOMED));
        self.netlink
            .delete_until_gone("deleting a group of links", message, indexes)
            .await
    }

    /// What others want deleted.
    fn others(&self) -> Vec<Ticket> {
        let others = self.turn.as_ref().and_then(|turn| turn.others().ok());
        others.unwrap_or_default()
    }

    /// Marks what others wait for, and, once somebody does, waits a moment for those who are about to: whoever misses
    /// this group waits for a whole deletion more. What fails here is theirs to do, when it is their turn.
    async fn take_others_along(&self) {
        let mut seen = HashSet::new();
        let mut quiet = 0;
        for _look in 0..MOST_LOOKS {
            let mut new = self.others();
            new.retain(|ticket| seen.insert(*ticket));
            for ticket in &new {
                let found = self.netlink.find_link_by_index(ticket.index).await;
                let is_meant = |link: &Link| Ticket::new(link.index, &link.alias) == *ticket;
                if found.is_ok_and(|link| link.as_ref().is_some_and(is_meant)) {
                    self.netlink.mark_doomed(ticket.index).await.ok();
                }
            }
            quiet = if new.is_empty() { quiet + 1 } else { 0 };
            if seen.is_empty() || quiet == QUIET_LOOKS {
                return;
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}
