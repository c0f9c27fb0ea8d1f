//! The veth pair of an attachment: found again, and deleted.

use skiff_cni::{
    AliasSweep, host_veth_mac, host_veth_name, link_alias,
    netlink::{Link, Netlink, NetlinkError},
    skel::{Call, Target},
    types::{CniError, code},
};
use skiff_netns::NetNs;

use crate::runtime::kernel;

/// What the names of host ends begin with.
const PREFIX: &str = "veth";
/// So many other names are tried if a stranger's link has the host end's.
const NAME_ATTEMPTS: u8 = 4;

/// How the host's end of an attachment's pair is known.
#[derive(Debug)]
pub(crate) struct HostEnd {
    names: [String; NAME_ATTEMPTS as usize],
    pub(crate) mac: [u8; 6],
    pub(crate) alias: String,
}

impl HostEnd {
    pub(crate) fn new(call: &Call, target: &Target) -> Self {
        let (container, ifname) = (&target.container_id, &target.ifname);
        Self {
            names: std::array::from_fn(|salt| {
                // Fewer than 256 attempts.
                host_veth_name(container, ifname, u8::try_from(salt).unwrap_or_default())
            }),
            mac: host_veth_mac(container, ifname),
            alias: link_alias(&call.conf.name, container, ifname),
        }
    }

    /// What it may be called, in the order in which that is tried.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Finds it. The stranger that had an earlier name when the pair was made may have gone.
    pub(crate) async fn find(&self, host: &Netlink) -> Result<Option<Link>, NetlinkError> {
        for name in &self.names {
            if let Some(link) = self.find_as(host, name).await? {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    async fn find_as(&self, host: &Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = host.find_link(name).await?;
        Ok(found.filter(|link| self.is(link)))
    }

    /// Deletes the pair; whether there was one.
    pub(super) async fn delete(&self, host: &Netlink) -> Result<bool, NetlinkError> {
        for name in &self.names {
            // Not by netlink, which would wait for whatever is being deleted just now.
            let Some(index) = host.link_index(name) else {
                continue;
            };
            let deletion = host.wait_to_delete([(index, self.alias.as_str())].into_iter());
            if deletion.has_waited() && host.link_index(name) != Some(index) {
                return Ok(true);
            }
            if let Some(link) = self.find_as(host, name).await? {
                deletion.delete(&[link.index]).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a link with one of the names is this attachment's: by its alias, or, if somebody took that off, by its
    /// hardware address.
    fn is(&self, link: &Link) -> bool {
        if link.alias.is_empty() {
            link.mac == self.mac
        } else {
            link.alias == self.alias
        }
    }

    /// Says so if it is this attachment's link that has the name: that of an earlier ADD.
    pub(super) async fn check_is_strangers(
        &self,
        host: &Netlink,
        name: &str,
    ) -> Result<(), CniError> {
        let own = self.find_as(host, name).await;
        if own.map_err(kernel("cannot look for links"))?.is_none() {
            return Ok(());
        }
        let msg = format!("{name} exists already for this container: DEL comes first");
        Err(CniError::new(code::EXISTS, msg))
    }
}

/// A pair that another plugin made (before a switch to this one) is known by its end in the container only.
pub(super) async fn delete_in_netns(target: &Target) -> Result<(), CniError> {
    let Some(path) = &target.netns else {
        return Ok(());
    };
    // Gone already, with all of its links.
    let Ok(netns) = NetNs::open(path) else {
        return Ok(());
    };
    let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
    let ifname = target.ifname.as_str();
    let found = pod
        .find_link(ifname)
        .await
        .map_err(kernel("cannot look for links"))?;
    match found {
        Some(link) if link.kind == "veth" => pod
            .delete_link(ifname)
            .await
            .map_err(kernel("cannot delete the container's link")),
        _ => Ok(()),
    }
}

/// Deletes this network's pairs that no valid attachment owns, all at once.
pub(super) async fn delete_stale(call: &Call) -> Result<(), CniError> {
    let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
    let sweep = AliasSweep::new(&call.conf.name, valid);
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let links = host
        .list_links(PREFIX)
        .await
        .map_err(kernel("cannot list links"))?;
    let stale: Vec<Link> = links
        .into_iter()
        .filter(|link| sweep.is_stale(&link.alias))
        .collect();
    host.delete_links_grouped(&stale)
        .await
        .map_err(kernel("cannot delete stale veth pairs"))
}
