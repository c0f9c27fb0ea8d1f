//! Configuration lists and the folder that they are in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::types::{CniError, CniVersion, NetworkName, PluginType, decode};

/// No configuration list that a person wrote is larger.
const MAX_FILE: u64 = 4 << 20;

/// A folder or file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// It cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not a configuration list.
    #[error("{path} is no configuration list", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CniError,
    },
    /// There is none.
    #[error("no network configuration in {path}", path = path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
}

/// One plugin of a list.
#[derive(Debug, Clone)]
pub struct PluginConf {
    /// The executable's name.
    pub plugin_type: PluginType,
    /// Its configuration as written.
    pub raw: Map<String, Value>,
}

/// A network: plugins that are run one after the other.
#[derive(Debug, Clone)]
pub struct Conflist {
    /// Its name.
    pub name: NetworkName,
    /// The version in which all plugins are called.
    pub version: CniVersion,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The plugins in order.
    pub plugins: Vec<PluginConf>,
}

#[derive(Deserialize)]
struct RawList {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
    #[serde(rename = "cniVersions", default)]
    versions: Vec<String>,
    name: Option<NetworkName>,
    #[serde(rename = "disableCheck", default)]
    disable_check: bool,
    #[serde(rename = "disableGC", default)]
    disable_gc: bool,
    #[serde(rename = "loadOnlyInlinedPlugins", default = "yes")]
    only_inlined: bool,
    #[serde(default)]
    plugins: Vec<Map<String, Value>>,
}

fn yes() -> bool {
    true
}

impl Conflist {
    /// Reads a list (an object with `plugins`) or a single plugin's configuration.
    ///
    /// # Errors
    /// Code 1 for a version that is not spoken, 2, 6 or 7 for anything else that is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| {
            CniError::from_error(crate::types::code::DECODE, "not a JSON object", &error)
        })?;
        let is_list = object.contains_key("plugins");
        let single = if is_list { None } else { Some(object.clone()) };
        let list: RawList = decode(Value::Object(object))?;
        if is_list && !list.only_inlined {
            return Err(CniError::unsupported("loadOnlyInlinedPlugins"));
        }
        let name = list
            .name
            .ok_or_else(|| CniError::config("\"name\" is missing"))?;
        let version = pick_version(list.version.as_deref(), &list.versions)?;
        let raw_plugins = match single {
            Some(plugin) => vec![plugin],
            None => list.plugins,
        };
        let plugins = raw_plugins
            .into_iter()
            .enumerate()
            .map(|(index, raw)| plugin_conf(index, raw))
            .collect::<Result<Vec<_>, _>>()?;
        if plugins.is_empty() {
            return Err(CniError::config("\"plugins\" is empty"));
        }
        Ok(Self {
            name,
            version,
            disable_check: list.disable_check,
            disable_gc: list.disable_gc,
            plugins,
        })
    }

    /// Reads one file.
    ///
    /// # Errors
    /// [`ConflistError`].
    pub fn load(path: &Path) -> Result<Self, ConflistError> {
        let read = |source| ConflistError::Read {
            path: path.to_owned(),
            source,
        };
        let size = fs::metadata(path).map_err(read)?.len();
        if size > MAX_FILE {
            return Err(read(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let text = fs::read(path).map_err(read)?;
        Self::parse(&text).map_err(|source| ConflistError::Invalid {
            path: path.to_owned(),
            source,
        })
    }

    /// The first usable `.conflist`, `.conf` or `.json` file of a folder in the order of their names. Those before it
    /// that are broken are logged and passed over, as other runtimes do.
    ///
    /// # Errors
    /// [`ConflistError`]: the first broken file's if none can be used.
    pub fn load_dir(dir: &Path) -> Result<Self, ConflistError> {
        let mut first_error = None;
        for path in config_files(dir)? {
            match Self::load(&path) {
                Ok(list) => return Ok(list),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error,
                        "network configuration passed over");
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or(ConflistError::None {
            path: dir.to_owned(),
        }))
    }
}

fn config_files(dir: &Path) -> Result<Vec<PathBuf>, ConflistError> {
    let read = |source| ConflistError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let wanted = path
            .extension()
            .is_some_and(|ext| ext == "conflist" || ext == "conf" || ext == "json");
        if wanted && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The newest version that the list offers and we speak.
fn pick_version(one: Option<&str>, more: &[String]) -> Result<CniVersion, CniError> {
    let offered: Vec<&str> = one
        .into_iter()
        .chain(more.iter().map(String::as_str))
        .collect();
    offered
        .iter()
        .filter_map(|text| text.parse().ok())
        .max()
        .ok_or_else(|| CniError {
            code: crate::types::code::VERSION,
            msg: "incompatible CNI version".to_owned(),
            details: format!("offered: {}", offered.join(", ")),
        })
}

fn plugin_conf(index: usize, raw: Map<String, Value>) -> Result<PluginConf, CniError> {
    let plugin_type = raw
        .get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| CniError::config(format!("plugins[{index}]: \"type\" is missing")))?
        .parse()
        .map_err(|error| CniError::config(format!("plugins[{index}]: {error}")))?;
    Ok(PluginConf { plugin_type, raw })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_lists_get_a_code() {
        for (text, code) in [
            ("", 6),
            ("[]", 6),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, 7),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#,
                7,
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, 6),
            (
                r#"{"cniVersion":"7","name":"n","plugins":[{"type":"x"}]}"#,
                1,
            ),
            (r#"{"name":"n","plugins":[{"type":"x"}]}"#, 1),
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
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.0.0"],"name":"n","plugins":[{"type":"x"}]}"#;
        assert_eq!(
            Conflist::parse(text.as_bytes()).unwrap().version,
            CniVersion::V1_0_0
        );
    }

    #[test]
    fn a_folder_is_read_in_order_and_broken_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(matches!(
            Conflist::load_dir(dir.path()),
            Err(ConflistError::None { .. })
        ));
        put("00-broken.conflist", "{");
        assert!(matches!(
            Conflist::load_dir(dir.path()),
            Err(ConflistError::Invalid { .. })
        ));
        put(
            "05-ignored.txt",
            r#"{"cniVersion":"1.0.0","name":"text","type":"x"}"#,
        );
        put(
            "20-late.conf",
            r#"{"cniVersion":"1.0.0","name":"late","type":"x"}"#,
        );
        put(
            "10-early.conf",
            r#"{"cniVersion":"1.0.0","name":"early","type":"x"}"#,
        );
        assert_eq!(
            Conflist::load_dir(dir.path()).unwrap().name.as_str(),
            "early"
        );
    }
}
