//! The plugin's keys.

use serde::Deserialize;
use skiff_cni::{
    skel::Call,
    types::{CniError, code},
};

const DEFAULT_ADMIN_CHAIN: &str = "CNI-ADMIN";
const DEFAULT_ZONE: &str = "trusted";
/// iptables takes no longer name for a chain.
const CHAIN_NAME_MAX: usize = 28;
/// What iptables takes for a verdict, not for a chain, and the chains that are there already.
const RESERVED: [&str; 11] = [
    "ACCEPT",
    "DROP",
    "QUEUE",
    "RETURN",
    "INPUT",
    "FORWARD",
    "OUTPUT",
    super::rules::FORWARD_CHAIN,
    super::rules::OWNERS_CHAIN,
    super::rules::STAGE_1,
    super::rules::STAGE_2,
];

/// What lets packets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// firewalld if it runs, otherwise iptables.
    Auto,
    Iptables,
    Firewalld,
}

/// Who may reach a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Everybody.
    Open,
    /// Containers on the same bridge.
    SameBridge,
    /// No container.
    Isolated,
}

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) backend: Backend,
    pub(super) admin_chain: String,
    pub(super) zone: String,
    pub(super) policy: Policy,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    iptables_admin_chain_name: String,
    #[serde(default)]
    firewalld_zone: String,
    #[serde(default)]
    ingress_policy: String,
}

impl Config {
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let zones = Zones::from_document(&document)?;
        let admin_chain = match document.iptables_admin_chain_name.as_str() {
            "" => DEFAULT_ADMIN_CHAIN,
            name if is_chain_name(name) => name,
            name => {
                return Err(CniError::config(format!(
                    "iptablesAdminChainName {name:?} cannot be a chain of the administrator's"
                )));
            }
        };
        let policy = match document.ingress_policy.as_str() {
            "" | "open" => Policy::Open,
            "same-bridge" => Policy::SameBridge,
            "isolated" => Policy::Isolated,
            other => {
                return Err(CniError::config(format!(
                    "unknown ingressPolicy {other:?}: it is \"open\", \"same-bridge\" or \"isolated\""
                )));
            }
        };
        Ok(Self {
            backend: zones.backend,
            admin_chain: admin_chain.to_owned(),
            zone: zones.zone,
            policy,
        })
    }
}

/// What DEL needs, so that a configuration that is wrong elsewhere does not keep it from undoing.
#[derive(Debug)]
pub(super) struct Zones {
    pub(super) backend: Backend,
    pub(super) zone: String,
}

impl Zones {
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        Self::from_document(&call.conf.decode()?)
    }

    fn from_document(document: &Document) -> Result<Self, CniError> {
        let backend = match document.backend.as_str() {
            "" => Backend::Auto,
            "iptables" => Backend::Iptables,
            "firewalld" => Backend::Firewalld,
            other => {
                return Err(CniError::new(
                    code::CONFIG,
                    format!("unknown backend {other:?}: it is \"iptables\" or \"firewalld\""),
                ));
            }
        };
        let zone = match document.firewalld_zone.as_str() {
            "" => DEFAULT_ZONE,
            zone => zone,
        };
        Ok(Self {
            backend,
            zone: zone.to_owned(),
        })
    }
}

fn is_chain_name(name: &str) -> bool {
    name.len() <= CHAIN_NAME_MAX
        && name.bytes().all(|b| b.is_ascii_graphic())
        && !name.starts_with(['-', '!'])
        && !name.contains(['"', '\'', '\\', '#', ':'])
        && !RESERVED.contains(&name)
}
