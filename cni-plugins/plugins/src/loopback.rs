//! `loopback`: sets a container's `lo` up.

use std::net::IpAddr;

use skiff_cni::{
    netlink::{Link, Netlink},
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, Interface, IpConfig, code},
};
use skiff_netns::NetNs;

use crate::runtime::{block_on, kernel};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Loopback;

async fn find(netlink: &Netlink) -> Result<Link, CniError> {
    netlink
        .find_link("lo")
        .await
        .map_err(kernel("cannot find lo"))?
        .ok_or_else(|| CniError::new(code::KERNEL, "the namespace has no lo"))
}

fn open(target: &Target) -> Result<NetNs, CniError> {
    NetNs::open(target.netns()?)
        .map_err(|error| CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error))
}

impl Plugin for Loopback {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let netns = open(target)?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
            let link = find(&netlink).await?;
            netlink
                .set_up(link.index)
                .await
                .map_err(kernel("cannot set lo up"))?;
            if let Some(previous) = &call.conf.prev_result {
                return Ok(previous.clone());
            }
            let addresses = netlink
                .list_addresses(link.index)
                .await
                .map_err(kernel("cannot list addresses"))?;
            let ip = |address| IpConfig {
                interface: Some(0),
                address,
                gateway: None,
            };
            Ok(CniResult {
                interfaces: vec![Interface {
                    name: "lo".to_owned(),
                    mac: link.mac_text(),
                    sandbox: target.netns()?.to_string_lossy().into_owned(),
                    ..Interface::default()
                }],
                ips: addresses.into_iter().map(ip).collect(),
                ..CniResult::default()
            })
        })
    }

    /// `lo` goes with its namespace.
    fn del(&self, _call: &Call, _target: &Target) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, _call: &Call, target: &Target) -> Result<(), CniError> {
        let netns = open(target)?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
            let link = find(&netlink).await?;
            let addresses = netlink
                .list_addresses(link.index)
                .await
                .map_err(kernel("cannot list addresses"))?;
            let missing = |what| CniError::new(code::CHECK_FAILED, format!("lo {what}"));
            if !link.up {
                return Err(missing("is down"));
            }
            if !addresses
                .iter()
                .any(|address| address.ip() == IpAddr::from([127, 0, 0, 1]))
            {
                return Err(missing("has no 127.0.0.1"));
            }
            Ok(())
        })
    }

    fn gc(&self, _call: &Call) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _call: &Call) -> Result<(), CniError> {
        Ok(())
    }
}
