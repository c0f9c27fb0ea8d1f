//! Names derived from an attachment, the same in every process, by which a link or a rule is found again.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::types::{ContainerId, IfName, NetworkName};

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

/// What a host veth's alias says, so that a sweep knows whose it is. `None` if it would not fit.
#[must_use]
pub fn link_alias(
    network: &NetworkName,
    container: &ContainerId,
    ifname: &IfName,
) -> Option<String> {
    let alias = format!("{ALIAS_PREFIX} {network} {container} {ifname}");
    (alias.len() <= ALIAS_MAX).then_some(alias)
}

/// Reads [`link_alias`] back; `None` for an alias that is not ours.
#[must_use]
pub fn parse_link_alias(alias: &str) -> Option<(NetworkName, ContainerId, IfName)> {
    let mut words = alias.split(' ');
    if words.next()? != ALIAS_PREFIX {
        return None;
    }
    let network = words.next()?.parse().ok()?;
    let container = words.next()?.parse().ok()?;
    let ifname = words.next()?.parse().ok()?;
    words
        .next()
        .is_none()
        .then_some((network, container, ifname))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_read_back_and_a_foreign_one_is_not() {
        let network = "net".parse().unwrap();
        let container = "c1".parse().unwrap();
        let ifname = "eth0".parse().unwrap();
        let alias = link_alias(&network, &container, &ifname).unwrap();
        assert_eq!(parse_link_alias(&alias), Some((network, container, ifname)));
        assert_eq!(parse_link_alias("uplink to the world"), None);
        assert_eq!(parse_link_alias("skiff-cni net c1"), None);
    }

    #[test]
    fn a_fingerprint_keeps_parts_apart() {
        assert_ne!(fingerprint(&["ab", "c"], 16), fingerprint(&["a", "bc"], 16));
        assert_eq!(fingerprint(&["ab", "c"], 16).len(), 16);
    }
}
