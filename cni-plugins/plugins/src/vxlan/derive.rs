//! The bridge plugin's configuration as it follows from ours.

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};
use skiff_cni::{
    overlay::{Attached, Vni},
    skel::Call,
};

const OWN_KEYS: [&str; 7] = [
    "vni",
    "port",
    "node",
    "nodes",
    "stateFile",
    "underlay",
    "clusterCIDR",
];

/// The call of the bridge plugin for a node whose place is known.
pub(super) fn bridge_call(call: &Call, vni: Vni, attached: &Attached) -> Call {
    let mut derived = removal_call(call, Some(vni));
    let raw = &mut derived.conf.raw;
    raw.insert("mtu".to_owned(), attached.mtu.into());
    // Without a gateway the other nodes' pods are out of reach.
    if !raw.contains_key("isGateway") && !raw.contains_key("isDefaultGateway") {
        raw.insert("isDefaultGateway".to_owned(), true.into());
    }
    fill_ranges(raw, &attached.node.pod_cidrs);
    derived
}

/// The same for DEL and GC, which must not depend on the table of nodes.
pub(super) fn removal_call(call: &Call, vni: Option<Vni>) -> Call {
    let mut derived = call.clone();
    let raw = &mut derived.conf.raw;
    for key in OWN_KEYS {
        raw.remove(key);
    }
    raw.insert("type".to_owned(), "bridge".into());
    // Masquerading is ours: it needs to know of the other nodes' pods.
    raw.insert("ipMasq".to_owned(), false.into());
    if let Some(vni) = vni {
        raw.entry("bridge")
            .or_insert_with(|| format!("skbr{}", vni.get()).into());
    }
    raw.entry("ipam")
        .or_insert_with(|| json!({ "type": "host-local" }));
    derived
}

/// host-local without ranges gives addresses of this node's podCIDRs, so that one configuration serves all nodes.
fn fill_ranges(raw: &mut Map<String, Value>, pod_cidrs: &[IpNetwork]) {
    let from_runtime = raw
        .get("runtimeConfig")
        .is_some_and(|runtime| runtime.get("ipRanges").is_some());
    let Some(ipam) = raw.get_mut("ipam").and_then(Value::as_object_mut) else {
        return;
    };
    let has_ranges = ["subnet", "ranges"]
        .iter()
        .any(|key| ipam.contains_key(*key));
    if from_runtime || has_ranges || ipam.get("type") != Some(&json!("host-local")) {
        return;
    }
    let ranges: Vec<Value> = pod_cidrs
        .iter()
        .map(|cidr| json!([{ "subnet": cidr }]))
        .collect();
    ipam.insert("ranges".to_owned(), ranges.into());
}
