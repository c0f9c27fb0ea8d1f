//! The keys that both plugins have.

use serde::Deserialize;
use skiff_cni::{
    firewall::{Backend, FirewallError},
    skel::Call,
    types::{CniError, PluginType, code},
};

/// What is looked at of `ipam`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct IpamObject {
    #[serde(rename = "type", default)]
    plugin_type: String,
}

impl IpamObject {
    /// The plugin that gives addresses, if one does.
    pub(crate) fn plugin(&self) -> Result<Option<PluginType>, CniError> {
        if self.plugin_type.is_empty() {
            return Ok(None);
        }
        let parsed = self.plugin_type.parse();
        parsed
            .map(Some)
            .map_err(|error| CniError::config(format!("ipam.type: {error}")))
    }
}

/// Which firewall hides the containers' addresses, if they are hidden.
pub(crate) fn masquerade_backend(
    masquerades: bool,
    configured: Option<&str>,
) -> Result<Option<Backend>, CniError> {
    if !masquerades {
        return Ok(None);
    }
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

/// 0 stands for the kernel's own choice.
pub(crate) fn mtu(mtu: i64) -> Result<Option<u32>, CniError> {
    match u32::try_from(mtu) {
        Ok(0) => Ok(None),
        Ok(mtu @ 68..=65_535) => Ok(Some(mtu)),
        _ => {
            let msg = format!("mtu {mtu} is not between 68 and 65535");
            Err(CniError::config(msg))
        }
    }
}

/// What undoing needs, and no more: a changed configuration does not keep it from happening.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) masquerades: bool,
    pub(crate) checks_spoofing: bool,
    pub(crate) ipam: Option<PluginType>,
}

impl Removal {
    /// For DEL and GC.
    pub(crate) fn new(call: &Call) -> Result<Self, CniError> {
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
            ipam: keys.ipam.plugin()?,
        })
    }
}
