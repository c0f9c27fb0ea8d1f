//! What the rules need of the node beside themselves: kernel settings, and a way for packets to Services to get as far as
//! the rules.

use std::{fs, io};

use ipnetwork::IpNetwork;
use skiff_cni::netlink::{Netlink, RouteSpec};
use skiff_netns::NodeNetns;

use super::{IptablesConfig, IptablesError, remove_rules};

/// `RT_SCOPE_LINK`.
const SCOPE_LINK: u8 = 253;
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
/// Per network namespace. Answers between two pods of one bridge must pass connection tracking, or they would carry the
/// backend's address.
const BRIDGE: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

/// Sets the node up.
pub(super) async fn prepare(config: &IptablesConfig) -> Result<(), IptablesError> {
    config.netns.run_blocking(write_settings).await??;
    let netlink = Netlink::open_in_node(&config.netns)?;
    let addresses = netlink.list_all_addresses().await?;
    for range in &config.service_ranges {
        let same_family = |addr: &IpNetwork| addr.is_ipv4() == range.is_ipv4();
        let link = addresses
            .iter()
            .find(|(_, addr)| same_family(addr) && config.node_addresses.contains(&addr.ip()));
        match link {
            Some((link, _)) => netlink.add_route(&route(*range, *link)).await?,
            None => tracing::debug!(%range, "Services are reached by the default route"),
        }
    }
    Ok(())
}

/// Undoes it, the rules first.
pub(super) async fn restore(
    netns: &NodeNetns,
    service_ranges: &[IpNetwork],
) -> Result<(), IptablesError> {
    let rules = netns
        .run_blocking(|| {
            let removed = remove_rules()?;
            if removed {
                write(ROUTE_LOCALNET, "0")?;
            }
            Ok::<_, IptablesError>(())
        })
        .await?;
    let netlink = Netlink::open_in_node(netns)?;
    for range in service_ranges {
        // If another route leads there, there is none of exactly this range: as it should be.
        if let Some(found) = netlink.find_route(range.ip()).await? {
            netlink.delete_route(&route(*range, found.link)).await?;
        }
    }
    rules
}

/// A socket of the node must find a route before rules see its first packet, and what is refused must not be refused by an
/// unreachable route before that. So there is one that leads out of the node, and rules that let nothing take it.
fn route(range: IpNetwork, link: u32) -> RouteSpec {
    RouteSpec {
        scope: range.is_ipv4().then_some(SCOPE_LINK),
        ..RouteSpec::new(range, None, link)
    }
}

fn write_settings() -> Result<(), IptablesError> {
    // NodePorts on 127.0.0.1; `SKIFF-LOCALNET` keeps others out.
    write(ROUTE_LOCALNET, "1")?;
    for path in BRIDGE {
        match write(path, "1") {
            Err(IptablesError::Setting { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                tracing::warn!(
                    "the kernel module br_netfilter is not loaded: pods of one node will not reach each other through Services"
                );
                break;
            }
            result => result?,
        }
    }
    Ok(())
}

fn write(path: &'static str, value: &str) -> Result<(), IptablesError> {
    let is_so = fs::read_to_string(path).is_ok_and(|have| have.trim() == value);
    if is_so {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| IptablesError::Setting { path, source })
}
