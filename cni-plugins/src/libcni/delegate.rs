//! A plugin calling another plugin, such as `bridge` its IPAM.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

use super::exec::{self, PluginCall};
use crate::{
    skel::{Call, Target},
    types::{CniError, CniResult, PluginType},
};

/// The runtime has its own patience with us; this only keeps us from waiting for ever.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Finds the executable of a plugin in `CNI_PATH`.
///
/// # Errors
/// Code 105.
pub fn find(call: &Call, plugin_type: &PluginType) -> Result<PathBuf, CniError> {
    exec::find(plugin_type, &call.path).map_err(exec::ExecError::into_cni)
}

/// Passes the call on to `plugin` with the same configuration and environment. `target` is missing for GC and STATUS.
///
/// # Errors
/// The other plugin's, or code 105.
pub fn run(
    call: &Call,
    target: Option<&Target>,
    plugin: PathBuf,
) -> Result<Option<CniResult>, CniError> {
    let mut env = vec![
        ("CNI_COMMAND", call.command.as_str().to_owned()),
        ("CNI_PATH", exec::join_path(&call.path)),
    ];
    if !call.args.is_empty() {
        let args: Vec<String> = call
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        env.push(("CNI_ARGS", args.join(";")));
    }
    if let Some(target) = target {
        env.push(("CNI_CONTAINERID", target.container_id.as_str().to_owned()));
        env.push(("CNI_IFNAME", target.ifname.as_str().to_owned()));
        if let Some(netns) = &target.netns {
            env.push(("CNI_NETNS", netns.to_string_lossy().into_owned()));
        }
    }
    let stdin = Value::Object(call.conf.raw.clone())
        .to_string()
        .into_bytes();
    let answer = exec::run_plugin(&PluginCall {
        plugin,
        env,
        stdin,
        timeout: TIMEOUT,
    })
    .map_err(exec::ExecError::into_cni)?;
    answer.as_ref().map(CniResult::from_json).transpose()
}
