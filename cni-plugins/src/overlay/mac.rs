//! The hardware address of a node's end of the overlay.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Vni;

/// The hardware address of a VTEP (VXLAN tunnel endpoint).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VtepMac([u8; 6]);

/// A text that is no single link's hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a link's hardware address")]
pub struct InvalidMac(String);

impl VtepMac {
    /// The address of the VTEP at `underlay`, the same wherever it is computed.
    #[must_use]
    pub fn derive(vni: Vni, underlay: IpAddr) -> Self {
        let hash = Sha256::new()
            .chain_update("skiff-vtep")
            .chain_update(vni.get().to_be_bytes())
            .chain_update(underlay.to_canonical().to_string())
            .finalize();
        let mut mac = [0; 6];
        for (byte, hashed) in mac.iter_mut().zip(hash) {
            *byte = hashed;
        }
        // Of a single link, locally administered.
        mac[0] = mac[0] & 0xfe | 0x02;
        Self(mac)
    }

    /// Its bytes.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The IPv6 address that a link with this hardware address gives itself (RFC 4291, appendix A): the gateway to the
    /// VTEP's IPv6 networks.
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let word = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            word(a ^ 2, b),
            word(c, 0xff),
            word(0xfe, d),
            word(e, f),
        )
    }
}

impl fmt::Display for VtepMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl FromStr for VtepMac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let wrong = || InvalidMac(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(wrong)?;
        }
        if parts.next().is_some() || mac[0] & 1 == 1 || mac == [0; 6] {
            return Err(wrong());
        }
        Ok(Self(mac))
    }
}

impl TryFrom<String> for VtepMac {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<VtepMac> for String {
    fn from(mac: VtepMac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_follows_from_vni_and_underlay_alone() {
        let (one, two) = (Vni::new(1).unwrap(), Vni::new(2).unwrap());
        let ip = "192.0.2.1".parse().unwrap();
        let mac = VtepMac::derive(one, ip);
        // Written down: another value would cut a new version off from the old ones.
        assert_eq!(mac.to_string(), "66:ac:f5:53:ba:37");
        assert_ne!(mac, VtepMac::derive(two, ip));
        assert_ne!(mac, VtepMac::derive(one, "192.0.2.2".parse().unwrap()));
        assert_eq!(mac.octets()[0] & 3, 2);
    }

    #[test]
    fn the_link_local_address_is_the_kernels() {
        let mac: VtepMac = "02:00:5e:10:20:30".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::5eff:fe10:2030");
    }

    #[test]
    fn only_hardware_addresses_of_single_links_are_read() {
        for bad in [
            "",
            "02",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "02:00:00:00:00:0",
            "02:00:00:00:00:00:00",
            "02:00:00:00:00:+1",
        ] {
            assert!(bad.parse::<VtepMac>().is_err(), "{bad}");
        }
    }
}
