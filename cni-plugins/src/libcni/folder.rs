//! The folder that configuration lists are in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Conflist, PluginConf};
use crate::types::CniError;

/// No configuration list that a person wrote is larger.
const MAX_FILE: u64 = 4 << 20;
/// Files with several plugins, or plugins in a folder beside them.
const LISTS: [&str; 1] = ["conflist"];
/// Files with one plugin.
const SINGLES: [&str; 2] = ["conf", "json"];

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
    /// There is none of that name.
    #[error("no network {name} in {path}, which has {known}", path = path.display(), known = known.join(", "))]
    Unknown {
        /// The folder.
        path: PathBuf,
        /// The network.
        name: String,
        /// The networks that it has.
        known: Vec<String>,
    },
    /// There is more than one, and none was named.
    #[error("{path} has more than one network: {known}", path = path.display(), known = known.join(", "))]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// The networks that it has.
        known: Vec<String>,
    },
}

impl Conflist {
    /// Reads one file, and the plugins (`*.conf`) in the folder beside it that has the network's name, unless the list
    /// says `loadOnlyInlinedPlugins`.
    ///
    /// # Errors
    /// [`ConflistError`].
    pub fn load(path: &Path) -> Result<Self, ConflistError> {
        let mut list = Self::parse_open(&read(path)?).map_err(invalid(path))?;
        if list.has_folder
            && let Some(parent) = path.parent()
        {
            let folder = parent.join(list.name.as_str());
            // Most lists have none.
            if folder.is_dir() {
                for path in files(&folder, &SINGLES[..1])? {
                    let plugin = PluginConf::parse(&read(&path)?).map_err(invalid(&path))?;
                    list.plugins.push(plugin);
                }
            }
        }
        list.closed().map_err(invalid(path))
    }

    /// The first usable `.conflist`, `.conf` or `.json` file of a folder in the order of their names. Those before it
    /// that are broken are logged and passed over, as other runtimes do.
    ///
    /// # Errors
    /// [`ConflistError`]: the first broken file's if none can be used.
    pub fn load_dir(dir: &Path) -> Result<Self, ConflistError> {
        let every = [LISTS.as_slice(), SINGLES.as_slice()].concat();
        let mut lists = Lists::of(files(dir, &every)?);
        match lists.next() {
            Some(list) => Ok(list),
            None => Err(lists.nothing(dir)),
        }
    }

    /// The network `name` of a folder, or the only one that it has: the first of a name, `.conflist` files before
    /// others. Broken files are passed over.
    ///
    /// # Errors
    /// [`ConflistError`]: the first broken file's if the network is not found.
    pub fn load_network(dir: &Path, name: Option<&str>) -> Result<Self, ConflistError> {
        let mut paths = files(dir, &LISTS)?;
        paths.extend(files(dir, &SINGLES)?);
        let mut lists = Lists::of(paths);
        let mut found: Vec<Self> = Vec::new();
        for list in lists.by_ref() {
            if name == Some(list.name.as_str()) {
                return Ok(list);
            }
            if found.iter().all(|other| other.name != list.name) {
                found.push(list);
            }
        }
        let known = found.iter().map(|list| list.name.to_string()).collect();
        let path = dir.to_owned();
        match (name, found.len()) {
            (None, 1) => Ok(found.swap_remove(0)),
            (None, 2..) => Err(ConflistError::Ambiguous { path, known }),
            (Some(name), 1..) if lists.first_error.is_none() => Err(ConflistError::Unknown {
                path,
                name: name.to_owned(),
                known,
            }),
            _ => Err(lists.nothing(dir)),
        }
    }
}

/// The usable ones among files, in order.
struct Lists {
    paths: std::vec::IntoIter<PathBuf>,
    first_error: Option<ConflistError>,
}

impl Lists {
    fn of(paths: Vec<PathBuf>) -> Self {
        Self {
            paths: paths.into_iter(),
            first_error: None,
        }
    }

    /// Why there was nothing to be had.
    fn nothing(self, dir: &Path) -> ConflistError {
        let path = dir.to_owned();
        self.first_error.unwrap_or(ConflistError::None { path })
    }
}

impl Iterator for Lists {
    type Item = Conflist;

    fn next(&mut self) -> Option<Conflist> {
        for path in self.paths.by_ref() {
            match Conflist::load(&path) {
                Ok(list) => return Some(list),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error,
                        "network configuration passed over");
                    self.first_error.get_or_insert(error);
                }
            }
        }
        None
    }
}

fn invalid(path: &Path) -> impl FnOnce(CniError) -> ConflistError {
    |source| ConflistError::Invalid {
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConflistError> {
    let failed = |source| ConflistError::Read {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    fs::read(path).map_err(failed)
}

/// The files of a folder that end so, in the order of their names.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ConflistError> {
    let failed = |source| ConflistError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| extensions.contains(&extension)) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn single(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"x"}}"#)
    }

    fn list(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"listed"}}]}}"#)
    }

    #[test]
    fn a_folder_is_read_in_order_and_broken_files_are_passed_over() {
        let first = |dir: &TempDir| Conflist::load_dir(dir.path());
        let dir = folder(&[]);
        assert!(matches!(first(&dir), Err(ConflistError::None { .. })));
        let gone = Conflist::load_dir(&dir.path().join("gone"));
        assert!(matches!(gone, Err(ConflistError::Read { .. })));
        let dir = folder(&[("00-broken.conflist", "{")]);
        assert!(matches!(first(&dir), Err(ConflistError::Invalid { .. })));
        let dir = folder(&[
            ("00-broken.conflist", "{"),
            ("05-ignored.txt", &single("text")),
            ("20-late.conf", &single("late")),
            ("10-early.json", &single("early")),
            ("15-list.conflist", &list("list")),
        ]);
        assert_eq!(first(&dir).unwrap().name.as_str(), "early");
    }

    #[test]
    fn a_network_is_found_by_name_lists_and_earlier_files_first() {
        let dir = folder(&[
            ("10-net.conf", &single("net")),
            ("20-net.conflist", &list("net")),
            ("30-other.json", &single("other")),
            ("40-broken.conflist", "{"),
        ]);
        let load = |name| Conflist::load_network(dir.path(), name);
        let net = load(Some("net")).unwrap();
        assert_eq!(net.plugins[0].plugin_type.as_str(), "listed");
        assert_eq!(load(Some("other")).unwrap().name.as_str(), "other");
        // Perhaps it is in the broken one.
        assert!(matches!(
            load(Some("nothing")),
            Err(ConflistError::Invalid { .. })
        ));
        fs::remove_file(dir.path().join("40-broken.conflist")).unwrap();
        let error = load(Some("nothing")).unwrap_err();
        assert!(
            error.to_string().contains("which has net, other"),
            "{error}"
        );
        assert!(matches!(load(None), Err(ConflistError::Ambiguous { .. })));
        fs::remove_file(dir.path().join("30-other.json")).unwrap();
        assert_eq!(load(None).unwrap(), net);
    }

    #[test]
    fn plugins_of_the_networks_folder_come_after_those_of_the_list() {
        let more = r#"{"type":"more"}"#;
        let dir = folder(&[
            ("10-net.conflist", &list("net")),
            ("net/20-last.conf", r#"{"type":"last"}"#),
            ("net/10-more.conf", more),
            ("net/15-ignored.json", more),
        ]);
        let path = dir.path().join("10-net.conflist");
        let types = |path: &Path| -> Vec<String> {
            let plugins = Conflist::load(path).unwrap().plugins;
            let types = plugins.iter().map(|plugin| plugin.plugin_type.to_string());
            types.collect()
        };
        assert_eq!(types(&path), ["listed", "more", "last"]);
        fs::write(&path, r#"{"cniVersion":"1.0.0","name":"net"}"#).unwrap();
        assert_eq!(types(&path), ["more", "last"]);
        let inlined = r#"{"cniVersion":"1.0.0","name":"net","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#;
        fs::write(&path, inlined).unwrap();
        assert_eq!(types(&path), ["x"]);
        fs::write(&path, list("net")).unwrap();
        fs::write(dir.path().join("net/20-last.conf"), "{}").unwrap();
        assert!(matches!(
            Conflist::load(&path),
            Err(ConflistError::Invalid { .. })
        ));
        let lonely = dir.path().join("20-lonely.conflist");
        fs::write(&lonely, r#"{"cniVersion":"1.0.0","name":"lonely"}"#).unwrap();
        assert!(matches!(
            Conflist::load(&lonely),
            Err(ConflistError::Invalid { .. })
        ));
    }
}
