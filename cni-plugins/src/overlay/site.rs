//! Which of the nodes this one is, and what its underlay leaves for pods.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Node, Overlay, OverlayError};

/// Outer Ethernet, UDP and VXLAN headers; the IP header comes on top.
const OVERHEAD: u32 = 14 + 8 + 8;
/// RFC 791: what every IPv4 host must be able to receive.
const LEAST_MTU_V4: u32 = 576;
/// RFC 8200: what every IPv6 link must carry.
const LEAST_MTU_V6: u32 = 1280;

/// This node's place in an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its entry in the table.
    pub node: Node,
    /// The address that outer packets come from.
    pub local: IpAddr,
    /// The number of the link that has this address.
    pub link: u32,
}

/// Finds this node's entry by `addresses`, which the node has on the links of these numbers. `device` is the number of
/// the link that the settings name. Where more than one address fits, the entry's first one counts.
///
/// # Errors
/// [`OverlayError::NotInTable`], [`OverlayError::Ambiguous`].
pub fn plan_site(
    overlay: &Overlay,
    addresses: &[(u32, IpNetwork)],
    device: Option<u32>,
) -> Result<Site, OverlayError> {
    let settings = overlay.settings();
    let is_wanted = |node: &&Node| settings.node.as_ref().is_none_or(|name| *name == node.name);
    let mut found: Option<Site> = None;
    for node in overlay.nodes().iter().filter(is_wanted) {
        let place = node.underlay.iter().find_map(|ip| {
            let wanted = settings.underlay.address.is_none_or(|only| only == *ip);
            let (link, _) = addresses.iter().find(|(link, address)| {
                wanted && address.ip() == *ip && device.is_none_or(|only| only == *link)
            })?;
            Some((*ip, *link))
        });
        let Some((local, link)) = place else { continue };
        if let Some(other) = found {
            return Err(OverlayError::Ambiguous {
                first: other.node.name,
                second: node.name.clone(),
            });
        }
        found = Some(Site {
            node: node.clone(),
            local,
            link,
        });
    }
    found.ok_or_else(|| OverlayError::NotInTable {
        reason: not_found(overlay),
    })
}

fn not_found(overlay: &Overlay) -> String {
    let settings = overlay.settings();
    let whose = match &settings.node {
        Some(name) => format!("the underlay address of {name:?}"),
        None => "an entry's underlay address".to_owned(),
    };
    let mut reason = match &settings.underlay.device {
        Some(device) => format!("{device} does not have {whose}"),
        None => format!("no link has {whose}"),
    };
    if let Some(address) = settings.underlay.address {
        reason.push_str(&format!(" that is {address}"));
    }
    reason
}

impl Site {
    /// The MTU of device and pods over an underlay link with `underlay_mtu`.
    ///
    /// # Errors
    /// [`OverlayError::Mtu`].
    pub fn mtu(&self, overlay: &Overlay, underlay_mtu: u32) -> Result<u32, OverlayError> {
        let ip_header = if self.local.is_ipv4() { 20 } else { 40 };
        let most = underlay_mtu.saturating_sub(OVERHEAD + ip_header);
        let has_v6 = self.node.pod_cidrs.iter().any(IpNetwork::is_ipv6);
        let least = if has_v6 { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
        let mtu = overlay.settings().mtu.unwrap_or(most);
        if mtu < least || mtu > most {
            return Err(OverlayError::Mtu { mtu, least, most });
        }
        Ok(mtu)
    }
}

#[cfg(test)]
#[path = "site_tests.rs"]
mod tests;
