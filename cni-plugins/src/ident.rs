//! Names derived from an attachment, the same in every process, by which a link or a rule is found again.

use std::{collections::HashSet, fmt::Write as _};

use sha2::{Digest, Sha256};

use crate::types::{AttachmentKey, ContainerId, IfName, NetworkName};

/// The longest alias that the kernel keeps (`IFALIASZ` less its final zero).
const ALIAS_MAX: usize = 255;
const ALIAS_PREFIX: &str = "skiff-cni";

/// The first `len` hexadecimal digits of a hash over `parts`, which may hold anything.
#[must_use]
pub fn fingerprint(parts: &[&str], len: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let mut hex = String::with_capacity(64);
    for byte in hash.finalize() {
        // Writing into a String cannot fail.
        write!(hex, "{byte:02x}").ok();
    }
    hex.truncate(len);
    hex
}

/// The name of the host's end of an attachment's veth pair. `salt` counts up when a stranger has the name already.
#[must_use]
pub fn host_veth_name(container: &ContainerId, ifname: &IfName, salt: u8) -> String {
    let salt = salt.to_string();
    format!(
        "veth{}",
        fingerprint(&[container.as_str(), ifname.as_str(), &salt], 8)
    )
}

/// The hardware address of the host's end, by which it is known before it has its alias.
#[must_use]
pub fn host_veth_mac(container: &ContainerId, ifname: &IfName) -> [u8; 6] {
    let hash = Sha256::new()
        .chain_update(container.as_str())
        .chain_update([0])
        .chain_update(ifname.as_str())
        .finalize();
    let mut mac = [0; 6];
    for (byte, hashed) in mac.iter_mut().zip(hash) {
        *byte = hashed;
    }
    // Of a single link, locally administered.
    mac[0] = mac[0] & 0xfe | 0x02;
    mac
}

/// What the alias of an attachment's link on the host says, so that a sweep knows whose it is: the names themselves, or
/// hashes of them if they would not fit.
#[must_use]
pub fn link_alias(network: &NetworkName, container: &ContainerId, ifname: &IfName) -> String {
    let alias = format!("{} {container} {ifname}", alias_start(network));
    if alias.len() <= ALIAS_MAX {
        return alias;
    }
    let names = [network.as_str(), container.as_str(), ifname.as_str()];
    // No name begins with '#'.
    format!(
        "{} #{}",
        hashed_alias_start(network),
        fingerprint(&names, 40)
    )
}

fn alias_start(network: &NetworkName) -> String {
    format!("{ALIAS_PREFIX} {network}")
}

fn hashed_alias_start(network: &NetworkName) -> String {
    format!("{ALIAS_PREFIX} #{}", fingerprint(&[network.as_str()], 40))
}

/// Tells the links of a network that none of its valid attachments owns.
#[derive(Debug)]
pub struct AliasSweep {
    starts: [String; 2],
    valid: HashSet<String>,
}

impl AliasSweep {
    /// For GC of `network`.
    #[must_use]
    pub fn new(network: &NetworkName, valid: &[AttachmentKey]) -> Self {
        let alias = |key: &AttachmentKey| link_alias(network, &key.container_id, &key.ifname);
        Self {
            starts: [alias_start(network), hashed_alias_start(network)].map(|start| start + " "),
            valid: valid.iter().map(alias).collect(),
        }
    }

    /// Whether a link with this alias is the network's and of no valid attachment.
    #[must_use]
    pub fn is_stale(&self, alias: &str) -> bool {
        self.starts.iter().any(|start| alias.starts_with(start)) && !self.valid.contains(alias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container: &str) -> AttachmentKey {
        AttachmentKey {
            container_id: container.parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        }
    }

    #[test]
    fn a_sweep_takes_the_networks_own_links_of_no_valid_attachment() {
        let (network, other) = ("net".parse().unwrap(), "net2".parse().unwrap());
        let long = "c".repeat(250);
        let sweep = AliasSweep::new(&network, &[key("keep"), key(&long)]);
        let alias =
            |network, key: &AttachmentKey| link_alias(network, &key.container_id, &key.ifname);
        assert!(!sweep.is_stale(&alias(&network, &key("keep"))));
        assert!(!sweep.is_stale(&alias(&network, &key(&long))));
        assert!(sweep.is_stale(&alias(&network, &key("gone"))));
        assert!(sweep.is_stale(&alias(&network, &key(&"d".repeat(250)))));
        for foreign in ["", "uplink to the world", "skiff-cni net"] {
            assert!(!sweep.is_stale(foreign), "{foreign}");
        }
        assert!(!sweep.is_stale(&alias(&other, &key("gone"))));
        assert!(!sweep.is_stale(&alias(&other, &key(&long))));
    }

    #[test]
    fn an_alias_fits_whatever_the_names() {
        let long = "n".repeat(300);
        for (network, container) in [("net", &*long), (&long, "c1"), (&long, &long)] {
            let network = network.parse().unwrap();
            let key = key(container);
            let alias = link_alias(&network, &key.container_id, &key.ifname);
            assert!(alias.len() <= ALIAS_MAX, "{alias}");
            assert!(AliasSweep::new(&network, &[]).is_stale(&alias));
        }
    }

    #[test]
    fn a_fingerprint_keeps_parts_apart() {
        assert_ne!(fingerprint(&["ab", "c"], 16), fingerprint(&["a", "bc"], 16));
        assert_eq!(fingerprint(&["ab", "c"], 16).len(), 16);
    }
}
