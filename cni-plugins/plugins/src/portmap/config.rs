//! The plugin's keys, checked.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use skiff_cni::{
    firewall::{Backend, Family},
    skel::{Call, Target},
    types::{CniError, code},
};

/// The bit that marks what must be masqueraded: Kubernetes has 14 and 15, Calico 20 to 31.
const DEFAULT_MARK_BIT: u8 = 13;

/// The checked configuration.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) backend: Backend,
    pub(super) mappings: Vec<Mapping>,
    pub(super) masquerade: Masquerading,
    /// Everything that comes in by a mapping loses its source, not only what could not find its way back.
    pub(super) masq_all: bool,
    conditions_v4: Vec<String>,
    conditions_v6: Vec<String>,
}

/// How packets that must not keep their source are told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Masquerading {
    /// Not at all.
    Off,
    /// By a bit of the packet's mark.
    Bit(u8),
    /// By somebody else's chain.
    External(String),
}

/// A port of the host and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) protocol: Protocol,
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    /// Not for the unspecified address, which stands for all of its family.
    pub(super) host_ip: Option<IpAddr>,
    /// The only family it is for.
    family: Option<Family>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Sctp,
    Tcp,
    Udp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    backend: Option<String>,
    snat: Option<bool>,
    #[serde(default)]
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
    #[serde(default)]
    runtime_config: RuntimeObject,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeObject {
    port_mappings: Option<Vec<MappingObject>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MappingObject {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

impl Protocol {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Mapping {
    /// Whether it concerns addresses of this family.
    pub(super) fn is_for(&self, family: Family) -> bool {
        self.family.is_none_or(|only| only == family)
    }
}

impl MappingObject {
    fn check(self) -> Result<Mapping, CniError> {
        let port = |what, number: i64| {
            u16::try_from(number)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| CniError::config(format!("invalid {what} {number}")))
        };
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "sctp" => Protocol::Sctp,
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => {
                let msg = format!("invalid protocol {:?} of a port mapping", self.protocol);
                return Err(CniError::config(msg));
            }
        };
        let host_ip: Option<IpAddr> = self
            .host_ip
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse()
                    .map_err(|error| CniError::config(format!("invalid hostIP {text:?}: {error}")))
            })
            .transpose()?;
        Ok(Mapping {
            protocol,
            host_port: port("hostPort", self.host_port)?,
            container_port: port("containerPort", self.container_port)?,
            host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
            family: host_ip.map(Family::of),
        })
    }
}

impl Config {
    /// Reads and checks.
    ///
    /// # Errors
    /// Codes 6 and 7, and 104 without any firewall.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let default = Backend::choose(None)
            .map_err(|error| CniError::from_error(code::FIREWALL, "cannot forward ports", &error));
        Self::with_default(call, default)
    }

    /// The same for DEL, which has nothing to remove on a machine without any firewall.
    ///
    /// # Errors
    /// Codes 6 and 7.
    pub(super) fn for_removal(call: &Call) -> Result<Self, CniError> {
        Self::with_default(call, Backend::choose(None).or(Ok(Backend::Iptables)))
    }

    fn with_default(call: &Call, default: Result<Backend, CniError>) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let conditions_v4 = check_conditions("conditionsV4", document.conditions_v4)?;
        let conditions_v6 = check_conditions("conditionsV6", document.conditions_v6)?;
        let implied = implied_backend(&conditions_v4, &conditions_v6)?;
        let marks = document.mark_masq_bit.is_some() || document.external_set_mark_chain.is_some();
        let backend = choose(document.backend.as_deref(), implied, marks, default)?;
        let masquerade = check_masquerading(
            document.snat.unwrap_or(true),
            document.mark_masq_bit,
            document.external_set_mark_chain,
        )?;
        let mappings = document.runtime_config.port_mappings.unwrap_or_default();
        Ok(Self {
            backend,
            mappings: mappings
                .into_iter()
                .map(MappingObject::check)
                .collect::<Result<_, _>>()?,
            masquerade,
            masq_all: document.masq_all,
            conditions_v4,
            conditions_v6,
        })
    }

    /// What a packet must be besides to be forwarded, in the backend's words.
    pub(super) fn conditions(&self, family: Family) -> &[String] {
        match family {
            Family::V4 => &self.conditions_v4,
            Family::V6 => &self.conditions_v6,
        }
    }

    /// The mappings that concern a family.
    pub(super) fn mappings(&self, family: Family) -> impl Iterator<Item = &Mapping> {
        let mappings = self.mappings.iter();
        mappings.filter(move |mapping| mapping.is_for(family))
    }

    pub(super) fn masquerades(&self) -> bool {
        self.masquerade != Masquerading::Off
    }
}

/// A word must not begin a line of the backend's own. The backend checks the rest.
fn check_conditions(key: &str, words: Option<Vec<String>>) -> Result<Vec<String>, CniError> {
    let words = words.unwrap_or_default();
    for word in &words {
        if word.is_empty() || word.contains(|c: char| c.is_control() || c == ';') {
            return Err(CniError::config(format!("invalid word {word:?} in {key}")));
        }
    }
    Ok(words)
}

/// iptables' conditions begin with an option, and none of nftables' does.
fn implied_backend(v4: &[String], v6: &[String]) -> Result<Option<Backend>, CniError> {
    let of = |words: &[String]| {
        words.first().map(|word| {
            if word.starts_with('-') || word == "!" {
                Backend::Iptables
            } else {
                Backend::Nftables
            }
        })
    };
    match (of(v4), of(v6)) {
        (Some(one), Some(other)) if one != other => Err(CniError::config(
            "conditionsV4 and conditionsV6 are for different backends",
        )),
        (one, other) => Ok(one.or(other)),
    }
}

fn choose(
    configured: Option<&str>,
    implied: Option<Backend>,
    marks: bool,
    default: Result<Backend, CniError>,
) -> Result<Backend, CniError> {
    let named = configured
        .map(|name| Backend::choose(Some(name)))
        .transpose()
        .map_err(|error| CniError::config(error.to_string()))?;
    let backend = match named.or(implied) {
        Some(backend) => backend,
        None if marks => Backend::Iptables,
        None => default?,
    };
    if implied.is_some_and(|implied| implied != backend) {
        return Err(CniError::config("the conditions are for the other backend"));
    }
    if marks && backend == Backend::Nftables {
        return Err(CniError::config(
            "markMasqBit and externalSetMarkChain are for the iptables backend only",
        ));
    }
    Ok(backend)
}

fn check_masquerading(
    snat: bool,
    bit: Option<i64>,
    external: Option<String>,
) -> Result<Masquerading, CniError> {
    if let Some(chain) = &external {
        if bit.is_some() {
            return Err(CniError::config(
                "cannot have both markMasqBit and externalSetMarkChain",
            ));
        }
        let is_name = (1..=28).contains(&chain.len())
            && !chain.starts_with(['-', '!'])
            && chain.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
        if !is_name {
            return Err(CniError::config(format!(
                "invalid externalSetMarkChain {chain:?}"
            )));
        }
    }
    let bit = match bit {
        None => DEFAULT_MARK_BIT,
        Some(bit) => u8::try_from(bit)
            .ok()
            .filter(|bit| *bit < 32)
            .ok_or_else(|| CniError::config("markMasqBit must be between 0 and 31"))?,
    };
    Ok(match (snat, external) {
        (false, _) => Masquerading::Off,
        (true, Some(chain)) => Masquerading::External(chain),
        (true, None) => Masquerading::Bit(bit),
    })
}

/// The container's addresses, at most one of each family: those of the link that this call is about.
pub(super) fn addresses(call: &Call, target: &Target) -> Vec<(Family, IpNetwork)> {
    let mut found: Vec<(Family, IpNetwork)> = Vec::new();
    let Some(result) = &call.conf.prev_result else {
        return found;
    };
    for ip in &result.ips {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        let is_inside = interface.is_none_or(|interface| {
            interface.name == target.ifname.as_str() && !interface.sandbox.is_empty()
        });
        let family = Family::of(ip.address.ip());
        if is_inside && !found.iter().any(|(known, _)| *known == family) {
            found.push((family, ip.address));
        }
    }
    found
}

#[cfg(test)]
#[path = "config_tests.rs"]
pub(super) mod tests;
