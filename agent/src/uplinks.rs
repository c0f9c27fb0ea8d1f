//! The node's links to the outside: found as they come and go, and given to the datapath.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use skiff_cni::netlink::{Link, Netlink, RouteSpec, Watch};
use skiff_ebpf_loader::{DatapathError, FlowTable, Uplinks};
use skiff_netns::NodeNetns;
use skiff_service_proxy::ProxyHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::config::Place;

/// Links are set up in several steps: what follows so soon is one change.
const SETTLE: Duration = Duration::from_millis(20);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often connections that have ended are removed.
const SWEEP: Duration = Duration::from_secs(15);

/// What it is told.
pub(crate) struct UplinkConfig {
    /// The node's own.
    pub(crate) node_addresses: Vec<IpAddr>,
    /// Whether drivers are asked to help.
    pub(crate) xdp: bool,
}

/// Looks after the links and the connections that come in by them.
pub(crate) struct UplinkTask {
    netns: NodeNetns,
    bpffs_dir: PathBuf,
    config: UplinkConfig,
    proxy: ProxyHandle,
}

impl UplinkTask {
    pub(crate) fn new(place: &Place, config: UplinkConfig, proxy: ProxyHandle) -> Self {
        Self {
            netns: place.netns.clone(),
            bpffs_dir: place.bpffs_dir.clone(),
            config,
            proxy,
        }
    }

    /// Runs until `token` is cancelled. The programs stay where they are then.
    pub(crate) async fn run(self, token: CancellationToken) {
        // Before that, tables may be there that are not filled yet.
        if token
            .run_until_cancelled(self.proxy.synced())
            .await
            .is_none()
        {
            return;
        }
        loop {
            let Some(result) = token.run_until_cancelled(self.follow()).await else {
                return;
            };
            match result {
                Err(error) if is_unsupported(&error) => {
                    tracing::warn!("clients outside the node do not reach Services: {error:#}");
                    return;
                }
                Err(error) => tracing::warn!("looking after the node's links: {error:#}"),
                Ok(()) => {}
            }
            if token
                .run_until_cancelled(time::sleep(RETRY))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    async fn follow(&self) -> Result<()> {
        let watch = Watch::open_in_node(&self.netns)?;
        let netlink = Netlink::open_in_node(&self.netns)?;
        let uplinks = Uplinks::open(&self.bpffs_dir)?;
        let mut sweep = time::interval(SWEEP);
        loop {
            self.adjust(&netlink, &uplinks).await?;
            loop {
                tokio::select! {
                    changed = watch.changed() => {
                        changed?;
                        break time::sleep(SETTLE).await;
                    }
                    _ = sweep.tick() => self.sweep_flows()?,
                }
            }
        }
    }

    /// Attaches to the links that are there, lets go of those that are not.
    async fn adjust(&self, netlink: &Netlink, uplinks: &Uplinks) -> Result<()> {
        let links = netlink.list_links("").await?;
        let addresses = netlink.list_all_addresses().await?;
        let mut routes = Vec::new();
        for link in links.iter().filter(|link| may_lead_out(link)) {
            routes.extend(netlink.list_routes(link.index).await?);
        }
        let own: Vec<u32> = addresses
            .iter()
            .filter(|(_, address)| self.config.node_addresses.contains(&address.ip()))
            .map(|(link, _)| *link)
            .collect();
        let wanted = plan_uplinks(&links, &routes, &own);
        let before = uplinks.attached();
        uplinks.retain(&wanted).context("letting go of links")?;
        for ifindex in &wanted {
            self.netns
                .run(|| uplinks.attach(*ifindex))?
                .with_context(|| format!("link {ifindex}"))?;
        }
        let mut named = links.iter().filter(|link| wanted.contains(&link.index));
        if before != wanted {
            let names: Vec<&str> = named.clone().map(|link| link.name.as_str()).collect();
            tracing::info!(links = ?names, "serving clients outside");
        }
        named.try_for_each(|link| {
            let can = self.config.xdp && can_help(link, &links);
            self.help(link, can, uplinks, before.contains(&link.index))
        })
    }

    /// Has the link's driver help if it `can`, else not any more.
    fn help(&self, link: &Link, can: bool, uplinks: &Uplinks, before: bool) -> Result<()> {
        if !can {
            uplinks.detach_xdp(link.index)?;
        }
        let helps = can && self.netns.run(|| uplinks.attach_xdp(link.index))??;
        if self.config.xdp && !helps && !before {
            tracing::warn!(link = link.name, "no native XDP: served by TCX alone");
        }
        Ok(())
    }

    fn sweep_flows(&self) -> Result<()> {
        let swept = FlowTable::open(&self.bpffs_dir)?.sweep()?;
        let (entries, limit) = (swept.kept + swept.removed, swept.limit);
        if swept.evicts {
            let text = "the table of connections from outside is full, the oldest go";
            tracing::warn!(entries, limit, "{text}");
            // The same words each time: one Event that is counted up.
            let message = format!("{text} (NAT_FLOWS: {limit} entries, two a connection)");
            self.proxy.warn("ConnectionTableFull", message);
        } else if swept.kept as u64 * 10 > u64::from(limit) * 9 {
            tracing::warn!(
                entries,
                limit,
                "the table of connections from outside is nearly full"
            );
        }
        Ok(())
    }
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(DatapathError::MissingFeature { .. })
        )
    })
}

/// Whether it has Ethernet frames, and is not a part of another link.
fn may_lead_out(link: &Link) -> bool {
    link.up && link.mac.len() == 6 && link.controller.is_none() && link.name != "lo"
}

/// Whether its driver sees packets as they were sent. Those of links that the kernel makes up (veth, vxlan, …) have checksums that
/// are still to be computed; of a link with VLANs they may have lost their tag, and with it whom they are for.
fn can_help(link: &Link, all: &[Link]) -> bool {
    let has_vlans = |other: &Link| other.kind == "vlan" && other.peer == Some(link.index);
    link.kind.is_empty() && !all.iter().any(has_vlans)
}

/// The links that clients outside come in by, and those by which backends on other nodes answer: what leads to the rest of the
/// world, has an address of the node (`own`), or joins the nodes. In order.
fn plan_uplinks(links: &[Link], routes: &[RouteSpec], own: &[u32]) -> Vec<u32> {
    let leads_out = |link: &Link| {
        let routes = routes.iter().filter(|route| route.link == link.index);
        let mut default = routes.filter(|route| route.dst.prefix() == 0);
        default.next().is_some() || own.contains(&link.index) || link.kind == "vxlan"
    };
    let found = links
        .iter()
        .filter(|link| may_lead_out(link) && leads_out(link));
    let mut all: Vec<u32> = found.map(|link| link.index).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: kind.into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            up: true,
            ..Link::default()
        }
    }

    #[test]
    fn links_that_lead_out_carry_the_nodes_address_or_join_nodes_are_taken() {
        let links = [
            link(1, "lo", ""),
            link(9, "vxlan0", "vxlan"),
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            link(4, "skiff0", "bridge"),
            Link {
                controller: Some(4),
                ..link(5, "veth1", "veth")
            },
            Link {
                up: false,
                ..link(6, "eth2", "")
            },
            Link {
                mac: Vec::new(),
                ..link(7, "tun0", "tun")
            },
            link(8, "eth3", ""),
        ];
        let route = |dst: &str, link| RouteSpec::new(dst.parse().unwrap(), None, link);
        let routes = [
            route("0.0.0.0/0", 2),
            route("10.244.0.0/24", 4),
            route("::/0", 3),
            route("0.0.0.0/0", 6),
            route("0.0.0.0/0", 7),
        ];
        assert_eq!(plan_uplinks(&links, &routes, &[1, 8]), [2, 3, 8, 9]);
        assert_eq!(plan_uplinks(&links, &[], &[]), [9]);
    }

    #[test]
    fn drivers_of_physical_links_without_vlans_help() {
        let vlan = Link {
            peer: Some(3),
            ..link(6, "eth1.7", "vlan")
        };
        let links = [
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            link(4, "up0", "veth"),
            link(5, "vxlan0", "vxlan"),
            vlan,
        ];
        let helping = links.iter().filter(|link| can_help(link, &links));
        assert_eq!(helping.map(|link| link.index).collect::<Vec<_>>(), [2]);
    }
}
