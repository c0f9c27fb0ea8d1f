//! The container's end.

use std::{
    thread,
    time::{Duration, Instant},
};

use futures::future::{join, join_all};
use skiff_cni::{
    netlink::{DuplicateDetection, Link, Netlink, NetlinkError, RouteSpec},
    types::{CniError, CniResult, code},
};
use skiff_netns::NetNs;

use super::sysctl;
use crate::{ipam::gateway_of, runtime::kernel};

/// The neighbours are given so long to say that they have an address already.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(10);
const DETECTION_INTERVAL: Duration = Duration::from_millis(10);

/// The container's namespace.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) netns: &'a NetNs,
    pub(super) netlink: &'a Netlink,
}

impl Pod<'_> {
    /// Gives the link its addresses and routes and sets it up. All requests go out before the first answer is waited
    /// for; the kernel takes them in order, so a later one fails only if an earlier one has, and the first error counts.
    pub(super) async fn configure(
        &self,
        link: &Link,
        result: &CniResult,
        detects_duplicates: bool,
    ) -> Result<(), CniError> {
        if result.ips.iter().any(|ip| ip.address.is_ipv6()) {
            sysctl::keep_addresses(self.netns, &link.name, detects_duplicates)?;
        }
        let addresses = result.ips.iter().map(|ip| async {
            if detects_duplicates {
                self.netlink
                    .add_detected_address(link.index, ip.address)
                    .await
            } else {
                self.netlink.add_address(link.index, ip.address).await
            }
        });
        let configured = join(
            join(
                self.netlink.announce_when_up(link.index),
                join_all(addresses),
            ),
            self.netlink.set_up(link.index),
        );
        // An IPv6 route that names a source, or a gateway on the link, needs the address to be settled.
        let (((announced, added), up), routed) = if detects_duplicates {
            (configured.await, Vec::new())
        } else {
            join(configured, self.add_routes(link, result)).await
        };
        announced.map_err(kernel("cannot make the container's link announce itself"))?;
        for (ip, added) in result.ips.iter().zip(added) {
            added.map_err(kernel(format!("cannot give the container {}", ip.address)))?;
        }
        up.map_err(kernel("cannot set the container's link up"))?;
        let routed = if detects_duplicates {
            self.wait_for_detection(link).await?;
            self.add_routes(link, result).await
        } else {
            routed
        };
        for (route, added) in result.routes.iter().zip(routed) {
            added.map_err(kernel(format!("cannot add the route to {}", route.dst)))?;
        }
        Ok(())
    }

    async fn add_routes(&self, link: &Link, result: &CniResult) -> Vec<Result<(), NetlinkError>> {
        let specs: Vec<RouteSpec> = result
            .routes
            .iter()
            .map(|route| RouteSpec {
                priority: route.priority,
                table: route.table,
                mtu: route.mtu,
                advmss: route.advmss,
                scope: route.scope,
                ..RouteSpec::new(route.dst, gateway_of(route, &result.ips), link.index)
            })
            .collect();
        join_all(specs.iter().map(|spec| self.netlink.add_route(spec))).await
    }

    async fn wait_for_detection(&self, link: &Link) -> Result<(), CniError> {
        let start = Instant::now();
        loop {
            match self.netlink.duplicate_detection(link.index).await {
                Ok(DuplicateDetection::Settled) => return Ok(()),
                Ok(DuplicateDetection::Waiting) if start.elapsed() > DETECTION_TIMEOUT => {
                    let msg = "the container's addresses are still being checked for duplicates";
                    return Err(CniError::new(code::TRY_AGAIN, msg));
                }
                Ok(DuplicateDetection::Waiting) => thread::sleep(DETECTION_INTERVAL),
                Ok(DuplicateDetection::Duplicate(ip)) => {
                    let msg = format!("somebody else on the network has {ip}");
                    return Err(CniError::new(code::EXISTS, msg));
                }
                Err(error) => return Err(kernel("cannot list addresses")(error)),
            }
        }
    }
}
