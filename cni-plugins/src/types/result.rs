//! A plugin's success result and its forms in each version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{CniError, CniVersion, code, config::drop_nested_nulls};

/// What ADD made, independent of the version in which it is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniResult {
    /// Links, those of the host first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes inside the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default)]
    pub dns: Dns,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace that it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket of a vhost-user link (1.1.0).
    #[serde(
        default,
        rename = "socketPath",
        skip_serializing_if = "String::is_empty"
    )]
    pub socket_path: String,
    /// The PCI device behind it (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Which of the result's interfaces carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the length of its subnet.
    pub address: IpNetwork,
    /// The way out of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop; the address' gateway if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// MSS to announce (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with a destination and nothing else.
    #[must_use]
    pub fn to(dst: IpNetwork) -> Self {
        Self {
            dst,
            gw: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    /// What versions before 1.1.0 tell of it.
    fn without_properties(&self) -> Self {
        Self {
            gw: self.gw,
            ..Self::to(self.dst)
        }
    }
}

/// What goes into the container's `resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl CniResult {
    /// The object that `version` prescribes.
    #[must_use]
    pub fn to_json(&self, version: CniVersion) -> Value {
        if version < CniVersion::V0_3_0 {
            return self.to_two_addresses(version);
        }
        let mut result = self.clone();
        if version < CniVersion::V1_1_0 {
            for interface in &mut result.interfaces {
                interface.mtu = None;
                interface.socket_path.clear();
                interface.pci_id.clear();
            }
            for route in &mut result.routes {
                *route = route.without_properties();
            }
        }
        let mut object = object(version, &result);
        if version >= CniVersion::V1_0_0 && self.dns == Dns::default() {
            object.remove("dns");
        }
        if version < CniVersion::V1_0_0
            && let Some(Value::Array(ips)) = object.get_mut("ips")
        {
            for (json, ip) in ips.iter_mut().zip(&result.ips) {
                json["version"] = if ip.address.is_ipv4() { "4" } else { "6" }.into();
            }
        }
        Value::Object(object)
    }

    /// The form before 0.3.0: the first address of each family with its routes, and no links.
    fn to_two_addresses(&self, version: CniVersion) -> Value {
        let of_family = |ipv4: bool| {
            let ip = self.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4)?;
            let routes = self.routes.iter();
            Some(FamilyConfig {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes
                    .filter(|route| route.dst.is_ipv4() == ipv4)
                    .map(Route::without_properties)
                    .collect(),
            })
        };
        let result = TwoAddresses {
            ip4: of_family(true),
            ip6: of_family(false),
            dns: self.dns.clone(),
        };
        Value::Object(object(version, &result))
    }

    /// Reads a result of any version that is spoken.
    ///
    /// # Errors
    /// Code 1 for an unknown version, 6 for anything else that cannot be a result.
    pub fn from_json(value: &Value) -> Result<Self, CniError> {
        // serde would read a list as the fields in order.
        let Some(object) = value.as_object() else {
            return Err(invalid("it is not an object"));
        };
        let version = match object.get("cniVersion") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(text.parse::<CniVersion>().map_err(|error| {
                CniError::new(code::VERSION, format!("result of another version: {error}"))
            })?),
            Some(_) => return Err(invalid("\"cniVersion\" is not a string")),
        };
        let old = match version {
            Some(version) => version < CniVersion::V0_3_0,
            // Null counts as not given, as within a configuration.
            None => ["ip4", "ip6"]
                .iter()
                .any(|key| object.get(*key).is_some_and(|value| !value.is_null())),
        };
        if old {
            return read::<TwoAddresses>(value)?.into_result();
        }
        let result: Self = read(value)?;
        for ip in &result.ips {
            if ip
                .interface
                .is_some_and(|index| index >= result.interfaces.len())
            {
                return Err(invalid(&format!(
                    "{} is on an interface that is not listed",
                    ip.address
                )));
            }
        }
        Ok(result)
    }

    /// The addresses inside the container, without those of host links.
    pub fn container_ips(&self) -> impl Iterator<Item = &IpConfig> {
        self.ips.iter().filter(|ip| {
            ip.interface
                .and_then(|index| self.interfaces.get(index))
                .is_none_or(|interface| !interface.sandbox.is_empty())
        })
    }
}

/// A result before 0.3.0.
#[derive(Serialize, Deserialize)]
struct TwoAddresses {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<FamilyConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<FamilyConfig>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct FamilyConfig {
    ip: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl TwoAddresses {
    fn into_result(self) -> Result<CniResult, CniError> {
        let mut result = CniResult {
            dns: self.dns,
            ..CniResult::default()
        };
        for (config, ipv4) in [(self.ip4, true), (self.ip6, false)] {
            let Some(config) = config else { continue };
            let mut destinations = config.routes.iter().map(|route| route.dst);
            if config.ip.is_ipv4() != ipv4 || destinations.any(|dst| dst.is_ipv4() != ipv4) {
                return Err(invalid("an address or route is of the other family"));
            }
            result.ips.push(IpConfig {
                interface: None,
                address: config.ip,
                gateway: config.gateway,
            });
            result.routes.extend(config.routes);
        }
        Ok(result)
    }
}

fn object(version: CniVersion, result: &impl Serialize) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("cniVersion".to_owned(), version.as_str().into());
    // Strings, numbers and lists of them only: this cannot fail.
    if let Ok(Value::Object(fields)) = serde_json::to_value(result) {
        object.extend(fields);
    }
    object
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, CniError> {
    let mut value = value.clone();
    drop_nested_nulls(&mut value);
    serde_path_to_error::deserialize(value).map_err(|error| invalid(&error.to_string()))
}

fn invalid(what: &str) -> CniError {
    CniError {
        code: code::DECODE,
        msg: "invalid result".to_owned(),
        details: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                mac: "0a:58:0a:01:00:05".to_owned(),
                mtu: Some(1450),
                sandbox: "/run/netns/x".to_owned(),
                ..Interface::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.1.0.5/16".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig {
                    interface: Some(0),
                    address: "fd00::5/64".parse().unwrap(),
                    gateway: None,
                },
            ],
            routes: vec![Route {
                mtu: Some(1400),
                ..Route::to("0.0.0.0/0".parse().unwrap())
            }],
            dns: Dns {
                nameservers: vec!["10.1.0.1".to_owned()],
                ..Dns::default()
            },
        }
    }

    #[test]
    fn each_version_has_its_form() {
        for version in CniVersion::ALL {
            let json = sample().to_json(version);
            assert_eq!(json["cniVersion"], version.as_str());
            if version < CniVersion::V0_3_0 {
                assert_eq!(
                    json["ip4"],
                    json!({"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]})
                );
                assert_eq!(json["ip6"], json!({"ip": "fd00::5/64"}));
                assert_eq!(json.get("ips").or(json.get("interfaces")), None);
                continue;
            }
            assert_eq!(json["ips"][0]["address"], "10.1.0.5/16");
            let family = json["ips"][1].get("version");
            assert_eq!(family.is_some(), version < CniVersion::V1_0_0, "{version}");
            assert!(family.is_none_or(|f| f == "6"));
            assert_eq!(
                json["interfaces"][0].get("mtu").is_some(),
                version == CniVersion::V1_1_0
            );
            assert_eq!(
                json["routes"][0].get("mtu").is_some(),
                version == CniVersion::V1_1_0
            );
        }
    }

    #[test]
    fn a_result_survives_the_newest_form() {
        assert_eq!(
            CniResult::from_json(&sample().to_json(CniVersion::LATEST)).unwrap(),
            sample()
        );
    }

    #[test]
    fn every_form_can_be_read_again() {
        for version in CniVersion::ALL {
            let json = sample().to_json(version);
            let read = CniResult::from_json(&json).unwrap();
            assert_eq!(read.to_json(version), json, "{version}");
            assert_eq!(read.ips.len(), 2, "{version}");
        }
    }

    #[test]
    fn null_counts_as_not_given() {
        let json = json!({
            "ips": [{"address": "10.0.0.2/24", "gateway": null}], "interfaces": null, "dns": {"search": null},
        });
        assert_eq!(CniResult::from_json(&json).unwrap().ips.len(), 1);
    }

    #[test]
    fn the_oldest_form_needs_no_version() {
        let json = json!({"ip4": {"ip": "10.0.0.2/24", "routes": [{"dst": "0.0.0.0/0"}]}});
        let result = CniResult::from_json(&json).unwrap();
        assert_eq!(result.ips[0].address, "10.0.0.2/24".parse().unwrap());
        assert_eq!(result.routes.len(), 1);
        // Null is not given: this is one of today's.
        let json = json!({"ip4": null, "ips": [{"address": "10.0.0.3/24"}]});
        assert_eq!(CniResult::from_json(&json).unwrap().ips.len(), 1);
    }

    #[test]
    fn an_old_form_is_read() {
        let json =
            json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.2/24"}]});
        let result = CniResult::from_json(&json).unwrap();
        assert_eq!(result.ips[0].address, "10.0.0.2/24".parse().unwrap());
    }

    #[test]
    fn nonsense_is_refused_with_the_specifications_code() {
        for (json, expected) in [
            (json!({"cniVersion": "9.9.9"}), code::VERSION),
            (
                json!({"cniVersion": "1.0.0", "ips": [{"address": "x"}]}),
                code::DECODE,
            ),
            (
                json!({"ips": [{"address": "10.0.0.2/24", "interface": 3}]}),
                code::DECODE,
            ),
            (
                json!({"cniVersion": "0.2.0", "ip4": {"ip": "fd00::1/64"}}),
                code::DECODE,
            ),
            (json!({"cniVersion": 1}), code::DECODE),
            (json!([]), code::DECODE),
            (json!("text"), code::DECODE),
        ] {
            assert_eq!(
                CniResult::from_json(&json).unwrap_err().code,
                expected,
                "{json}"
            );
        }
    }
}
