//! What can be changed on a link.

use serde::{Deserialize, Serialize};
use skiff_cni::{
    netlink::{Link, LinkChange, Netlink},
    skel::Target,
    types::{CniError, CniResult},
};

use super::differs;
use crate::runtime::kernel;

/// Some of a link's settings: those that are wanted, or what they were before. The keys are the reference plugin's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkSettings {
    #[serde(default, skip_serializing_if = "Option::is_none", with = "mac_text")]
    pub(super) mac: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub(super) tx_queue_len: Option<u32>,
}

impl LinkSettings {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What `link` has of the settings that `wanted` would change.
    pub(super) fn of(link: &Link, wanted: &Self) -> Self {
        Self {
            mac: wanted.mac.as_ref().map(|_| link.mac.clone()),
            promisc: wanted.promisc.map(|_| link.promiscuous),
            mtu: wanted.mtu.map(|_| link.mtu),
            allmulti: wanted.allmulti.map(|_| link.all_multicast),
            tx_queue_len: wanted.tx_queue_len.map(|_| link.tx_queue_len),
        }
    }

    /// Whether a link can have them: the kernel would take the beginning of a longer hardware address.
    pub(super) fn check_fits(&self, link: &Link) -> Result<(), CniError> {
        match &self.mac {
            Some(mac) if mac.len() != link.mac.len() => {
                let (text, name) = (text_of(mac), &link.name);
                let msg =
                    format!("mac {text:?} does not fit {name}, whose addresses differ in length");
                Err(CniError::config(msg))
            }
            _ => Ok(()),
        }
    }

    /// Gives them to a link.
    pub(super) async fn set(&self, pod: &Netlink, link: u32) -> Result<(), CniError> {
        let change = LinkChange {
            mac: self.mac.as_deref(),
            mtu: self.mtu,
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            tx_queue_len: self.tx_queue_len,
        };
        let changed = pod.change_link(link, &change).await;
        changed.map_err(kernel(format!(
            "cannot set {} of the container's link",
            self.names().join(", ")
        )))
    }

    fn names(&self) -> Vec<&'static str> {
        [
            ("mac", self.mac.is_some()),
            ("promisc", self.promisc.is_some()),
            ("mtu", self.mtu.is_some()),
            ("allmulti", self.allmulti.is_some()),
            ("txQLen", self.tx_queue_len.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }

    /// Compares a link with them. A link that nobody wants promiscuous must not be.
    pub(super) fn check(&self, link: &Link) -> Result<(), CniError> {
        let promiscuous = self.promisc.unwrap_or(false);
        let wrong = [
            ("mac", self.mac.as_ref().is_some_and(|mac| *mac != link.mac)),
            ("promisc", promiscuous != link.promiscuous),
            ("mtu", self.mtu.is_some_and(|mtu| mtu != link.mtu)),
            (
                "allmulti",
                self.allmulti.is_some_and(|on| on != link.all_multicast),
            ),
            (
                "txQLen",
                self.tx_queue_len
                    .is_some_and(|length| length != link.tx_queue_len),
            ),
        ];
        match wrong.into_iter().find(|(_, wrong)| *wrong) {
            Some((name, _)) => Err(differs(format!("{} has another {name}", link.name))),
            None => Ok(()),
        }
    }

    /// Tells the result of the plugins before what changed.
    pub(super) fn write_into(&self, result: &mut CniResult, target: &Target) {
        for interface in &mut result.interfaces {
            if interface.name != target.ifname.as_str() || interface.sandbox.is_empty() {
                continue;
            }
            if let Some(mac) = &self.mac {
                interface.mac = text_of(mac);
            }
            // Who did not tell it has nothing that could be wrong.
            if interface.mtu.is_some() && self.mtu.is_some() {
                interface.mtu = self.mtu;
            }
        }
    }
}

fn text_of(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// Reads a hardware address in the forms `aa:bb:..`, `aa-bb-..` and `aabb.ccdd...`, of 6, 8 or 20 bytes.
pub(super) fn parse_mac(text: &str) -> Option<Vec<u8>> {
    let (separator, width) = match text {
        _ if text.contains(':') => (':', 2),
        _ if text.contains('-') => ('-', 2),
        _ => ('.', 4),
    };
    let mut mac = Vec::with_capacity(20);
    for group in text.split(separator) {
        // A number may have a sign, a hardware address may not.
        if group.len() != width || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for at in (0..width).step_by(2) {
            mac.push(u8::from_str_radix(group.get(at..at + 2)?, 16).ok()?);
        }
    }
    matches!(mac.len(), 6 | 8 | 20).then_some(mac)
}

mod mac_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::ref_option, reason = "serde prescribes it")]
    pub(super) fn serialize<S: Serializer>(
        mac: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&mac.as_deref().map(super::text_of).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_mac(&text)
            .map(Some)
            .ok_or_else(|| D::Error::custom("not a hardware address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_hardware_address_is_read() {
        let mac = vec![0xc2, 0x11, 0x22, 0x33, 0x44, 0x55];
        for text in ["c2:11:22:33:44:55", "C2-11-22-33-44-55", "c211.2233.4455"] {
            assert_eq!(parse_mac(text).as_ref(), Some(&mac), "{text}");
        }
        for text in [
            "",
            "c2",
            "c2:11:22:33:44",
            "c2:11:22:33:44:5",
            "c2:11:22:33:44:zz",
            "c2:11-22:33:44:55",
            "+2:11:22:33:44:55",
            "ä:11:22:33:44:55",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    #[test]
    fn a_backup_of_the_reference_plugin_is_read() {
        let text = r#"{"mac": "1a:50:1c:ba:ed:c7", "promisc": false, "mtu": 1400, "allmulti": false, "txQLen": 1000}"#;
        let settings: LinkSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.mtu, Some(1400));
        assert_eq!(
            serde_json::to_value(&settings).unwrap(),
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
    }
}
