//! The `CNI_*` environment.

use std::{collections::BTreeMap, path::PathBuf};

use super::Target;
use crate::types::CniError;

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Compare it with what ADD made.
    Check,
    /// Remove what no valid attachment owns.
    Gc,
    /// Say whether ADD can be served.
    Status,
    /// List the versions.
    Version,
}

impl Command {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Del,
        Self::Check,
        Self::Gc,
        Self::Status,
        Self::Version,
    ];

    /// As it is written in `CNI_COMMAND`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// The environment of a call; an empty variable counts as none.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process' own.
    #[must_use]
    pub fn from_process() -> Self {
        // Other variables may hold anything; only ours must be text, and one that is not text counts as missing.
        Self::from_vars(
            std::env::vars_os().filter_map(|(key, value)| {
                Some((key.into_string().ok()?, value.into_string().ok()?))
            }),
        )
    }

    /// A given one.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(
            vars.into_iter()
                .filter(|(key, value)| key.starts_with("CNI_") && !value.is_empty())
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(super) fn command(&self) -> Result<Command, CniError> {
        let text = self
            .get("CNI_COMMAND")
            .ok_or_else(|| CniError::environment("CNI_COMMAND is missing"))?;
        Command::ALL
            .into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| CniError::environment(format!("unknown CNI_COMMAND {text:?}")))
    }

    pub(super) fn check_required(&self, command: Command) -> Result<(), CniError> {
        let missing: Vec<&str> = command
            .required()
            .iter()
            .copied()
            .filter(|key| self.get(key).is_none())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(CniError::environment(format!(
            "{} needs {} in the environment",
            command.as_str(),
            missing.join(", ")
        )))
    }

    pub(super) fn target(&self, command: Command) -> Result<Target, CniError> {
        self.check_required(command)?;
        let variable = |key: &str| self.get(key).unwrap_or_default();
        let wrong = |error: crate::types::InvalidName| CniError::environment(error.to_string());
        let netns = self.get("CNI_NETNS").map(PathBuf::from);
        if netns.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(CniError::environment("CNI_NETNS is not an absolute path"));
        }
        Ok(Target {
            container_id: variable("CNI_CONTAINERID").parse().map_err(wrong)?,
            ifname: variable("CNI_IFNAME").parse().map_err(wrong)?,
            netns,
        })
    }

    pub(super) fn args(&self) -> Result<Vec<(String, String)>, CniError> {
        let Some(text) = self.get("CNI_ARGS") else {
            return Ok(Vec::new());
        };
        text.split(';')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                pair.split_once('=')
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .ok_or_else(|| {
                        CniError::environment(format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))
                    })
            })
            .collect()
    }

    pub(super) fn path(&self) -> Vec<PathBuf> {
        self.get("CNI_PATH")
            .map(|path| {
                std::env::split_paths(path)
                    .filter(|dir| dir.is_absolute())
                    .collect()
            })
            .unwrap_or_default()
    }

    pub(super) fn netns_override(&self) -> bool {
        matches!(
            self.get("CNI_NETNS_OVERRIDE"),
            Some("1" | "true" | "TRUE" | "True" | "t" | "T")
        )
    }
}
