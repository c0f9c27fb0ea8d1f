//! The veth pair of an attachment: made, found again, deleted.

use std::os::fd::AsFd as _;

use skiff_cni::{
    AliasSweep, host_veth_mac, host_veth_name, link_alias,
    netlink::{Link, Netlink, NetlinkError, VethSpec},
    skel::{Call, Target},
    types::{AttachmentKey, CniError, IfName, code},
};
use skiff_netns::NetNs;

use crate::{attachment, runtime::kernel};

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
    async fn delete(&self, host: &Netlink) -> Result<bool, NetlinkError> {
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

    /// Whether a link with one of the names is this attachment's: by its alias, or, if its ADD was killed before it
    /// could write one, by its hardware address.
    fn is(&self, link: &Link) -> bool {
        if link.alias.is_empty() {
            link.mac == self.mac
        } else {
            link.alias == self.alias
        }
    }

    /// Makes the pair; returns the name of this end. `made` is told it at once.
    pub(crate) async fn create(
        &self,
        host: &Netlink,
        pair: &Pair<'_>,
        mut made: impl FnMut(&str),
    ) -> Result<String, CniError> {
        for name in &self.names {
            let spec = VethSpec {
                name,
                mac: self.mac,
                controller: pair.controller,
                peer_name: pair.ifname.as_str(),
                peer_mac: pair.mac,
                peer_netns: pair.netns.as_fd(),
                mtu: pair.mtu,
            };
            match host.create_veth(&spec).await {
                Ok(()) => {
                    made(name);
                    return Ok(name.clone());
                }
                Err(error) if error.is_existing() => {
                    let link = host.find_link(name).await;
                    let link = link.map_err(kernel("cannot look for links"))?;
                    if link.is_some_and(|link| self.is(&link)) {
                        let msg =
                            format!("{name} exists already for this container: DEL comes first");
                        return Err(CniError::new(code::EXISTS, msg));
                    }
                }
                Err(error) => return Err(kernel("cannot make the veth pair")(error)),
            }
        }
        Err(CniError::new(
            code::EXISTS,
            "every name for the host's end is taken",
        ))
    }
}

/// A pair to be made.
pub(crate) struct Pair<'a> {
    /// The bridge that the host's end joins, by its number.
    pub(crate) controller: Option<u32>,
    /// What the container's end is called.
    pub(crate) ifname: &'a IfName,
    pub(crate) netns: &'a NetNs,
    /// The hardware address of the container's end.
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u32>,
}

impl Pair<'_> {
    /// The container's end, once it is made.
    pub(crate) fn other_end(&self, pod: &Netlink) -> Result<Link, CniError> {
        let name = self.ifname.as_str();
        let found = pod.link_index(name).zip(pod.link_mtu(name));
        let (index, mtu) =
            found.ok_or_else(|| CniError::new(code::KERNEL, format!("{name} is gone")))?;
        Ok(Link {
            index,
            name: name.to_owned(),
            kind: "veth".to_owned(),
            mac: self.mac.to_vec(),
            mtu,
            ..Link::default()
        })
    }
}

/// Deletes an attachment's pair, whatever of it is still there.
pub(crate) async fn delete_pair(call: &Call, target: &Target) -> Result<(), CniError> {
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let deleted = HostEnd::new(call, target).delete(&host).await;
    if deleted.map_err(kernel("cannot delete the veth pair"))? {
        return Ok(());
    }
    delete_in_netns(target).await
}

/// A pair that another plugin made (before a switch to this one) is known by its end in the container only.
async fn delete_in_netns(target: &Target) -> Result<(), CniError> {
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

/// Deletes this network's pairs that no valid attachment owns, all at once. Those of ADDs that were killed before they
/// could write an alias are found by the attachments that have `addresses`; `plugin` tells such an ADD from one that is on
/// its way.
pub(crate) async fn delete_stale_pairs(
    call: &Call,
    plugin: &str,
    addresses: &[AttachmentKey],
) -> Result<(), CniError> {
    let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
    let sweep = AliasSweep::new(&call.conf.name, valid);
    let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
    let links = host
        .list_links(PREFIX)
        .await
        .map_err(kernel("cannot list links"))?;
    let (nameless, named): (Vec<Link>, Vec<Link>) =
        links.into_iter().partition(|link| link.alias.is_empty());
    let mut stale: Vec<Link> = named
        .into_iter()
        .filter(|link| sweep.is_stale(&link.alias))
        .collect();
    let mut locks = Vec::new();
    for key in addresses.iter().filter(|key| !valid.contains(key)) {
        let target = Target {
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
            netns: None,
        };
        let end = HostEnd::new(call, &target);
        let is_end = |link: &&Link| link.mac == end.mac && end.names.contains(&link.name);
        if let Some(link) = nameless.iter().find(is_end)
            && let Ok(Some(lock)) = attachment::try_lock(plugin, &target)
        {
            stale.push(link.clone());
            locks.push(lock);
        }
    }
    host.delete_links_grouped(&stale)
        .await
        .map_err(kernel("cannot delete stale veth pairs"))
}
