//! The plugin's keys, checked.

use std::net::IpAddr;

use serde::Deserialize;
use skiff_cni::{
    firewall::{Backend, FirewallError},
    skel::Call,
    types::{CniError, Dns, IfName, PluginType, code},
};

use super::vlan::{TrunkEntry, Vlans};

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

impl Config {
    /// For ADD, CHECK and STATUS: everything is checked.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let ipam = ipam_type(&document.ipam)?;
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
            masquerade: masquerade_backend(&document)?,
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

/// What undoing needs, and no more: a changed configuration does not keep it from happening.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) masquerades: bool,
    pub(super) checks_spoofing: bool,
    pub(super) ipam: Option<PluginType>,
}

impl Removal {
    /// Whether the firewall is concerned.
    pub(super) fn has_rules(&self) -> bool {
        self.masquerades || self.checks_spoofing
    }

    /// For DEL and GC.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Keys {
            #[serde(default)]
            ip_masq: bool,
            #[serde(default)]
            macspoofchk: bool,
            #[serde(default)]
            ipam: IpamObject,
        }
        let keys: Keys = call.conf.decode()?;
        Ok(Self {
            masquerades: keys.ip_masq,
            checks_spoofing: keys.macspoofchk,
            ipam: ipam_type(&keys.ipam)?,
        })
    }
}

fn link_name(what: &str, name: &str) -> Result<IfName, CniError> {
    name.parse()
        .map_err(|error| CniError::config(format!("{what}: {error}")))
}

fn masquerade_backend(document: &Document) -> Result<Option<Backend>, CniError> {
    if !document.ip_masq {
        return Ok(None);
    }
    let configured = document.ip_masq_backend.as_deref();
    Backend::choose(configured.filter(|name| !name.is_empty()))
        .map(Some)
        .map_err(|error| {
            let code = match error {
                FirewallError::UnknownBackend(_) => code::CONFIG,
                _ => code::FIREWALL,
            };
            CniError::from_error(code, "cannot masquerade", &error)
        })
}

fn mtu(mtu: i64) -> Result<Option<u32>, CniError> {
    match mtu {
        0 => Ok(None),
        mtu => u32::try_from(mtu)
            .ok()
            .filter(|mtu| (68..=65_535).contains(mtu))
            .map(Some)
            .ok_or_else(|| CniError::config(format!("mtu {mtu} is not between 68 and 65535"))),
    }
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
