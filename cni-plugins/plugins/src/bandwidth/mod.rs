//! `bandwidth`: limits how fast a container receives and sends, after a plugin that made it a veth pair.
//!
//! What the container receives is limited by a queue on the host's end of the pair, what it sends by one on an
//! intermediate device (`ifb`) to which the host's end hands everything that arrives. The device has the name that the
//! reference plugin gives it, so that either removes what the other has made; its alias says whose it is, for GC.

mod config;
mod limits;
mod links;

use skiff_cni::{
    AliasSweep,
    netlink::{Link, Netlink},
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, code},
};
use skiff_netns::NetNs;

use self::{
    config::Config,
    limits::Limits,
    links::{IFB_PREFIX, find_host_end, ifb_name},
};
use crate::runtime::{block_on, kernel};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Bandwidth;

fn previous(call: &Call) -> Result<&CniResult, CniError> {
    call.conf.prev_result.as_ref().ok_or_else(|| {
        CniError::config("\"prevResult\" is missing: bandwidth comes after another plugin")
    })
}

fn open(target: &Target) -> Result<NetNs, CniError> {
    NetNs::open(target.netns()?)
        .map_err(|error| CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error))
}

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    [Config::new(call).map(drop), Ok(())]
}

impl Plugin for Bandwidth {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let config = Config::new(call)?;
        let mut result = previous(call)?.clone();
        if config.is_unlimited() {
            return Ok(result);
        }
        let netns = open(target)?;
        block_on(async {
            let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
            let host_end = find_host_end(&host, &netns, target, &result)
                .await?
                .ok_or_else(|| {
                    CniError::config(format!(
                        "{} is not one end of a veth pair whose other end is in \"prevResult\"",
                        target.ifname
                    ))
                })?;
            let limits = Limits {
                host: &host,
                config: &config,
                ifb: ifb_name(&call.conf.name, &target.container_id),
                host_end: &host_end,
            };
            result
                .interfaces
                .extend(limits.apply(&call.conf.name, target).await?);
            Ok(result)
        })
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        block_on(async {
            let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
            limits::delete(&host, call, target).await
        })
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let config = Config::new(call)?;
        let result = previous(call)?;
        if config.is_unlimited() {
            return Ok(());
        }
        let netns = open(target)?;
        block_on(async {
            let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
            let host_end = find_host_end(&host, &netns, target, result)
                .await?
                .ok_or_else(|| limits::differs("the host's end of the veth pair is gone"))?;
            let limits = Limits {
                host: &host,
                config: &config,
                ifb: ifb_name(&call.conf.name, &target.container_id),
                host_end: &host_end,
            };
            limits.check().await
        })
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
        let sweep = AliasSweep::new(&call.conf.name, valid);
        block_on(async {
            let host = Netlink::open().map_err(kernel("cannot open netlink"))?;
            let links = host
                .list_links(IFB_PREFIX)
                .await
                .map_err(kernel("cannot list links"))?;
            let stale: Vec<Link> = links
                .into_iter()
                .filter(|link| sweep.is_stale(&link.alias))
                .collect();
            host.delete_links_grouped(&stale)
                .await
                .map_err(kernel("cannot delete intermediate devices"))
        })
    }

    /// Whether the kernel can limit shows only when it is asked to.
    fn status(&self, call: &Call) -> Result<(), CniError> {
        Config::new(call).map(drop)
    }
}
