//! ADD.

use ipnetwork::{IpNetwork, Ipv6Network};
use skiff_cni::{
    firewall::{Backend, Masquerade},
    netlink::Netlink,
    overlay::{self, Attached, VtepMac},
    skel::{Call, Plugin as _, Target},
    types::{CniError, CniResult, code},
};
use skiff_netns::{NetNs, NodeNetns};

use super::{
    config::{Config, in_cluster},
    derive::bridge_call,
    inspect::inspect,
    overlay_error,
};
use crate::{
    bridge::Bridge,
    ipam::as_del,
    runtime::{block_on_waiting, kernel},
};

pub(super) fn add(call: &Call, target: &Target) -> Result<CniResult, CniError> {
    let config = Config::new(call)?;
    let attached = ensure_overlay(call, target, &config)?;
    let bridge = bridge_call(call, config.overlay.settings().vni, &attached);
    let result = Bridge.add(&bridge, target)?;
    match finish(call, target, &config, &attached, &result) {
        Ok(()) => {
            if attached.changes.created {
                speed_up_ipv6(&result);
            }
            Ok(result)
        }
        Err(error) => {
            // What cannot be undone is left to DEL, which the runtime calls after a failed ADD.
            if let Some(backend) = config.masquerade {
                Masquerade::new(call.conf.name.clone(), backend)
                    .delete(&[], &target.container_id)
                    .ok();
            }
            Bridge.del(&as_del(&bridge), target).ok();
            Err(error)
        }
    }
}

/// In most cases there is nothing to do. Otherwise everything is checked before the node is changed, also what is the
/// bridge plugin's business.
fn ensure_overlay(call: &Call, target: &Target, config: &Config) -> Result<Attached, CniError> {
    let node = NodeNetns::machine();
    let overlay = &config.overlay;
    let applied = block_on_waiting(async {
        let applied = overlay::find_applied(&node, overlay).await;
        applied.map_err(overlay_error)
    })?;
    if let Some(attached) = applied {
        return Ok(attached);
    }
    let attached = inspect(config)?;
    Bridge
        .status(&bridge_call(call, overlay.settings().vni, &attached))
        .map_err(|error| match error.code {
            // What only STATUS says.
            code::UNAVAILABLE => CniError {
                code: code::CONFIG,
                ..error
            },
            _ => error,
        })?;
    NetNs::open(target.netns()?).map_err(|error| {
        CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error)
    })?;
    block_on_waiting(async { overlay::ensure(&node, overlay).await.map_err(overlay_error) })
}

/// What is forwarded to pods waits until the bridge has a link-local address to look for them with, and a bridge that
/// is new looks for duplicates of its own for a second or two. It has made it up, so there are none: given again, the
/// address is good at once. If that fails, it takes its time.
fn speed_up_ipv6(result: &CniResult) {
    let has_v6 = result.container_ips().any(|ip| ip.address.is_ipv6());
    let Some(bridge) = result.interfaces.first().filter(|_| has_v6) else {
        return;
    };
    let Ok(mac) = bridge.mac.parse::<VtepMac>() else {
        return;
    };
    let Ok(address) = Ipv6Network::new(mac.link_local(), 64).map(IpNetwork::V6) else {
        return;
    };
    block_on_waiting(async {
        let failed = || kernel("cannot give the bridge its link-local address again");
        let host = Netlink::open().map_err(failed())?;
        let link = host.find_link(&bridge.name).await.map_err(failed())?;
        if let Some(link) = link {
            let deleted = host.delete_address(link.index, address).await;
            deleted.map_err(failed())?;
            let added = host.add_address(link.index, address).await;
            added.map_err(failed())?;
        }
        Ok(())
    })
    .ok();
}

fn finish(
    call: &Call,
    target: &Target,
    config: &Config,
    attached: &Attached,
    result: &CniResult,
) -> Result<(), CniError> {
    let pod_cidrs = &attached.node.pod_cidrs;
    for ip in result.container_ips() {
        if !pod_cidrs.iter().any(|cidr| cidr.contains(ip.address.ip())) {
            return Err(CniError::config(format!(
                "{} is in no podCIDR of {:?}: the other nodes would not find it",
                ip.address, attached.node.name
            )));
        }
    }
    match config.masquerade {
        None => Ok(()),
        Some(backend) => masquerade(call, target, config, result, backend),
    }
}

fn masquerade(
    call: &Call,
    target: &Target,
    config: &Config,
    result: &CniResult,
    backend: Backend,
) -> Result<(), CniError> {
    Masquerade::new(call.conf.name.clone(), backend)
        .ensure(&cluster_addresses(config, result), &target.container_id)
        .map_err(|error| CniError::from_error(code::FIREWALL, "cannot masquerade", &error))
}

/// The container's addresses as masquerading wants them: with the length of the network that it leaves out.
pub(super) fn cluster_addresses(config: &Config, result: &CniResult) -> Vec<IpNetwork> {
    let cluster_cidrs = &config.overlay.settings().cluster_cidrs;
    result
        .container_ips()
        .filter_map(|ip| in_cluster(ip.address.ip(), cluster_cidrs))
        .collect()
}
