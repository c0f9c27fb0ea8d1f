//! The plugin's keys.

use serde::Deserialize;
use skiff_cni::{
    firewall::Backend,
    skel::Call,
    types::{CniError, Dns, PluginType, code},
};

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// With what packets to the world are masqueraded, if they are.
    pub(super) masquerade: Option<Backend>,
    pub(super) mtu: Option<u32>,
    /// In place of IPAM's, if anything is in it.
    pub(super) dns: Dns,
    pub(super) ipam: PluginType,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: i64,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    ipam: IpamObject,
}

#[derive(Default, Deserialize)]
struct IpamObject {
    #[serde(rename = "type", default)]
    plugin_type: String,
}

impl Config {
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let mtu = match u32::try_from(document.mtu) {
            Ok(0) => None,
            Ok(mtu @ 68..=65_535) => Some(mtu),
            _ => {
                let msg = format!("mtu {} is not between 68 and 65535", document.mtu);
                return Err(CniError::config(msg));
            }
        };
        Ok(Self {
            masquerade: document
                .ip_masq
                .then(|| backend(document.ip_masq_backend.as_deref()))
                .transpose()?,
            mtu,
            dns: document.dns,
            ipam: ipam_type(&document.ipam)?,
        })
    }
}

/// What undoing needs, so that a changed configuration does not keep it from happening.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) masquerade: Option<Backend>,
    pub(super) ipam: PluginType,
}

impl Removal {
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document {
            #[serde(default)]
            ip_masq: bool,
            ip_masq_backend: Option<String>,
            #[serde(default)]
            ipam: IpamObject,
        }
        let document: Document = call.conf.decode()?;
        Ok(Self {
            masquerade: document
                .ip_masq
                .then(|| backend(document.ip_masq_backend.as_deref()))
                .transpose()?,
            ipam: ipam_type(&document.ipam)?,
        })
    }
}

fn backend(configured: Option<&str>) -> Result<Backend, CniError> {
    let configured = configured.filter(|name| !name.is_empty());
    Backend::choose(configured)
        .map_err(|error| CniError::from_error(code::CONFIG, "ipMasqBackend", &error))
}

fn ipam_type(ipam: &IpamObject) -> Result<PluginType, CniError> {
    if ipam.plugin_type.is_empty() {
        return Err(CniError::config("\"ipam\" is missing"));
    }
    let parsed = ipam.plugin_type.parse();
    parsed.map_err(|error| CniError::config(format!("ipam.type: {error}")))
}
