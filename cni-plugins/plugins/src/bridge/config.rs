//! The plugin's keys. Those of the reference plugin that are not there yet are refused by name, never ignored.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;
use skiff_cni::{
    skel::Call,
    types::{CniError, IfName, PluginType},
};

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) bridge: IfName,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) ip_masq: bool,
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    /// The container's hardware address, if the runtime wants a certain one.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) ipam: Option<PluginType>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    bridge: Option<String>,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: i64,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: i64,
    #[serde(default)]
    vlan_trunk: Vec<Value>,
    /// Says nothing as long as there is no VLAN.
    #[serde(rename = "preserveDefaultVlan", default)]
    _preserve_default_vlan: bool,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    uplink_interface: String,
    #[serde(default)]
    ipam: IpamObject,
    #[serde(default)]
    runtime_config: RuntimeObject,
    #[serde(default)]
    args: ArgsObject,
}

#[derive(Default, Deserialize)]
struct IpamObject {
    #[serde(rename = "type", default)]
    plugin_type: String,
}

#[derive(Default, Deserialize)]
struct RuntimeObject {
    #[serde(default)]
    mac: String,
}

#[derive(Default, Deserialize)]
struct ArgsObject {
    #[serde(default)]
    cni: RuntimeObject,
}

impl Document {
    fn refuse_unsupported(&self) -> Result<(), CniError> {
        let asked = [
            ("vlan", self.vlan != 0),
            ("vlanTrunk", !self.vlan_trunk.is_empty()),
            ("macspoofchk", self.macspoofchk),
            ("enabledad", self.enabledad),
            (
                "disableContainerInterface",
                self.disable_container_interface,
            ),
            ("portIsolation", self.port_isolation),
            ("uplinkInterface", !self.uplink_interface.is_empty()),
            (
                "ipMasqBackend",
                self.ip_masq
                    && self
                        .ip_masq_backend
                        .as_deref()
                        .is_some_and(|b| !b.is_empty() && b != "iptables"),
            ),
        ];
        match asked.iter().find(|(_, is_asked)| *is_asked) {
            Some((key, _)) => Err(CniError::unsupported(key)),
            None => Ok(()),
        }
    }
}

impl Config {
    /// For ADD, CHECK and STATUS: everything is checked.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        document.refuse_unsupported()?;
        if document.hairpin_mode && document.promisc_mode {
            return Err(CniError::config(
                "hairpinMode and promiscMode exclude each other",
            ));
        }
        let mtu = match document.mtu {
            0 => None,
            mtu => Some(
                u32::try_from(mtu)
                    .ok()
                    .filter(|mtu| (68..=65_535).contains(mtu))
                    .ok_or_else(|| {
                        CniError::config(format!("mtu {mtu} is not between 68 and 65535"))
                    })?,
            ),
        };
        let bridge = match document.bridge.as_deref() {
            None | Some("") => "cni0",
            Some(name) => name,
        };
        let from_args = call
            .args
            .iter()
            .find(|(key, _)| key == "MAC")
            .map(|(_, mac)| mac.as_str());
        let mac = [
            &*document.runtime_config.mac,
            &*document.args.cni.mac,
            from_args.unwrap_or_default(),
        ]
        .into_iter()
        .find(|mac| !mac.is_empty())
        .map(parse_mac)
        .transpose()?;
        Ok(Self {
            bridge: bridge
                .parse()
                .map_err(|error| CniError::config(format!("bridge: {error}")))?,
            is_gateway: document.is_gateway || document.is_default_gateway,
            is_default_gateway: document.is_default_gateway,
            force_address: document.force_address,
            ip_masq: document.ip_masq,
            mtu,
            hairpin: document.hairpin_mode,
            promiscuous: document.promisc_mode,
            mac,
            ipam: ipam_type(&document.ipam)?,
        })
    }

    /// For DEL and GC: only what undoing needs, so that a changed configuration does not keep it from happening.
    pub(super) fn for_removal(call: &Call) -> Result<(bool, Option<PluginType>), CniError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Removal {
            #[serde(default)]
            ip_masq: bool,
            #[serde(default)]
            ipam: IpamObject,
        }
        let removal: Removal = call.conf.decode()?;
        Ok((removal.ip_masq, ipam_type(&removal.ipam)?))
    }
}

fn ipam_type(ipam: &IpamObject) -> Result<Option<PluginType>, CniError> {
    if ipam.plugin_type.is_empty() {
        return Ok(None);
    }
    let parsed = ipam.plugin_type.parse();
    parsed
        .map(Some)
        .map_err(|error| CniError::config(format!("ipam.type: {error}")))
}

fn parse_mac(text: &str) -> Result<[u8; 6], CniError> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte = parts
            .next()
            .filter(|part| part.len() == 2)
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| CniError::config(format!("mac {text:?} is not a hardware address")))?;
    }
    // The kernel refuses a group address for a single link.
    if parts.next().is_some() || mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(CniError::config(format!(
            "mac {text:?} is not a link's hardware address"
        )));
    }
    Ok(mac)
}

/// A hardware address that follows from an IP address: whoever gets the address again has the same, and no neighbour's
/// table goes stale. The prefix is that of Kubernetes' own network plugins.
pub(super) fn mac_of(ip: IpAddr) -> [u8; 6] {
    let [.., a, b, c, d] = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_checked() {
        assert_eq!(parse_mac("02:00:00:00:00:0a").unwrap(), [2, 0, 0, 0, 0, 10]);
        for bad in [
            "",
            "02",
            "01:00:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02:00:00:00:00:zz",
            "00:00:00:00:00:00",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        assert_eq!(
            mac_of("10.244.0.5".parse().unwrap()),
            [0x0a, 0x58, 10, 244, 0, 5]
        );
    }
}
