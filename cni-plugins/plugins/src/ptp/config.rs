//! The plugin's keys.

use serde::Deserialize;
use skiff_cni::{
    firewall::Backend,
    skel::Call,
    types::{CniError, Dns, PluginType},
};

use crate::veth::{IpamObject, masquerade_backend, mtu};

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

impl Config {
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let ipam = document.ipam.plugin()?;
        let backend = document.ip_masq_backend.as_deref();
        Ok(Self {
            masquerade: masquerade_backend(document.ip_masq, backend)?,
            mtu: mtu(document.mtu)?,
            dns: document.dns,
            ipam: ipam.ok_or_else(|| CniError::config("\"ipam\" is missing"))?,
        })
    }
}
