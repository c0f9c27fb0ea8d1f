//! What a plugin is given: its configuration on stdin and its environment. Pure.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Attachment, Conflist, PluginConf, exec};

/// What a plugin gets on stdin: its own keys, the list's name and version, `runtimeConfig` for the capabilities that
/// it declares, and the result before it.
pub(super) fn configuration(
    list: &Conflist,
    plugin: &PluginConf,
    attachment: Option<&Attachment>,
    previous: Option<Value>,
) -> Map<String, Value> {
    let mut config = plugin.raw.clone();
    config.insert("name".to_owned(), list.name.as_str().into());
    config.insert("cniVersion".to_owned(), list.version.as_str().into());
    if let Some(attachment) = attachment {
        let given = attachment.capability_args.iter();
        let wanted: Map<String, Value> = given
            .filter(|(key, _)| plugin.has_capability(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(wanted));
        }
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous);
    }
    config
}

/// The `CNI_*` variables. `attachment` is missing for GC, STATUS and VERSION.
pub(super) fn environment(
    command: &'static str,
    bin_dirs: &[PathBuf],
    attachment: Option<&Attachment>,
) -> Vec<(&'static str, String)> {
    let mut env = vec![
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_PATH", exec::join_path(bin_dirs)),
    ];
    let Some(attachment) = attachment else {
        return env;
    };
    let (container, ifname) = (&attachment.container_id, &attachment.ifname);
    env.push(("CNI_CONTAINERID", container.as_str().to_owned()));
    env.push(("CNI_IFNAME", ifname.as_str().to_owned()));
    env.push(("CNI_NETNS", attachment.netns.to_string_lossy().into_owned()));
    let args = attachment.args.iter();
    let args: Vec<String> = args.map(|(key, value)| format!("{key}={value}")).collect();
    if !args.is_empty() {
        env.push(("CNI_ARGS", args.join(";")));
    }
    env
}
