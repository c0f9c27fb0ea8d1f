//! The pod's volumes: fetching what they show, and noticing when that changes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use skiff_client::chain;
use tokio::sync::Notify;

use super::{Outcome, Worker};
use crate::plan::Op;
use crate::volumes::{self, Objects};

impl Worker {
    pub(super) fn begin_volumes(&mut self) {
        self.volumes_dirty.store(false, Ordering::Release);
        self.watch_objects();
        let (ctx, pod) = (Arc::clone(&self.ctx), Arc::clone(&self.pod));
        let root = ctx.config.pod_dir(&self.uid).join("volumes");
        let namespace = self.namespace().to_owned();
        self.spawn(Op::Volumes, async move {
            let (maps, secrets) = volumes::references(&pod);
            let fetched = tokio::try_join!(
                fetch::<ConfigMap>(&ctx.client, &namespace, maps),
                fetch::<Secret>(&ctx.client, &namespace, secrets),
            );
            let (config_maps, secrets) = match fetched {
                Ok(fetched) => fetched,
                Err(error) => return Outcome::Failed("FailedMount", chain(&error).to_string()),
            };
            let objects = Objects {
                config_maps,
                secrets,
                allocatable: ctx.allocatable,
            };
            let set_up = move || volumes::set_up(&pod, &root, &objects);
            match tokio::task::spawn_blocking(set_up).await {
                Ok(Ok(places)) => Outcome::Volumes(places),
                Ok(Err(failed)) => Outcome::Failed(
                    "FailedMount",
                    format!(
                        "MountVolume.SetUp failed for volume \"{}\" : {}",
                        failed.name,
                        chain(&failed.error)
                    ),
                ),
                Err(error) => Outcome::Failed("FailedMount", error.to_string()),
            }
        });
    }

    /// Starts one watch for each object that the volumes show.
    fn watch_objects(&mut self) {
        if std::mem::replace(&mut self.watching, true) {
            return;
        }
        let (maps, secrets) = volumes::references(&self.pod);
        let namespace = self.namespace().to_owned();
        let client = &self.ctx.client;
        for name in maps {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
            let (dirty, wake) = (Arc::clone(&self.volumes_dirty), Arc::clone(&self.wake));
            self.watches.spawn(watch_one(api, name, dirty, wake));
        }
        for name in secrets {
            let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
            let (dirty, wake) = (Arc::clone(&self.volumes_dirty), Arc::clone(&self.wake));
            self.watches.spawn(watch_one(api, name, dirty, wake));
        }
    }
}

/// Says so whenever the object changes, appears or goes.
async fn watch_one<K>(api: Api<K>, name: String, dirty: Arc<AtomicBool>, wake: Arc<Notify>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    // The first answer is what the volume is made from anyway.
    let mut changes = Box::pin(watch_object(api, &name).default_backoff().skip(1));
    while let Some(change) = changes.next().await {
        if change.is_ok() {
            dirty.store(true, Ordering::Release);
            wake.notify_one();
        }
    }
}

/// The objects of these names that exist.
pub(super) async fn fetch<K>(
    client: &Client,
    namespace: &str,
    names: impl IntoIterator<Item = String>,
) -> kube::Result<BTreeMap<String, K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let gets = names.into_iter().map(|name| {
        let api = api.clone();
        async move {
            api.get_opt(&name)
                .await
                .map(|found| found.map(|object| (name, object)))
        }
    });
    let found: kube::Result<Vec<Option<(String, K)>>> = futures::future::try_join_all(gets).await;
    Ok(found?.into_iter().flatten().collect())
}
