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
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<AttachmentKey>>,
}

impl NetConf {
    /// Reads a configuration object of `version`.
    ///
    /// # Errors
    /// Code 6 if a key has the wrong form, 7 if one is missing.
    pub fn from_value(version: CniVersion, raw: Map<String, Value>) -> Result<Self, CniError> {
        // serde would read a list as an object's fields in order.
        for key in ["args", "dns", "ipam", "prevResult", "runtimeConfig"] {
            if raw.get(key).is_some_and(|value| !value.is_object()) {
                let msg = format!("invalid network configuration at {key}: not an object");
                return Err(CniError::new(code::DECODE, msg));
            }
        }
        let common: Common = decode(Value::Object(raw.clone()))?;
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
            valid_attachments: common.valid_attachments,
            raw,
        })
    }

    /// Reads the plugin's own keys.
    ///
    /// # Errors
    /// Code 6.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        decode(Value::Object(self.raw.clone()))
    }
}
