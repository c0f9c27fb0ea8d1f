//! Attaches and detaches containers by running a list's plugins.

use std::{collections::HashSet, io, path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};
use skiff_netns::{NetnsError, NodeNetns};

use super::{
    Conflist, PluginConf,
    cache::{CachedResult, ResultCache},
    exec::{self, ExecError, PluginCall},
};
use crate::types::{AttachmentKey, CniError, CniResult, ContainerId, IfName};

/// The patience of the kubelet's runtimes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A container's attachment to a network.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The container.
    pub container_id: ContainerId,
    /// The container's network namespace; may be gone for DEL.
    pub netns: PathBuf,
    /// The link inside it.
    pub ifname: IfName,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What plugins with the capability of that name get as `runtimeConfig`.
    pub capability_args: Map<String, Value>,
}

impl Attachment {
    /// What names it.
    #[must_use]
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// A list that could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] ExecError),
    /// A plugin's answer is not a result.
    #[error("invalid result of {plugin_type}")]
    Result {
        /// The plugin.
        plugin_type: String,
        /// What is wrong with it.
        #[source]
        source: CniError,
    },
    /// The node's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The result cache cannot be written or read.
    #[error("result cache of {network}")]
    Cache {
        /// The network.
        network: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CHECK of what was never attached.
    #[error("no result of an ADD is cached for {container}, {ifname}")]
    NotCached {
        /// The container.
        container: String,
        /// The link.
        ifname: String,
    },
    /// More than one plugin failed to clean up.
    #[error("{first}; {more} more")]
    Several {
        /// The first failure.
        #[source]
        first: Box<Self>,
        /// How many came after it.
        more: usize,
    },
}

impl RunnerError {
    /// The plugin's own error, if it was a plugin that failed.
    #[must_use]
    pub fn cni(&self) -> Option<&CniError> {
        match self {
            Self::Plugin(ExecError::Failed { source, .. }) | Self::Result { source, .. } => {
                Some(source)
            }
            Self::Several { first, .. } => first.cni(),
            _ => None,
        }
    }

    fn join(errors: Vec<Self>) -> Result<(), Self> {
        let more = errors.len().saturating_sub(1);
        match errors.into_iter().next() {
            None => Ok(()),
            Some(only) if more == 0 => Err(only),
            Some(first) => Err(Self::Several {
                first: Box::new(first),
                more,
            }),
        }
    }
}

/// Runs configuration lists for one node. Plugins start inside the node's network namespace.
#[derive(Debug, Clone)]
pub struct CniRunner {
    bin_dirs: Vec<PathBuf>,
    cache: ResultCache,
    netns: NodeNetns,
    timeout: Duration,
}

impl CniRunner {
    /// Finds plugins in `bin_dirs`, keeps results in `cache_dir`. Nothing is read or made yet.
    #[must_use]
    pub fn new(bin_dirs: Vec<PathBuf>, cache_dir: PathBuf, node_netns: NodeNetns) -> Self {
        let cache = ResultCache::new(&cache_dir);
        Self {
            bin_dirs,
            cache,
            netns: node_netns,
            timeout: TIMEOUT,
        }
    }

    /// Gives each plugin another time to end.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Attaches a container. If a plugin fails, what the plugins before it made is detached again.
    ///
    /// # Errors
    /// [`RunnerError`] of the plugin that failed.
    pub async fn add(
        &self,
        list: &Conflist,
        attachment: &Attachment,
    ) -> Result<CniResult, RunnerError> {
        match self.add_all(list, attachment).await {
            Ok(result) => Ok(result),
            Err(error) => {
                if let Err(undo) = self.del(list, attachment).await {
                    tracing::warn!(container = %attachment.container_id,
                        error = &undo as &dyn std::error::Error, "undoing a failed ADD");
                }
                Err(error)
            }
        }
    }

    async fn add_all(
        &self,
        list: &Conflist,
        attachment: &Attachment,
    ) -> Result<CniResult, RunnerError> {
        let mut previous: Option<(Value, CniResult)> = None;
        for plugin in &list.plugins {
            let prev_json = previous.as_ref().map(|(json, _)| json);
            let config = plugin_config(list, plugin, Some(attachment), prev_json);
            let answer = self.run("ADD", plugin, Some(attachment), config).await?;
            let json = answer.unwrap_or_else(|| json!({}));
            let result = CniResult::from_json(&json).map_err(|source| RunnerError::Result {
                plugin_type: plugin.plugin_type.as_str().to_owned(),
                source,
            })?;
            previous = Some((json, result));
        }
        let (_, result) = previous.unwrap_or_default();
        let json = result.to_json(list.version);
        let entry = CachedResult::new(&list.name, attachment, &list_json(list), json);
        self.cache
            .put(&list.name, &attachment.key(), &entry)
            .map_err(|source| self.cache_error(list, source))?;
        Ok(result)
    }

    /// Detaches a container, in reverse order; goes on behind a plugin that fails.
    ///
    /// # Errors
    /// [`RunnerError`]; the cached result stays, so that it can be tried again.
    pub async fn del(&self, list: &Conflist, attachment: &Attachment) -> Result<(), RunnerError> {
        let previous = if list.version.has_check() {
            self.cache
                .get(&list.name, &attachment.key())
                .map(|cached| cached.result)
        } else {
            None
        };
        let previous = previous.filter(Value::is_object);
        let mut errors = Vec::new();
        for plugin in list.plugins.iter().rev() {
            let config = plugin_config(list, plugin, Some(attachment), previous.as_ref());
            if let Err(error) = self.run("DEL", plugin, Some(attachment), config).await {
                errors.push(error);
            }
        }
        if errors.is_empty()
            && let Err(source) = self.cache.remove(&list.name, &attachment.key())
        {
            errors.push(self.cache_error(list, source));
        }
        RunnerError::join(errors)
    }

    /// Compares what is there with what ADD made. Lists that disable it or are older than CHECK pass.
    ///
    /// # Errors
    /// [`RunnerError`] of the first plugin that misses something.
    pub async fn check(&self, list: &Conflist, attachment: &Attachment) -> Result<(), RunnerError> {
        if list.disable_check || !list.version.has_check() {
            return Ok(());
        }
        let cached = self
            .cache
            .get(&list.name, &attachment.key())
            .ok_or_else(|| RunnerError::NotCached {
                container: attachment.container_id.as_str().to_owned(),
                ifname: attachment.ifname.as_str().to_owned(),
            })?;
        for plugin in &list.plugins {
            let config = plugin_config(list, plugin, Some(attachment), Some(&cached.result));
            self.run("CHECK", plugin, Some(attachment), config).await?;
        }
        Ok(())
    }

    /// Detaches every cached attachment that is not `valid`, and lets the plugins remove what else they find.
    ///
    /// # Errors
    /// [`RunnerError`]; everything was tried.
    pub async fn gc(&self, list: &Conflist, valid: &[AttachmentKey]) -> Result<(), RunnerError> {
        if list.disable_gc {
            return Ok(());
        }
        let keep: HashSet<&AttachmentKey> = valid.iter().collect();
        let cached = self
            .cache
            .list(&list.name)
            .map_err(|source| self.cache_error(list, source))?;
        let mut errors = Vec::new();
        for stale in cached {
            let Some(key) = stale.key().filter(|key| !keep.contains(key)) else {
                continue;
            };
            let attachment = Attachment {
                container_id: key.container_id,
                ifname: key.ifname,
                netns: PathBuf::from(&stale.netns),
                args: stale.cni_args,
                capability_args: stale.capability_args,
            };
            if let Err(error) = self.del(list, &attachment).await {
                errors.push(error);
            }
        }
        if list.version.has_gc() {
            for plugin in &list.plugins {
                let mut config = plugin_config(list, plugin, None, None);
                config.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
                if let Err(error) = self.run("GC", plugin, None, config).await {
                    errors.push(error);
                }
            }
        }
        RunnerError::join(errors)
    }

    /// Says whether ADD can be served: every plugin is there and, from 1.1.0 on, says so itself.
    ///
    /// # Errors
    /// [`RunnerError`] of the first plugin that cannot.
    pub async fn status(&self, list: &Conflist) -> Result<(), RunnerError> {
        for plugin in &list.plugins {
            if list.version.has_gc() {
                let config = plugin_config(list, plugin, None, None);
                self.run("STATUS", plugin, None, config).await?;
            } else {
                exec::find(&plugin.plugin_type, &self.bin_dirs)?;
            }
        }
        Ok(())
    }

    async fn run(
        &self,
        command: &'static str,
        plugin: &PluginConf,
        attachment: Option<&Attachment>,
        config: Map<String, Value>,
    ) -> Result<Option<Value>, RunnerError> {
        let call = PluginCall {
            plugin: exec::find(&plugin.plugin_type, &self.bin_dirs)?,
            env: self.environment(command, attachment),
            stdin: Value::Object(config).to_string().into_bytes(),
            timeout: self.timeout,
        };
        tracing::debug!(command, plugin = %plugin.plugin_type, "running a CNI plugin");
        Ok(self
            .netns
            .run_blocking(move || exec::run_plugin(&call))
            .await??)
    }

    fn environment(
        &self,
        command: &'static str,
        attachment: Option<&Attachment>,
    ) -> Vec<(&'static str, String)> {
        let mut env = vec![
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_PATH", exec::join_path(&self.bin_dirs)),
        ];
        let Some(attachment) = attachment else {
            return env;
        };
        env.push((
            "CNI_CONTAINERID",
            attachment.container_id.as_str().to_owned(),
        ));
        env.push(("CNI_IFNAME", attachment.ifname.as_str().to_owned()));
        env.push(("CNI_NETNS", attachment.netns.to_string_lossy().into_owned()));
        let args: Vec<String> = attachment
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if !args.is_empty() {
            env.push(("CNI_ARGS", args.join(";")));
        }
        env
    }

    fn cache_error(&self, list: &Conflist, source: io::Error) -> RunnerError {
        RunnerError::Cache {
            network: list.name.as_str().to_owned(),
            source,
        }
    }
}

/// What a plugin gets on stdin: its own keys, the list's name and version, `runtimeConfig` for the capabilities that
/// it declares, and the result before it.
fn plugin_config(
    list: &Conflist,
    plugin: &PluginConf,
    attachment: Option<&Attachment>,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut config = plugin.raw.clone();
    config.insert("name".to_owned(), list.name.as_str().into());
    config.insert("cniVersion".to_owned(), list.version.as_str().into());
    if let Some(attachment) = attachment {
        let capabilities = config.get("capabilities").and_then(Value::as_object);
        let wanted: Map<String, Value> = attachment
            .capability_args
            .iter()
            .filter(|(key, _)| {
                capabilities
                    .and_then(|all| all.get(*key))
                    .and_then(Value::as_bool)
                    == Some(true)
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(wanted));
        }
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    config
}

fn list_json(list: &Conflist) -> Value {
    let plugins: Vec<&Map<String, Value>> = list.plugins.iter().map(|plugin| &plugin.raw).collect();
    json!({ "cniVersion": list.version.as_str(), "name": list.name, "plugins": plugins })
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
