//! The part of a network configuration that every plugin shares.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{CniError, CniResult, CniVersion, ContainerId, IfName, NetworkName, PluginType, code};

/// What names one attachment of a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// The link inside it.
    pub ifname: IfName,
}

/// Reads `value` as a `T`; the error names the path of what does not fit.
///
/// # Errors
/// Code 6.
pub fn decode<T: DeserializeOwned>(value: Value) -> Result<T, CniError> {
    T::deserialize(&value).or_else(|_without_path| decode_with_path(value))
}

fn decode_object<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, CniError> {
    T::deserialize(object).or_else(|_without_path| decode_with_path(Value::Object(object.clone())))
}

/// Slower, and only of use where something does not fit.
#[cold]
fn decode_with_path<T: DeserializeOwned>(value: Value) -> Result<T, CniError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        CniError {
            code: code::DECODE,
            msg: format!("invalid network configuration at {path}"),
            details: error.into_inner().to_string(),
        }
    })
}

/// A plugin's configuration: the keys that the specification gives it, and the whole object for its own.
#[derive(Debug, Clone)]
pub struct NetConf {
    /// The version to answer in.
    pub version: CniVersion,
    /// The network.
    pub name: NetworkName,
    /// The plugin that is meant.
    pub plugin_type: PluginType,
    /// What the plugin before this one, or the ADD before a CHECK or DEL, had as its result.
    pub prev_result: Option<CniResult>,
    /// GC: the attachments that still exist.
    pub valid_attachments: Option<Vec<AttachmentKey>>,
    /// The whole object.
    pub raw: Map<String, Value>,
}

#[derive(Deserialize)]
struct Common {
    name: Option<NetworkName>,
    #[serde(rename = "type")]
    plugin_type: Option<PluginType>,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
    /// The newest version of the specification once had this name.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<AttachmentKey>>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<AttachmentKey>>,
}

const ATTACHMENTS: [&str; 2] = ["cni.dev/attachments", "cni.dev/valid-attachments"];

/// A key that is null counts as not given, as plugins and runtimes written in Go have it.
fn drop_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
    object.values_mut().for_each(drop_nested_nulls);
}

pub(super) fn drop_nested_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => drop_nulls(object),
        Value::Array(items) => items.iter_mut().for_each(drop_nested_nulls),
        _ => {}
    }
}

impl NetConf {
    /// Reads a configuration object of `version`.
    ///
    /// # Errors
    /// Code 6 if a key has the wrong form, 7 if one is missing.
    pub fn from_value(version: CniVersion, mut raw: Map<String, Value>) -> Result<Self, CniError> {
        for key in ATTACHMENTS {
            // A list without elements, as a runtime written in Go prints it.
            if let Some(value @ Value::Null) = raw.get_mut(key) {
                *value = Value::Array(Vec::new());
            }
        }
        drop_nulls(&mut raw);
        // serde would read a list as an object's fields in order.
        for key in ["args", "dns", "ipam", "prevResult", "runtimeConfig"] {
            if raw.get(key).is_some_and(|value| !value.is_object()) {
                let msg = format!("invalid network configuration at {key}: not an object");
                return Err(CniError::new(code::DECODE, msg));
            }
        }
        let common: Common = decode_object(&raw)?;
        let missing = |key: &str| CniError::config(format!("{key:?} is missing"));
        Ok(Self {
            version,
            name: common.name.ok_or_else(|| missing("name"))?,
            plugin_type: common.plugin_type.ok_or_else(|| missing("type"))?,
            prev_result: common
                .prev_result
                .as_ref()
                .map(CniResult::from_json)
                .transpose()?,
            valid_attachments: common.valid_attachments.or(common.attachments),
            raw,
        })
    }

    /// Reads the plugin's own keys.
    ///
    /// # Errors
    /// Code 6.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        decode_object(&self.raw)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: &Value) -> Result<NetConf, CniError> {
        let mut conf = json!({"name": "net", "type": "bridge"});
        for (key, value) in change.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let Value::Object(raw) = conf else {
            unreachable!()
        };
        NetConf::from_value(CniVersion::LATEST, raw)
    }

    #[test]
    fn null_counts_as_not_given() {
        let conf = read(&json!({
            "prevResult": null, "ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "gateway": null}]]},
        }))
        .unwrap();
        assert_eq!(conf.prev_result, None);
        assert_eq!(
            conf.raw["ipam"],
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}]]})
        );
        assert_eq!(read(&json!({"name": null})).unwrap_err().code, code::CONFIG);
    }

    #[test]
    fn attachments_have_two_names_and_may_be_none() {
        let keys = json!([{"containerID": "c", "ifname": "eth0"}]);
        for (change, count) in [
            (json!({}), None),
            (json!({"cni.dev/valid-attachments": null}), Some(0)),
            (json!({"cni.dev/attachments": keys}), Some(1)),
            (
                json!({"cni.dev/attachments": [], "cni.dev/valid-attachments": keys}),
                Some(1),
            ),
        ] {
            let attachments = read(&change).unwrap().valid_attachments;
            assert_eq!(attachments.map(|keys| keys.len()), count, "{change}");
        }
        let hostile =
            json!({"cni.dev/valid-attachments": [{"containerID": "../c", "ifname": "x"}]});
        assert_eq!(read(&hostile).unwrap_err().code, code::DECODE);
    }

    #[test]
    fn objects_of_another_kind_are_refused() {
        for key in ["args", "dns", "ipam", "prevResult", "runtimeConfig"] {
            for value in [json!([]), json!(1), json!("x"), json!(true)] {
                let mut change = json!({});
                change[key] = value;
                assert_eq!(read(&change).unwrap_err().code, code::DECODE, "{change}");
            }
        }
    }
}
