//! Whose a rule is: what its comment or its chain's name says.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha512};

use crate::{
    fingerprint,
    types::{ContainerId, NetworkName},
};

/// iptables keeps 255 bytes of a comment, nftables 127: names that are longer than this become a beginning and a hash.
const LABEL_IPTABLES: usize = 110;
const LABEL_NFTABLES: usize = 55;
const LABEL_HASH: usize = 16;

/// The longest chain name that iptables allows, which the reference plugins fill.
const CHAIN_LENGTH: usize = 28;
/// So much of a comment do the reference plugins keep in nftables.
const REFERENCE_COMMENT: usize = 128;

/// The network and the container that a comment names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    network: &'a str,
    container: &'a str,
    /// The container's name was cut off at its end.
    cut: bool,
}

impl<'a> Owner<'a> {
    /// What our rules in iptables carry.
    #[must_use]
    pub fn comment(network: &NetworkName, container: &ContainerId) -> String {
        comment(network, container, LABEL_IPTABLES)
    }

    /// What our elements in nftables carry.
    #[must_use]
    pub fn short_comment(network: &NetworkName, container: &ContainerId) -> String {
        comment(network, container, LABEL_NFTABLES)
    }

    /// Reads a comment of ours or of a reference plugin (bridge and ptp in either backend, portmap in iptables).
    #[must_use]
    pub fn read(comment: &'a str) -> Option<Self> {
        Self::read_ours(comment)
            .or_else(|| Self::read_quoted(comment))
            .or_else(|| Self::read_listed(comment))
    }

    /// `name:NETWORK id:CONTAINER`
    fn read_ours(comment: &'a str) -> Option<Self> {
        let (network, container) = comment.strip_prefix("name:")?.split_once(" id:")?;
        let is_ours = !network.contains(' ');
        is_ours.then_some(Self {
            network,
            container,
            cut: false,
        })
    }

    /// `name: "NETWORK" id: "CONTAINER"`
    fn read_quoted(comment: &'a str) -> Option<Self> {
        let (_, named) = comment.split_once("name: \"")?;
        let (network, container) = named.split_once("\" id: \"")?;
        Some(Self {
            network,
            container: container.strip_suffix('"')?,
            cut: false,
        })
    }

    /// `HASH-HASH, net: NETWORK, if: LINK, id: CONTAINER`, of which the end may be missing.
    fn read_listed(comment: &'a str) -> Option<Self> {
        let (_, named) = comment.split_once(", net: ")?;
        let (network, rest) = named.split_once(", if: ")?;
        let (_, container) = rest.split_once(", id: ")?;
        Some(Self {
            network,
            container,
            cut: comment.len() >= REFERENCE_COMMENT,
        })
    }

    /// Whether it is this network.
    #[must_use]
    pub fn is_network(&self, network: &NetworkName) -> bool {
        is_label(self.network, network.as_str())
    }

    /// Whether it is this container.
    #[must_use]
    pub fn is_container(&self, container: &ContainerId) -> bool {
        is_label(self.container, container.as_str())
            || self.cut
                && !self.container.is_empty()
                && container.as_str().starts_with(self.container)
    }
}

fn comment(network: &NetworkName, container: &ContainerId, max: usize) -> String {
    format!(
        "name:{} id:{}",
        label(network.as_str(), max),
        label(container.as_str(), max)
    )
}

/// A name, or what stands for it. Names are ASCII, and have no `~`.
fn label(name: &str, max: usize) -> String {
    match name.get(..max - LABEL_HASH - 1) {
        Some(beginning) if name.len() > max => {
            format!("{beginning}~{}", fingerprint(&[name], LABEL_HASH))
        }
        _ => name.to_owned(),
    }
}

fn is_label(found: &str, name: &str) -> bool {
    found == name
        || found.contains('~')
            && [LABEL_IPTABLES, LABEL_NFTABLES]
                .iter()
                .any(|max| found == label(name, *max))
}

/// The name of the chain that a reference plugin makes for a container: `prefix` is `DN-` for portmap's and empty for
/// masquerading.
#[must_use]
pub fn reference_chain(prefix: &str, network: &NetworkName, container: &ContainerId) -> String {
    let hash = Sha512::new()
        .chain_update(network.as_str())
        .chain_update(container.as_str())
        .finalize();
    let mut name = format!("CNI-{prefix}");
    for byte in hash {
        // Writing into a String cannot fail.
        write!(name, "{byte:02x}").ok();
    }
    name.truncate(CHAIN_LENGTH);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_from_every_kind_of_comment() {
        let (network, container) = ("net".parse().unwrap(), "c1".parse().unwrap());
        let other = "c12".parse().unwrap();
        for comment in [
            &*Owner::comment(&network, &container),
            &*Owner::short_comment(&network, &container),
            r#"name: "net" id: "c1""#,
            r#"dnat name: "net" id: "c1""#,
            "0123456789abcdef-0123456789abcdef, net: net, if: eth0, id: c1",
        ] {
            let owner = Owner::read(comment).unwrap();
            assert!(owner.is_network(&network), "{comment}");
            assert!(owner.is_container(&container), "{comment}");
            assert!(!owner.is_container(&other), "{comment}");
        }
        assert_eq!(Owner::read("CNI portfwd masquerade mark"), None);
    }

    #[test]
    fn long_names_fit_and_stay_apart() {
        let network = "n".repeat(200).parse().unwrap();
        let container: ContainerId = "c".repeat(300).parse().unwrap();
        let other = "c".repeat(301).parse().unwrap();
        for (comment, max) in [
            (Owner::comment(&network, &container), 255),
            (Owner::short_comment(&network, &container), 127),
        ] {
            assert!(comment.len() <= max, "{comment}");
            let owner = Owner::read(&comment).unwrap();
            assert!(owner.is_network(&network) && owner.is_container(&container));
            assert!(!owner.is_container(&other));
        }
    }

    #[test]
    fn a_comment_that_was_cut_off_still_names_its_container() {
        let id = "0123456789abcdef".repeat(4);
        let network = "a-rather-long-name".parse().unwrap();
        let mut comment = format!("{}, net: {network}, if: eth0, id: {id}", "0".repeat(33));
        comment.truncate(REFERENCE_COMMENT);
        let owner = Owner::read(&comment).unwrap();
        assert!(owner.is_network(&network) && owner.is_container(&id.parse().unwrap()));
        assert!(!owner.is_container(&"0123456".parse().unwrap()));
    }

    #[test]
    fn a_reference_chain_has_28_characters() {
        let id = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0a\
                  hfaeng8yohb9ceu0daez5hashee8ooYai5wa3y";
        let network = "testNetName".parse().unwrap();
        let chain = reference_chain("DN-", &network, &id.parse().unwrap());
        // As the reference's own tests have it.
        assert_eq!(chain, "CNI-DN-bfd599665540dd91d5d28");
    }
}
