//! The skeleton of a plugin: reads the environment and stdin, checks both, calls the plugin, prints the answer.
//!
//! A plugin implements [`Plugin`]; its `main` calls [`run`] and returns the code. stdout carries one JSON object (a
//! result, a version list or an error) and nothing else.

mod env;

use std::{
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::types::{CniError, CniResult, CniVersion, ContainerId, IfName, NetConf, code};

pub use env::{Command, Environment};

/// More than this on stdin is refused: a configuration with its `prevResult` has a few kilobytes.
pub const MAX_STDIN: usize = 4 << 20;

/// One call of a plugin.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is to be done.
    pub command: Command,
    /// The configuration.
    pub conf: NetConf,
    /// `CNI_ARGS`, parsed.
    pub args: Vec<(String, String)>,
    /// `CNI_PATH`: where delegated plugins are.
    pub path: Vec<PathBuf>,
}

/// The container and link that ADD, DEL and CHECK are about.
#[derive(Debug, Clone)]
pub struct Target {
    /// The container.
    pub container_id: ContainerId,
    /// The link inside it.
    pub ifname: IfName,
    /// Its network namespace; may be missing for DEL.
    pub netns: Option<PathBuf>,
}

impl Target {
    /// The namespace, where there must be one.
    ///
    /// # Errors
    /// Code 4.
    pub fn netns(&self) -> Result<&Path, CniError> {
        self.netns
            .as_deref()
            .ok_or_else(|| CniError::environment("CNI_NETNS is missing"))
    }
}

/// What a plugin can do. Each method changes nothing if it fails, except DEL and GC, which do what they can.
pub trait Plugin {
    /// Attaches the container.
    ///
    /// # Errors
    /// The specification's; nothing is left behind then.
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError>;

    /// Undoes ADD, whatever of it is still there.
    ///
    /// # Errors
    /// Only if something is there and cannot be removed.
    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError>;

    /// Compares what is there with `prevResult`.
    ///
    /// # Errors
    /// What differs.
    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError>;

    /// Removes whatever belongs to this network and to none of the valid attachments.
    ///
    /// # Errors
    /// What could not be removed.
    fn gc(&self, call: &Call) -> Result<(), CniError>;

    /// Says whether ADD can be served.
    ///
    /// # Errors
    /// Code 50 or 51 if not.
    fn status(&self, call: &Call) -> Result<(), CniError>;
}

/// Runs one call. Returns the process' exit code.
pub fn run(
    plugin: &dyn Plugin,
    environment: &Environment,
    stdin: impl Read,
    mut stdout: impl Write,
) -> u8 {
    let mut version = CniVersion::LATEST;
    let (answer, exit) = match call(plugin, environment, stdin, &mut version) {
        Ok(Some(answer)) => (answer, 0),
        Ok(None) => return 0,
        Err(error) => (error.to_json(version), 1),
    };
    // In one piece: stdout is written line by line otherwise, and each line wakes the reader.
    match serde_json::to_vec_pretty(&answer)
        .map_err(std::io::Error::from)
        .and_then(|mut text| {
            text.push(b'\n');
            stdout.write_all(&text)
        })
        .and_then(|()| stdout.flush())
    {
        Ok(()) => exit,
        // Nobody is there to read what went wrong.
        Err(_closed) => 1,
    }
}

fn call(
    plugin: &dyn Plugin,
    environment: &Environment,
    stdin: impl Read,
    version: &mut CniVersion,
) -> Result<Option<Value>, CniError> {
    let command = environment.command()?;
    environment.check_required(command)?;
    let config = read_config(stdin);
    if command == Command::Version {
        // Whatever is asked, and however badly: the answer is the same.
        return Ok(Some(version_info(&config.unwrap_or_default())));
    }
    let config = config?;
    *version = config_version(&config)?;
    check_command_exists(command, *version)?;
    let call = Call {
        command,
        conf: NetConf::from_value(*version, config)?,
        args: environment.args()?,
        path: environment.path(),
    };
    match command {
        Command::Add => {
            let target = environment.target(command)?;
            if is_own_netns(environment, &target) {
                return Err(CniError::environment(
                    "CNI_NETNS is the plugin's own network namespace (CNI_NETNS_OVERRIDE allows it)",
                ));
            }
            Ok(Some(plugin.add(&call, &target)?.to_json(*version)))
        }
        Command::Check => {
            if call.conf.prev_result.is_none() {
                return Err(CniError::config("CHECK needs \"prevResult\""));
            }
            plugin
                .check(&call, &environment.target(command)?)
                .map(|()| None)
        }
        Command::Del => {
            let mut target = environment.target(command)?;
            if is_own_netns(environment, &target) {
                // The container's is gone, and the process whose namespace it was has a successor of the same number.
                target.netns = None;
            }
            plugin.del(&call, &target).map(|()| None)
        }
        Command::Gc => {
            if call.conf.valid_attachments.is_none() {
                return Err(CniError::config("GC needs \"cni.dev/valid-attachments\""));
            }
            plugin.gc(&call).map(|()| None)
        }
        Command::Status => plugin.status(&call).map(|()| None),
        Command::Version => Ok(Some(version_info(&call.conf.raw))),
    }
}

fn read_config(stdin: impl Read) -> Result<Map<String, Value>, CniError> {
    let mut text = Vec::with_capacity(4096);
    let limit = MAX_STDIN as u64 + 1;
    stdin
        .take(limit)
        .read_to_end(&mut text)
        .map_err(|error| CniError::from_error(code::IO, "cannot read stdin", &error))?;
    if text.len() > MAX_STDIN {
        return Err(CniError::new(
            code::DECODE,
            format!("the configuration has more than {MAX_STDIN} bytes"),
        ));
    }
    // serde_json stops at 128 levels: deep nesting is an error, not an overflow of the stack.
    serde_json::from_slice(&text)
        .map_err(|error| CniError::from_error(code::DECODE, "stdin is not a JSON object", &error))
}

fn config_version(config: &Map<String, Value>) -> Result<CniVersion, CniError> {
    let text = match config.get("cniVersion") {
        // The first version had no such key.
        None | Some(Value::Null) => return Ok(CniVersion::V0_1_0),
        Some(Value::String(text)) if text.is_empty() => return Ok(CniVersion::V0_1_0),
        Some(Value::String(text)) => text,
        Some(_) => {
            return Err(CniError::new(
                code::DECODE,
                "\"cniVersion\" must be a string",
            ));
        }
    };
    text.parse().map_err(|_unknown| CniError {
        code: code::VERSION,
        msg: "incompatible CNI version".to_owned(),
        details: format!(
            "the configuration is {text:?}, supported are {}",
            supported().join(", ")
        ),
    })
}

fn check_command_exists(command: Command, version: CniVersion) -> Result<(), CniError> {
    let exists = match command {
        Command::Check => version.has_check(),
        Command::Gc | Command::Status => version.has_gc(),
        Command::Add | Command::Del | Command::Version => true,
    };
    if exists {
        return Ok(());
    }
    Err(CniError::new(
        code::VERSION,
        format!("version {version} has no {}", command.as_str()),
    ))
}

fn supported() -> Vec<&'static str> {
    CniVersion::ALL
        .iter()
        .map(|version| version.as_str())
        .collect()
}

fn version_info(config: &Map<String, Value>) -> Value {
    let asked = config
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let answer = asked.parse().unwrap_or(CniVersion::LATEST);
    json!({ "cniVersion": answer.as_str(), "supportedVersions": supported() })
}

/// Whether the namespace is this process' own: then its links are the host's, and are left alone.
fn is_own_netns(environment: &Environment, target: &Target) -> bool {
    if environment.netns_override() {
        return false;
    }
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let theirs = target.netns.as_deref().map(identity);
    let ours = identity(Path::new("/proc/thread-self/ns/net"));
    matches!((theirs, ours), (Some(Ok(theirs)), Ok(ours)) if theirs == ours)
}

#[cfg(test)]
mod tests;
