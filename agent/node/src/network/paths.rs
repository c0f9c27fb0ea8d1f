//! Shorter ways between the pods of a node than the bridge.

use std::error::Error;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use skiff_cni::libcni::Conflist;
use skiff_cni::netlink::Netlink;
use skiff_cni::types::CniResult;
use skiff_netns::NodeNetns;

/// Where a pod is joined to its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPort {
    /// The pod's UID.
    #[serde(default)]
    pub uid: String,
    /// The number of the node's end of the veth pair, in the node's network namespace.
    pub ifindex: u32,
    /// The hardware address of the pod's end.
    pub mac: [u8; 6],
    /// The pod's addresses: at most one of each family.
    pub addrs: Vec<IpAddr>,
    /// Whether packets to and from other pods may go around the bridge.
    #[serde(default)]
    pub direct: bool,
}

/// Told of pods as they come and go. Blocking, and none of its failures is a pod's: packets then take the bridge.
pub trait PodPaths: Send + Sync + 'static {
    /// Makes the ways to and from a pod. Doing it again changes nothing.
    ///
    /// # Errors
    /// Why they cannot be made.
    fn attach(&self, pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Removes them.
    ///
    /// # Errors
    /// Why they cannot be removed.
    fn detach(&self, pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Makes them for these pods and removes all others.
    ///
    /// # Errors
    /// What could not be made or removed.
    fn sync(&self, pods: &[PodPort]) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The port of a pod that the list's plugins have joined by a veth pair; `None` if it is joined in another way, or has
/// more than one address of a family.
pub(super) async fn find_port(
    uid: &str,
    netns: &NodeNetns,
    list: &Conflist,
    result: &CniResult,
) -> Option<PodPort> {
    let (host, mac, addrs) = plan_port(result)?;
    let netlink = Netlink::open_in_node(netns).ok()?;
    let link = netlink.find_link(&host).await.ok()??;
    (link.kind == "veth").then(|| PodPort {
        uid: uid.to_owned(),
        ifindex: link.index,
        mac,
        addrs,
        direct: may_bypass_bridge(list),
    })
}

/// Whether nothing but the bridge is between the list's pods: no queue that limits them, no rule, no VLAN that parts them.
fn may_bypass_bridge(list: &Conflist) -> bool {
    const PARTING: [&str; 4] = ["portIsolation", "vlan", "vlanTrunk", "promiscMode"];
    list.plugins
        .iter()
        .all(|plugin| match plugin.plugin_type.as_str() {
            "bridge" => !PARTING.iter().any(|key| plugin.raw.contains_key(*key)),
            "portmap" => true,
            _ => false,
        })
}

/// The name of the node's link, and the pod's addresses.
fn plan_port(result: &CniResult) -> Option<(String, [u8; 6], Vec<IpAddr>)> {
    let addrs: Vec<IpAddr> = result.container_ips().map(|ip| ip.address.ip()).collect();
    let v4 = addrs.iter().filter(|addr| addr.is_ipv4()).count();
    if addrs.is_empty() || v4 > 1 || addrs.len() - v4 > 1 {
        return None;
    }
    let pod = result
        .interfaces
        .iter()
        .position(|i| !i.sandbox.is_empty())?;
    let mut bytes = result.interfaces.get(pod)?.mac.split(':');
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = u8::from_str_radix(bytes.next()?, 16).ok()?;
    }
    // Plugins name the bridge first, then its port; `ptp` has no bridge.
    let host = result.interfaces.iter().rfind(|i| i.sandbox.is_empty())?;
    Some((host.name.clone(), mac, addrs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn port(
        interfaces: &serde_json::Value,
        address: &str,
    ) -> Option<(String, [u8; 6], Vec<IpAddr>)> {
        let last = interfaces.as_array().unwrap().len() - 1;
        let ips = address
            .split(' ')
            .map(|ip| json!({"address": ip, "interface": last}));
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": interfaces,
            "ips": ips.collect::<Vec<_>>(),
        });
        plan_port(&CniResult::from_json(&result).unwrap())
    }

    #[test]
    fn the_port_is_the_nodes_last_link() {
        let bridge = json!([
            {"name": "skiff0", "mac": "0a:58:0a:f4:00:01"},
            {"name": "veth1", "mac": "0e:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:58:0a:f4:00:02", "sandbox": "/run/netns/pod"},
        ]);
        assert_eq!(
            port(&bridge, "10.244.0.2/24"),
            Some((
                "veth1".to_owned(),
                [0x0a, 0x58, 10, 244, 0, 2],
                vec!["10.244.0.2".parse().unwrap()]
            ))
        );
        let both = port(&bridge, "10.244.0.2/24 fd00::2/64").unwrap().2;
        assert_eq!(both.len(), 2);
        assert_eq!(port(&bridge, "10.244.0.2/24 10.244.0.3/24"), None);
        let macvlan = json!([{"name": "eth0", "mac": "0a:58:0a:f4:00:02", "sandbox": "/n"}]);
        assert_eq!(port(&macvlan, "10.244.0.2/24"), None);
    }

    #[test]
    fn what_is_between_pods_is_not_gone_around() {
        let direct = |plugins: &serde_json::Value| {
            let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": plugins});
            may_bypass_bridge(&Conflist::parse(list.to_string().as_bytes()).unwrap())
        };
        assert!(direct(&json!([{"type": "bridge"}, {"type": "portmap"}])));
        for plugins in [
            json!([{"type": "bridge", "portIsolation": true}]),
            json!([{"type": "bridge", "vlan": 7}]),
            json!([{"type": "bridge"}, {"type": "bandwidth"}]),
            json!([{"type": "bridge"}, {"type": "firewall"}]),
            json!([{"type": "ptp"}]),
        ] {
            assert!(!direct(&plugins), "{plugins}");
        }
    }
}
