//! [`PodNetwork`] over the conflist runner of `skiff-cni`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use skiff_client::chain;
use skiff_cni::libcni::{Attachment, AttachmentKey, CniRunner, Conflist};
use skiff_cni::types::NetworkName;

use super::capabilities::without_idle;
use super::paths::find_port;
use super::{NetworkError, PodAttachment, PodNetwork, PodPaths, PodPort};
use crate::NodeConfig;

const IFNAME: &str = "eth0";
/// In the folder that a restart of the machine empties: links and their numbers go with it, too.
const RECORDS: &str = "network";

/// Runs the node's first configuration list for each pod.
pub(crate) struct CniNetwork {
    runner: CniRunner,
    config: NodeConfig,
    paths: Arc<dyn PodPaths>,
    /// Read by each attachment, written by the sweep.
    attaching: tokio::sync::RwLock<()>,
}

/// What is kept of an attached pod, so that the next daemon knows its addresses without asking a plugin.
#[derive(Serialize, Deserialize)]
struct Record {
    /// What it is attached to; the node's list may be another by now.
    network: NetworkName,
    ips: Vec<IpAddr>,
    #[serde(default)]
    port: Option<PodPort>,
}

impl CniNetwork {
    pub(crate) fn new(runner: CniRunner, config: NodeConfig, paths: Arc<dyn PodPaths>) -> Self {
        Self {
            runner,
            config,
            paths,
            attaching: tokio::sync::RwLock::new(()),
        }
    }

    async fn conflist(&self) -> Result<Conflist, NetworkError> {
        let directory = self.config.cni_conf_dir.clone();
        let load = tokio::task::spawn_blocking(move || Conflist::load_dir(&directory)).await;
        match load {
            Ok(Ok(list)) => Ok(list),
            Ok(Err(error)) => Err(failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn record(&self, uid: &str) -> Option<Record> {
        let json = tokio::fs::read(self.record_path(uid)).await.ok()?;
        serde_json::from_slice(&json).ok()
    }

    async fn tell_paths(
        &self,
        what: impl FnOnce(&dyn PodPaths) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
        + Send
        + 'static,
    ) {
        let paths = Arc::clone(&self.paths);
        match tokio::task::spawn_blocking(move || what(&*paths)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&*error), "the ways between pods"),
            Err(error) => tracing::warn!(%error, "the ways between pods"),
        }
    }

    fn records(&self) -> PathBuf {
        self.config.run_dir.join(RECORDS)
    }

    fn record_path(&self, uid: &str) -> PathBuf {
        self.records().join(format!("{uid}.json"))
    }

    async fn keep(&self, uid: &str, record: &Record) -> std::io::Result<()> {
        tokio::fs::create_dir_all(self.records()).await?;
        let path = self.record_path(uid);
        let tmp = path.with_extension("tmp");
        tokio::fs::write(&tmp, serde_json::to_vec(record)?).await?;
        tokio::fs::rename(&tmp, &path).await
    }

    /// Forgets pods that are no more.
    async fn keep_only(&self, uids: &[String]) {
        let Ok(mut entries) = tokio::fs::read_dir(self.records()).await else {
            return;
        };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let path = entry.path();
            let uid = path.file_stem().and_then(|stem| stem.to_str());
            if !uid.is_some_and(|uid| uids.iter().any(|known| known == uid)) {
                drop(tokio::fs::remove_file(&path).await);
            }
        }
    }

    /// The list that attached the pod, if that is known, otherwise the node's.
    async fn list_of(
        &self,
        record: Option<&Record>,
        key: &AttachmentKey,
    ) -> Result<Conflist, NetworkError> {
        let cached = record.and_then(|record| self.runner.cached(&record.network, key));
        match cached.and_then(|cached| cached.list) {
            Some(list) => Ok(list),
            None => self.conflist().await,
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> NetworkError {
    NetworkError(chain(error).to_string())
}

fn attachment(pod: &PodAttachment) -> Result<Attachment, NetworkError> {
    let key = key(&pod.uid)?;
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.uid),
        ("K8S_POD_UID", &pod.uid),
    ];
    Ok(Attachment {
        container_id: key.container_id,
        netns: pod.netns.clone(),
        ifname: key.ifname,
        args: args
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        capability_args: Map::new(),
    })
}

fn key(uid: &str) -> Result<AttachmentKey, NetworkError> {
    Ok(AttachmentKey {
        container_id: uid.parse().map_err(|error| failed(&error))?,
        ifname: IFNAME.parse().map_err(|error| failed(&error))?,
    })
}

#[async_trait]
impl PodNetwork for CniNetwork {
    async fn attach(
        &self,
        pod: &PodAttachment,
        capability_args: Map<String, Value>,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let list = without_idle(&self.conflist().await?, &capability_args);
        let attachment = Attachment {
            capability_args,
            ..attachment(pod)?
        };
        let _no_sweep = self.attaching.read().await;
        let key = attachment.key();
        if self.runner.cached(&list.name, &key).is_some() {
            // The machine or the daemon ended before it was detached, or before there was a record of it.
            if let Err(error) = self.runner.detach(&list, &attachment).await {
                tracing::warn!(pod = pod.name, error = %chain(&error), "an earlier attachment");
            }
        }
        let result = self.runner.add(&list, &attachment).await;
        let result = result.map_err(|error| failed(&error))?;
        let port = find_port(&pod.uid, &self.config.node_netns, &list, &result).await;
        let record = Record {
            network: list.name.clone(),
            ips: result.container_ips().map(|ip| ip.address.ip()).collect(),
            port: port.clone(),
        };
        let kept = self.keep(&pod.uid, &record).await;
        if record.ips.is_empty() || kept.is_err() {
            let undone = self.runner.del(&list, &attachment).await;
            if let Err(error) = undone {
                tracing::warn!(pod = pod.name, error = %chain(&error), "undoing an attachment");
            }
            drop(tokio::fs::remove_file(self.record_path(&pod.uid)).await);
            let message = match kept {
                Err(error) => format!("keeping the pod's addresses: {error}"),
                Ok(()) => "the plugins gave no address".to_owned(),
            };
            return Err(NetworkError(message));
        }
        if let Some(port) = port {
            self.tell_paths(move |paths| paths.attach(&port)).await;
        }
        Ok(record.ips)
    }

    async fn addresses(&self, pod: &PodAttachment) -> Option<Vec<IpAddr>> {
        self.record(&pod.uid).await.map(|record| record.ips)
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        let record = self.record(&pod.uid).await;
        if let Some(port) = record.as_ref().and_then(|record| record.port.clone()) {
            self.tell_paths(move |paths| paths.detach(&port)).await;
        }
        let attachment = attachment(pod)?;
        let list = match self.list_of(record.as_ref(), &attachment.key()).await {
            Ok(list) => list,
            // It was not attached. What an ADD left of which there is no record is the sweep's.
            Err(error) if record.is_none() => {
                tracing::debug!(pod = pod.name, %error, "nothing to detach");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // What ADD ran and was given is in the runner's cache.
        let detached = self.runner.detach(&list, &attachment).await;
        detached.map_err(|error| failed(&error))?;
        drop(tokio::fs::remove_file(self.record_path(&pod.uid)).await);
        Ok(())
    }

    async fn sweep(&self, uids: &(dyn Fn() -> Vec<String> + Sync)) -> Result<(), NetworkError> {
        let _nothing_is_attached = self.attaching.write().await;
        let uids = uids();
        self.keep_only(&uids).await;
        let mut ports = Vec::new();
        for uid in &uids {
            let port = self.record(uid).await.and_then(|record| record.port);
            // Older records do not name the pod.
            ports.extend(port.map(|port| PodPort {
                uid: uid.clone(),
                ..port
            }));
        }
        self.tell_paths(move |paths| paths.sync(&ports)).await;
        // A pod that cannot be named was never attached.
        let valid: Vec<AttachmentKey> = uids.iter().filter_map(|uid| key(uid).ok()).collect();
        // The cache is the node's own. What is in it goes also if its list is another now, or cannot be read.
        let detached = self.runner.detach_all_but(&valid).await;
        let list = self.conflist().await?;
        let collected = self.runner.gc(&list, &valid).await;
        detached.and(collected).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
#[path = "cni_tests.rs"]
mod tests;
