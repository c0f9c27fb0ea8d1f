//! The plugin's keys, checked.

use serde::Deserialize;
use skiff_cni::{
    firewall::Backend,
    skel::Call,
    types::{CniError, Dns, IfName, PluginType},
};

use super::vlan::{TrunkEntry, Vlans};
use crate::veth::{IpamObject, masquerade_backend, mtu};

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) bridge: IfName,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    /// Which firewall hides the containers' addresses, if they are hidden.
    pub(super) masquerade: Option<Backend>,
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    pub(super) isolated: bool,
    pub(super) vlans: Vlans,
    /// The bridge's port to the world, which must let the VLANs pass too.
    pub(super) uplink: Option<IfName>,
    /// The link that has the gateway's addresses if the container is in a VLAN.
    pub(super) vlan_gateway: Option<IfName>,
    pub(super) checks_spoofing: bool,
    pub(super) detects_duplicates: bool,
    /// Whether the container's link stays down and without addresses.
    pub(super) is_disabled: bool,
    /// The container's hardware address, if the runtime wants a certain one.
    pub(super) mac: Option<[u8; 6]>,
    /// Name resolution that goes before what IPAM says.
    pub(super) dns: Option<Dns>,
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
    vlan_trunk: Option<Vec<TrunkEntry>>,
    #[serde(default)]
    preserve_default_vlan: bool,
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
    dns: Dns,
    #[serde(default)]
    ipam: IpamObject,
    #[serde(default)]
    runtime_config: RuntimeObject,
    #[serde(default)]
    args: ArgsObject,
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

impl Config {
    /// For ADD, CHECK and STATUS: everything is checked.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let ipam = document.ipam.plugin()?;
        if document.hairpin_mode && document.promisc_mode {
            return Err(CniError::config(
                "hairpinMode and promiscMode exclude each other",
            ));
        }
        if document.disable_container_interface && ipam.is_some() {
            return Err(CniError::config(
                "disableContainerInterface and ipam exclude each other",
            ));
        }
        let bridge = match document.bridge.as_deref() {
            None | Some("") => "cni0",
            Some(name) => name,
        };
        let bridge = link_name("bridge", bridge)?;
        let vlans = Vlans::new(
            document.vlan,
            document.vlan_trunk.as_deref(),
            document.preserve_default_vlan,
        )?;
        let is_gateway = document.is_gateway || document.is_default_gateway;
        let vlan_gateway = match vlans.access {
            Some(id) if is_gateway && ipam.is_some() => {
                Some(link_name("the VLAN's gateway", &format!("{bridge}.{id}"))?)
            }
            _ => None,
        };
        let uplink = match &*document.uplink_interface {
            "" => None,
            name => Some(link_name("uplinkInterface", name)?),
        };
        Ok(Self {
            bridge,
            is_gateway,
            is_default_gateway: document.is_default_gateway,
            force_address: document.force_address,
            masquerade: masquerade_backend(document.ip_masq, document.ip_masq_backend.as_deref())?,
            mtu: mtu(document.mtu)?,
            hairpin: document.hairpin_mode,
            promiscuous: document.promisc_mode,
            isolated: document.port_isolation,
            vlans,
            uplink,
            vlan_gateway,
            checks_spoofing: document.macspoofchk,
            detects_duplicates: document.enabledad,
            is_disabled: document.disable_container_interface,
            mac: wanted_mac(call, &document)?,
            dns: Some(document.dns).filter(|dns| *dns != Dns::default()),
            ipam,
        })
    }
}

fn link_name(what: &str, name: &str) -> Result<IfName, CniError> {
    name.parse()
        .map_err(|error| CniError::config(format!("{what}: {error}")))
}

fn wanted_mac(call: &Call, document: &Document) -> Result<Option<[u8; 6]>, CniError> {
    let from_args = call
        .args
        .iter()
        .find(|(key, _)| key == "MAC")
        .map(|(_, mac)| mac.as_str());
    [
        &*document.runtime_config.mac,
        &*document.args.cni.mac,
        from_args.unwrap_or_default(),
    ]
    .into_iter()
    .find(|mac| !mac.is_empty())
    .map(parse_mac)
    .transpose()
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
    }
}
