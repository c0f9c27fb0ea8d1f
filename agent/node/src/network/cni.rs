//! [`PodNetwork`] over the conflist runner of `skiff-cni`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use skiff_client::chain;
use skiff_cni::libcni::{Attachment, AttachmentKey, CniRunner, Conflist};

use super::capabilities::without_idle;
use super::paths::find_port;
use super::{NetworkError, PodAttachment, PodNetwork, PodPaths, PodPort};
use crate::NodeConfig;

const IFNAME: &str = "eth0";
const RECORD: &str = "network.json";

/// Runs the node's first configuration list for each pod.
pub(crate) struct CniNetwork {
    runner: CniRunner,
    config: NodeConfig,
    paths: Arc<dyn PodPaths>,
    /// Read by each attachment, written by the sweep.
    attaching: tokio::sync::RwLock<()>,
}

/// What is kept beside the pod, so that the next daemon knows its addresses without asking a plugin.
#[derive(Serialize, Deserialize)]
struct Record {
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
            Ok(Err(error)) => Err(NetworkError(chain(&error).to_string())),
            Err(error) => Err(NetworkError(error.to_string())),
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

    fn record_path(&self, uid: &str) -> PathBuf {
        self.config.pod_dir(uid).join(RECORD)
    }
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
        container_id: uid
            .parse()
            .map_err(|error| NetworkError(chain(&error).to_string()))?,
        ifname: IFNAME
            .parse()
            .map_err(|error| NetworkError(chain(&error).to_string()))?,
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
        let result = self
            .runner
            .add(&list, &attachment)
            .await
            .map_err(|error| NetworkError(chain(&error).to_string()))?;
        let ips: Vec<IpAddr> = result.container_ips().map(|ip| ip.address.ip()).collect();
        let port = find_port(&self.config.node_netns, &list, &result).await;
        let keep = async {
            let path = self.record_path(&pod.uid);
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await?;
            }
            let json = serde_json::to_vec(&Record {
                ips: ips.clone(),
                port,
            })?;
            let tmp = path.with_extension("tmp");
            tokio::fs::write(&tmp, json).await?;
            tokio::fs::rename(&tmp, &path).await
        };
        let kept: std::io::Result<()> = keep.await;
        if ips.is_empty() || kept.is_err() {
            let undone = self.runner.del(&list, &attachment).await;
            if let Err(error) = undone {
                tracing::warn!(pod = pod.name, error = %chain(&error), "undoing an attachment");
            }
            let message = match kept {
                Err(error) => format!("keeping the pod's addresses: {error}"),
                Ok(()) => "the plugins gave no address".to_owned(),
            };
            return Err(NetworkError(message));
        }
        if let Some(port) = port {
            self.tell_paths(move |paths| paths.attach(&port)).await;
        }
        Ok(ips)
    }

    async fn addresses(&self, pod: &PodAttachment) -> Option<Vec<IpAddr>> {
        self.record(&pod.uid).await.map(|record| record.ips)
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        if let Some(port) = self.record(&pod.uid).await.and_then(|record| record.port) {
            self.tell_paths(move |paths| paths.detach(&port)).await;
        }
        let list = self.conflist().await?;
        // What ADD ran and was given is in the runner's cache.
        self.runner
            .detach(&list, &attachment(pod)?)
            .await
            .map_err(|error| NetworkError(chain(&error).to_string()))?;
        drop(tokio::fs::remove_file(self.record_path(&pod.uid)).await);
        Ok(())
    }

    async fn sweep(&self, uids: &(dyn Fn() -> Vec<String> + Sync)) -> Result<(), NetworkError> {
        let list = self.conflist().await?;
        let _nothing_is_attached = self.attaching.write().await;
        let uids = uids();
        let mut ports = Vec::new();
        for uid in &uids {
            ports.extend(self.record(uid).await.and_then(|record| record.port));
        }
        self.tell_paths(move |paths| paths.sync(&ports)).await;
        let valid = uids
            .iter()
            .map(|uid| key(uid))
            .collect::<Result<Vec<_>, _>>()?;
        self.runner
            .gc(&list, &valid)
            .await
            .map_err(|error| NetworkError(chain(&error).to_string()))
    }
}
