//! Waits until the kernel has done what follows from a plugin's work: carriers, port states, address checks.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::read::{Sections, strings};
use crate::TestNetns;

/// The kernel tells of a lost carrier once a second at most, and checks addresses when it gets to it.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(40);
/// A bridge that still has no state after this keeps none.
const STATELESS: Duration = Duration::from_secs(3);

/// Everything about all namespaces, once none of them has something under way.
pub(super) fn settled(spaces: &[(&str, &TestNetns)]) -> Vec<Sections> {
    let start = Instant::now();
    loop {
        let mut all: Vec<Sections> = spaces
            .iter()
            .map(|(_, netns)| Sections::links_of(netns))
            .collect();
        let pending = all.iter().zip(spaces).find_map(|(sections, (name, _))| {
            pending(sections, start.elapsed()).map(|what| format!("{name}: {what}"))
        });
        let Some(what) = pending else {
            for (sections, (_, netns)) in all.iter_mut().zip(spaces) {
                sections.complete(netns);
            }
            return all;
        };
        assert!(start.elapsed() < PATIENCE, "does not settle: {what}");
        thread::sleep(PAUSE);
    }
}

/// What is still under way.
fn pending(sections: &Sections, waited: Duration) -> Option<String> {
    for link in sections.json("links") {
        let flags = strings(&link["flags"]);
        let state = link["operstate"].as_str().unwrap_or_default();
        let carrier = flags.contains(&"LOWER_UP");
        if flags.contains(&"UP") && carrier != matches!(state, "UP" | "UNKNOWN") {
            return Some(format!("{} is {state}: {flags:?}", link["ifname"]));
        }
        let is_bridge = link["linkinfo"]["info_kind"] == "bridge";
        if carrier && is_bridge && state == "UNKNOWN" && waited < STATELESS {
            return Some(format!("the bridge {} has no state yet", link["ifname"]));
        }
        let port = &link["linkinfo"]["info_slave_data"]["state"];
        if carrier && state == "UP" && !port.is_null() && port != "forwarding" {
            return Some(format!("the port {} is {port}", link["ifname"]));
        }
    }
    for link in sections.json("addresses") {
        let addresses = link["addr_info"].as_array().cloned().unwrap_or_default();
        if addresses
            .iter()
            .any(|address| address["tentative"] == Value::Bool(true))
        {
            return Some(format!("{} has a tentative address", link["ifname"]));
        }
    }
    None
}
