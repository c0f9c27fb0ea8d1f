//! Attaches and detaches containers by running a list's plugins.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::PathBuf,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use serde_json::{Map, Value, json};
use skiff_netns::NodeNetns;

use super::{
    CachedAttachment, Conflist, PluginConf, RunnerError,
    cache::ResultCache,
    exec::{self, PluginCall},
    lock, request,
};
use crate::{
    ByteLock, Holders,
    types::{
        AttachmentKey, CniResult, CniVersion, ContainerId, IfName, NetworkName, PluginType, code,
    },
};

/// The patience of the kubelet's runtimes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Stale attachments that GC detaches at once: plugins that share the cost of a deletion can do so.
const DETACHED_AT_ONCE: usize = 32;

/// What a plugin may say to a version that it does not know. One that is older than GC and STATUS may look for the
/// container first, and those have none.
const REFUSALS: [u32; 3] = [code::VERSION, code::UNKNOWN_CONTAINER, code::ENVIRONMENT];

/// A container's attachment to a network.
#[derive(Debug, Clone, PartialEq)]
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

/// Runs configuration lists for one node. Plugins start inside the node's network namespace.
///
/// Calls for different attachments may run at once. If a plugin does not speak a list's newest version, all plugins are
/// asked for theirs and the call is repeated at the newest one that the list offers and all of them speak; lists that
/// offer no more than what their plugins speak spare the first attempt.
#[derive(Debug, Clone)]
pub struct CniRunner {
    bin_dirs: Vec<PathBuf>,
    cache: ResultCache,
    cache_dir: PathBuf,
    netns: NodeNetns,
    timeout: Duration,
}

impl CniRunner {
    /// Finds plugins in `bin_dirs`, keeps results in `cache_dir`. Nothing is read or made yet.
    #[must_use]
    pub fn new(bin_dirs: Vec<PathBuf>, cache_dir: PathBuf, node_netns: NodeNetns) -> Self {
        Self {
            bin_dirs,
            cache: ResultCache::new(&cache_dir),
            cache_dir,
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

    /// Attaches a container; waits for a GC of the network to end. If a plugin fails, what the plugins before it made is
    /// detached again.
    ///
    /// # Errors
    /// [`RunnerError`] of the plugin that failed.
    pub async fn add(
        &self,
        list: &Conflist,
        attachment: &Attachment,
    ) -> Result<CniResult, RunnerError> {
        let _no_gc = self.hold(list, Holders::Many).await?;
        let result = self.add_or_undo(list, attachment).await;
        match self.older(list, &result).await {
            Some(list) => self.add_or_undo(&list, attachment).await,
            None => result,
        }
    }

    async fn add_or_undo(
        &self,
        list: &Conflist,
        attachment: &Attachment,
    ) -> Result<CniResult, RunnerError> {
        match self.add_all(list, attachment).await {
            Ok(result) => Ok(result),
            Err(error) => {
                if let Err(undo) = self.del_all(list, attachment).await {
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
        let mut previous: Option<CniResult> = None;
        for plugin in &list.plugins {
            // A plugin may answer in another version than it was asked in; the next one gets it in the list's.
            let json = previous.as_ref().map(|result| result.to_json(list.version));
            let config = request::configuration(list, plugin, Some(attachment), json);
            let answer = self.run("ADD", plugin, Some(attachment), config).await?;
            // One that prints nothing breaks the chain: what is behind it would find no links and addresses.
            let json = answer.unwrap_or_default();
            let result = CniResult::from_json(&json).map_err(|source| RunnerError::Result {
                plugin_type: plugin.plugin_type.as_str().to_owned(),
                source,
            })?;
            previous = Some(result);
        }
        let result = previous.unwrap_or_default();
        self.cache
            .put(list, attachment, &result)
            .map_err(|source| cache_error(list, source))?;
        Ok(result)
    }

    /// Detaches a container, in reverse order; goes on behind a plugin that fails.
    ///
    /// # Errors
    /// [`RunnerError`]; the cached result stays, so that it can be tried again.
    pub async fn del(&self, list: &Conflist, attachment: &Attachment) -> Result<(), RunnerError> {
        let result = self.del_all(list, attachment).await;
        match self.older(list, &result).await {
            Some(list) => self.del_all(&list, attachment).await,
            None => result,
        }
    }

    /// [`CniRunner::del`] with the list and the arguments that ADD had, as far as they are cached: what is made is
    /// removed also when the list on disk, or what is known of the container, is another by now.
    ///
    /// # Errors
    /// As [`CniRunner::del`].
    pub async fn detach(
        &self,
        list: &Conflist,
        attachment: &Attachment,
    ) -> Result<(), RunnerError> {
        let Some(mut cached) = self.cached(&list.name, &attachment.key()) else {
            return self.del(list, attachment).await;
        };
        cached.fill_from(attachment);
        let list = cached.list.as_ref().unwrap_or(list);
        self.del(list, &cached.attachment).await
    }

    async fn del_all(&self, list: &Conflist, attachment: &Attachment) -> Result<(), RunnerError> {
        let previous = if list.version.has_check() {
            self.cache
                .get(&list.name, &attachment.key())
                .and_then(|cached| cached.result)
                .map(|result| result.to_json(list.version))
        } else {
            None
        };
        let mut errors = Vec::new();
        for plugin in list.plugins.iter().rev() {
            let config = request::configuration(list, plugin, Some(attachment), previous.clone());
            if let Err(error) = self.run("DEL", plugin, Some(attachment), config).await {
                errors.push(error);
            }
        }
        if errors.is_empty()
            && let Err(source) = self.cache.remove(&list.name, &attachment.key())
        {
            errors.push(cache_error(list, source));
        }
        RunnerError::join(errors)
    }

    /// Compares what is there with what ADD made. Lists that disable it or are older than CHECK pass.
    ///
    /// # Errors
    /// [`RunnerError`] of the first plugin that misses something.
    pub async fn check(&self, list: &Conflist, attachment: &Attachment) -> Result<(), RunnerError> {
        let result = self.check_all(list, attachment).await;
        match self.older(list, &result).await {
            Some(list) => self.check_all(&list, attachment).await,
            None => result,
        }
    }

    async fn check_all(&self, list: &Conflist, attachment: &Attachment) -> Result<(), RunnerError> {
        if list.disable_check || !list.version.has_check() {
            return Ok(());
        }
        let previous = self
            .cache
            .get(&list.name, &attachment.key())
            .and_then(|cached| cached.result)
            .ok_or_else(|| RunnerError::NotCached {
                container: attachment.container_id.as_str().to_owned(),
                ifname: attachment.ifname.as_str().to_owned(),
            })?
            .to_json(list.version);
        for plugin in &list.plugins {
            let previous = Some(previous.clone());
            let config = request::configuration(list, plugin, Some(attachment), previous);
            self.run("CHECK", plugin, Some(attachment), config).await?;
        }
        Ok(())
    }

    /// Detaches every cached attachment that is not `valid`, many at once, and lets the plugins remove what else they
    /// find. Waits for ADDs to the network to end, and keeps others from beginning.
    ///
    /// # Errors
    /// [`RunnerError`]; everything was tried.
    pub async fn gc(&self, list: &Conflist, valid: &[AttachmentKey]) -> Result<(), RunnerError> {
        self.gc_where(list, |_cached| valid.to_vec()).await
    }

    /// [`CniRunner::gc`] where the valid attachments are those of the cached ones that `is_kept` wants: what an ADD has
    /// made until then is among them.
    ///
    /// # Errors
    /// As [`CniRunner::gc`].
    pub async fn gc_all_but(
        &self,
        list: &Conflist,
        is_kept: impl Fn(&Attachment) -> bool,
    ) -> Result<(), RunnerError> {
        let kept = |cached: &[CachedAttachment]| {
            let attachments = cached.iter().map(|cached| &cached.attachment);
            let kept = attachments.filter(|attachment| is_kept(attachment));
            kept.map(Attachment::key).collect()
        };
        self.gc_where(list, kept).await
    }

    async fn gc_where(
        &self,
        list: &Conflist,
        valid: impl FnOnce(&[CachedAttachment]) -> Vec<AttachmentKey>,
    ) -> Result<(), RunnerError> {
        if list.disable_gc {
            return Ok(());
        }
        let _no_add = self.hold(list, Holders::One).await?;
        let cached = self.attachments(&list.name)?;
        let valid = &valid(&cached);
        let mut errors = self.detach_others(cached, valid, Some(list)).await;
        let result = self.gc_all(list, valid).await;
        let result = match self.older(list, &result).await {
            Some(list) => self.gc_all(&list, valid).await,
            None => result,
        };
        errors.extend(result.err());
        RunnerError::join(errors)
    }

    /// Detaches every cached attachment that is not `valid`, whichever network it is of: for a runtime that alone uses
    /// its cache, and whose list may be another by now, or gone.
    ///
    /// # Errors
    /// [`RunnerError`]; everything was tried.
    pub async fn detach_all_but(&self, valid: &[AttachmentKey]) -> Result<(), RunnerError> {
        let cached = self.cache.list(None).map_err(|source| RunnerError::Cache {
            network: "every network".to_owned(),
            source,
        })?;
        RunnerError::join(self.detach_others(cached, valid, None).await)
    }

    /// Detaches those of `cached` that are not `valid`, with the list that ADD ran as far as that can be told.
    async fn detach_others(
        &self,
        cached: Vec<CachedAttachment>,
        valid: &[AttachmentKey],
        otherwise: Option<&Conflist>,
    ) -> Vec<RunnerError> {
        let keep: HashSet<&AttachmentKey> = valid.iter().collect();
        let stale = cached
            .into_iter()
            .filter(|cached| !keep.contains(&cached.attachment.key()));
        let detached = stream::iter(stale).map(|cached| async move {
            match cached.list.as_ref().or(otherwise) {
                Some(list) => self.del(list, &cached.attachment).await,
                None => Ok(()),
            }
        });
        detached
            .buffer_unordered(DETACHED_AT_ONCE)
            .filter_map(|result| async { result.err() })
            .collect()
            .await
    }

    async fn hold(
        &self,
        list: &Conflist,
        holders: Holders,
    ) -> Result<Option<ByteLock>, RunnerError> {
        lock::hold(&self.cache_dir, &list.name, holders, self.timeout).await
    }

    async fn gc_all(&self, list: &Conflist, valid: &[AttachmentKey]) -> Result<(), RunnerError> {
        let mut errors = Vec::new();
        if list.version.has_gc() {
            for plugin in &list.plugins {
                let mut config = request::configuration(list, plugin, None, None);
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
        let result = self.status_all(list).await;
        match self.older(list, &result).await {
            Some(list) => self.status_all(&list).await,
            None => result,
        }
    }

    async fn status_all(&self, list: &Conflist) -> Result<(), RunnerError> {
        for plugin in &list.plugins {
            if list.version.has_gc() {
                let config = request::configuration(list, plugin, None, None);
                self.run("STATUS", plugin, None, config).await?;
            } else {
                exec::find(&plugin.plugin_type, &self.bin_dirs)?;
            }
        }
        Ok(())
    }

    /// What ADD left of an attachment; `None` if there is nothing, or it is damaged.
    #[must_use]
    pub fn cached(&self, network: &NetworkName, key: &AttachmentKey) -> Option<CachedAttachment> {
        self.cache.get(network, key)
    }

    /// All cached attachments of a network.
    ///
    /// # Errors
    /// [`RunnerError::Cache`].
    pub fn attachments(&self, network: &NetworkName) -> Result<Vec<CachedAttachment>, RunnerError> {
        self.cache
            .list(Some(network))
            .map_err(|source| RunnerError::Cache {
                network: network.as_str().to_owned(),
                source,
            })
    }

    /// The list at an older version, if a plugin refused the one that it was called in and all plugins speak another.
    async fn older<T>(&self, list: &Conflist, result: &Result<T, RunnerError>) -> Option<Conflist> {
        let error = result.as_ref().err()?;
        let refused = !matches!(error, RunnerError::Result { .. })
            && error.cni().is_some_and(|cni| REFUSALS.contains(&cni.code));
        if !refused || list.versions.first() == Some(&list.version) {
            return None;
        }
        let types: BTreeSet<&str> = list
            .plugins
            .iter()
            .map(|p| p.plugin_type.as_str())
            .collect();
        let mut common = list.versions.clone();
        for plugin_type in types {
            let plugin_type = plugin_type.parse().ok()?;
            let spoken = self.versions(&plugin_type).await.ok()?;
            common.retain(|version| spoken.contains(version));
        }
        let version = common.pop().filter(|version| *version < list.version)?;
        tracing::debug!(network = %list.name, %version, "a plugin does not speak the newest version");
        Some(list.at_version(version))
    }

    /// The versions that a plugin and we speak.
    ///
    /// # Errors
    /// [`RunnerError`] if it cannot be asked.
    pub async fn versions(&self, plugin_type: &PluginType) -> Result<Vec<CniVersion>, RunnerError> {
        let plugin = PluginConf {
            plugin_type: plugin_type.clone(),
            raw: Map::new(),
        };
        let version = CniVersion::LATEST.as_str();
        let config = Map::from_iter([("cniVersion".to_owned(), version.into())]);
        let answer = self.run("VERSION", &plugin, None, config).await?;
        let spoken = answer
            .as_ref()
            .and_then(|json| json.get("supportedVersions"))
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let spoken = spoken.iter().filter_map(Value::as_str);
        Ok(spoken.filter_map(|text| text.parse().ok()).collect())
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
            env: request::environment(command, &self.bin_dirs, attachment),
            stdin: Value::Object(config).to_string().into_bytes(),
            timeout: self.timeout,
        };
        tracing::debug!(command, plugin = %plugin.plugin_type, "running a CNI plugin");
        Ok(self
            .netns
            .run_blocking(move || exec::run_plugin(&call))
            .await??)
    }
}

fn cache_error(list: &Conflist, source: io::Error) -> RunnerError {
    RunnerError::Cache {
        network: list.name.as_str().to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
