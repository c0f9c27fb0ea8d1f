//! Configuration lists.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};

use crate::types::{CniError, CniVersion, InvalidName, NetworkName, PluginType, code, decode};

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// The executable's name.
    pub plugin_type: PluginType,
    /// Its configuration as written.
    pub raw: Map<String, Value>,
}

impl PluginConf {
    fn from_raw(raw: Map<String, Value>) -> Result<Self, CniError> {
        let plugin_type = raw
            .get("type")
            .and_then(Value::as_str)
            .ok_or_else(|| CniError::config("\"type\" is missing"))?
            .parse()
            .map_err(|error: InvalidName| CniError::config(error.to_string()))?;
        Ok(Self { plugin_type, raw })
    }

    /// Reads the configuration of one plugin, as a file has it that is not a list.
    ///
    /// # Errors
    /// Code 6 if it is not an object, 7 without a usable `type`.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        Self::from_raw(object(text)?)
    }

    /// Whether it declares the capability.
    #[must_use]
    pub fn has_capability(&self, capability: &str) -> bool {
        let declared = self.raw.get("capabilities");
        declared.and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
    }
}

/// A network: plugins that are run one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflist {
    /// Its name.
    pub name: NetworkName,
    /// The version in which all plugins are called.
    pub version: CniVersion,
    /// All versions that it offers and we speak, oldest first.
    pub versions: Vec<CniVersion>,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The plugins in order.
    pub plugins: Vec<PluginConf>,
    /// Plugins of the folder that has the network's name belong to it, too.
    pub(super) has_folder: bool,
    /// As written; `plugins` is left out.
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct RawList {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
    #[serde(rename = "cniVersions", default)]
    versions: Vec<String>,
    name: Option<NetworkName>,
    #[serde(rename = "disableCheck", default, deserialize_with = "flag")]
    disable_check: bool,
    #[serde(rename = "disableGC", default, deserialize_with = "flag")]
    disable_gc: bool,
    #[serde(rename = "loadOnlyInlinedPlugins", default, deserialize_with = "flag")]
    only_inlined: bool,
    plugins: Option<Vec<Map<String, Value>>>,
}

/// Lists in the field have these keys as strings, too.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(value),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(D::Error::custom(format!(
            "{other} is neither true nor false"
        ))),
    }
}

impl Conflist {
    /// Reads a list (an object with `plugins`) or a single plugin's configuration. Plugins that are not in the text are
    /// not looked for: see [`Conflist::load`](Self::load).
    ///
    /// # Errors
    /// Code 1 for a version that is not spoken, 6 or 7 for anything else that is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        Self::parse_open(text)?.closed()
    }

    /// The same, where the plugins may still be missing.
    pub(super) fn parse_open(text: &[u8]) -> Result<Self, CniError> {
        let mut rest = object(text)?;
        let is_single = !rest.contains_key("plugins") && rest.contains_key("type");
        let list: RawList = decode(Value::Object(rest.clone()))?;
        let name = list
            .name
            .ok_or_else(|| CniError::config("\"name\" is missing"))?;
        // A single plugin's configuration has one version, as libcni reads it.
        let offered = if is_single { &[][..] } else { &list.versions };
        let versions = offered_versions(list.version.as_deref(), offered)?;
        let version = versions.last().copied().unwrap_or(CniVersion::LATEST);
        let inlined = if is_single {
            let single = std::mem::take(&mut rest);
            for key in ["cniVersion", "name"] {
                rest.extend(single.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            Some(vec![single])
        } else {
            rest.remove("plugins");
            list.plugins
        };
        let has_folder = !is_single && !list.only_inlined;
        match &inlined {
            Some(plugins) if plugins.is_empty() => {
                return Err(CniError::config("\"plugins\" is empty"));
            }
            None if !has_folder => {
                let msg = "\"plugins\" is missing, and \"loadOnlyInlinedPlugins\" is set";
                return Err(CniError::config(msg));
            }
            _ => {}
        }
        let plugins = inlined.unwrap_or_default().into_iter().enumerate();
        let plugins = plugins.map(|(index, raw)| {
            PluginConf::from_raw(raw).map_err(|error| CniError {
                msg: format!("plugins[{index}]: {}", error.msg),
                ..error
            })
        });
        Ok(Self {
            name,
            version,
            versions,
            disable_check: list.disable_check,
            disable_gc: list.disable_gc,
            plugins: plugins.collect::<Result<_, _>>()?,
            has_folder,
            rest,
        })
    }

    /// Itself, if there is something to run.
    pub(super) fn closed(self) -> Result<Self, CniError> {
        if self.plugins.is_empty() {
            return Err(CniError::config(format!("{} has no plugins", self.name)));
        }
        Ok(self)
    }

    /// The same network at another of its versions.
    #[must_use]
    pub fn at_version(&self, version: CniVersion) -> Self {
        Self {
            version,
            ..self.clone()
        }
    }

    /// The same network without the plugins that `wanted` refuses. None of them is dropped if none would stay.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&PluginConf) -> bool) -> Self {
        let mut list = self.clone();
        list.plugins.retain(wanted);
        if list.plugins.is_empty() {
            return self.clone();
        }
        list
    }

    /// As a file with all plugins in one place.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = self.rest.clone();
        let plugins = self.plugins.iter();
        let plugins = plugins.map(|plugin| Value::Object(plugin.raw.clone()));
        object.insert("plugins".to_owned(), plugins.collect());
        // Those of the folder are among them.
        object.insert("loadOnlyInlinedPlugins".to_owned(), true.into());
        Value::Object(object)
    }
}

fn object(text: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(text)
        .map_err(|error| CniError::from_error(code::DECODE, "not a JSON object", &error))
}

/// What of a list's versions we speak, oldest first; never empty.
fn offered_versions(one: Option<&str>, more: &[String]) -> Result<Vec<CniVersion>, CniError> {
    let offered = one.into_iter().chain(more.iter().map(String::as_str));
    let mut spoken: Vec<CniVersion> = offered
        .clone()
        .filter_map(|text| text.parse().ok())
        .collect();
    spoken.sort_unstable();
    spoken.dedup();
    if !spoken.is_empty() {
        return Ok(spoken);
    }
    let offered: Vec<&str> = offered.collect();
    let offered = match offered.as_slice() {
        [] => "no \"cniVersion\"".to_owned(),
        some => some.join(", "),
    };
    let spoken = CniVersion::ALL.map(CniVersion::as_str).join(", ");
    Err(CniError {
        code: code::VERSION,
        msg: "incompatible CNI version".to_owned(),
        details: format!("the list has {offered}; spoken are {spoken}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn broken_lists_get_a_code() {
        for (text, code) in [
            ("", 6),
            ("[]", 6),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, 7),
            (
                r#"{"cniVersion":"1.0.0","name":"n","loadOnlyInlinedPlugins":true}"#,
                7,
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, 7),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#,
                7,
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, 6),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableGC":"no","type":"x"}"#,
                6,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableCheck":1,"type":"x"}"#,
                6,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","cniVersions":["1.0.0",2],"type":"x"}"#,
                6,
            ),
            (
                r#"{"cniVersion":"7","name":"n","plugins":[{"type":"x"}]}"#,
                1,
            ),
            (r#"{"name":"n","plugins":[{"type":"x"}]}"#, 1),
            // Only a list offers several.
            (r#"{"cniVersions":["1.0.0"],"name":"n","type":"x"}"#, 1),
        ] {
            assert_eq!(
                Conflist::parse(text.as_bytes()).unwrap_err().code,
                code,
                "{text}"
            );
        }
    }

    #[test]
    fn the_newest_common_version_is_taken() {
        for (versions, newest) in [
            (
                r#""cniVersion":"0.4.0","cniVersions":["1.0.0","9.0.0"]"#,
                CniVersion::V1_0_0,
            ),
            (
                r#""cniVersion":"1.1.0","cniVersions":["0.3.1"]"#,
                CniVersion::V1_1_0,
            ),
            (r#""cniVersions":["0.2.0","0.3.1"]"#, CniVersion::V0_3_1),
        ] {
            let text = format!(r#"{{{versions},"name":"n","plugins":[{{"type":"x"}}]}}"#);
            let list = Conflist::parse(text.as_bytes()).unwrap();
            assert_eq!(list.version, newest, "{versions}");
            assert_eq!(list.versions.last(), Some(&newest));
        }
    }

    #[test]
    fn flags_may_be_strings() {
        let text = br#"{"cniVersion":"1.1.0","name":"n","disableCheck":"True","disableGC":"false","type":"x"}"#;
        let list = Conflist::parse(text).unwrap();
        assert!(list.disable_check && !list.disable_gc);
    }

    #[test]
    fn the_whole_list_is_written_and_read_again() {
        for text in [
            r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0"],"name":"n","disableGC":true,"foreign":[1],
                "plugins":[{"type":"x","key":{"a":1}},{"type":"y","capabilities":{"mac":true}}]}"#,
            r#"{"cniVersion":"0.4.0","name":"n","type":"x","key":1}"#,
        ] {
            let list = Conflist::parse(text.as_bytes()).unwrap();
            let again = Conflist::parse(list.to_json().to_string().as_bytes()).unwrap();
            assert_eq!(again.to_json(), list.to_json());
            assert_eq!(
                (again.plugins, again.disable_gc),
                (list.plugins, list.disable_gc)
            );
        }
    }

    #[test]
    fn plugins_are_left_out_but_never_all() {
        let text = br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"x"},{"type":"y","capabilities":{"mac":true}}]}"#;
        let list = Conflist::parse(text).unwrap();
        let some = list.only(|plugin| !plugin.has_capability("mac"));
        assert_eq!(some.to_json()["plugins"], json!([{"type": "x"}]));
        assert_eq!(list.only(|_| false), list);
    }
}
