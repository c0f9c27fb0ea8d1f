//! [`Images`] over `skiff-image`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use skiff_client::chain;
use skiff_image::{ImageRecord, ImageReference, ImageStore, PullAuth, PullError, SnapshotError};

use super::{Image, ImageDefaults, Images, ImagesError, PullSecret};

/// The node's image store.
pub(crate) struct StoreImages {
    store: Arc<ImageStore>,
}

impl StoreImages {
    pub(crate) fn new(store: Arc<ImageStore>) -> Self {
        Self { store }
    }
}

fn pull_error(error: &PullError) -> ImagesError {
    ImagesError {
        reason: error.reason(),
        message: error.message(),
    }
}

fn snapshot_error(error: &SnapshotError) -> ImagesError {
    ImagesError {
        reason: "CreateContainerError",
        message: chain(error).to_string(),
    }
}

fn image(record: &ImageRecord) -> Image {
    let config = &record.config;
    let id = record
        .repo_digests
        .first()
        .cloned()
        .unwrap_or_else(|| record.id.to_string());
    Image {
        key: record.id.to_string(),
        id,
        names: record
            .repo_digests
            .iter()
            .chain(&record.names)
            .cloned()
            .collect(),
        size: record.size,
        defaults: ImageDefaults {
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            user: config.user.clone(),
            working_dir: config.working_dir.clone(),
            stop_signal: config.stop_signal.clone(),
        },
    }
}

#[async_trait]
impl Images for StoreImages {
    async fn get(&self, reference: &str) -> Result<Option<Image>, ImagesError> {
        if let Some(record) = self.store.get(reference) {
            return Ok(Some(image(&record)));
        }
        // Not there; a malformed name is told as such and not pulled.
        match reference.parse::<ImageReference>() {
            Ok(_) => Ok(None),
            Err(error) => Err(ImagesError {
                reason: "InvalidImageName",
                message: chain(&error).to_string(),
            }),
        }
    }

    async fn pull(&self, reference: &str, secrets: &[PullSecret]) -> Result<Image, ImagesError> {
        let mut auth = PullAuth::anonymous();
        for secret in secrets {
            let added = match secret {
                PullSecret::DockerConfigJson(json) => auth.add_docker_config_json(json),
                PullSecret::DockerCfg(json) => auth.add_dockercfg(json),
            };
            if let Err(error) = added {
                tracing::warn!(error = %chain(&error), "image pull secret passed over");
            }
        }
        let record = self
            .store
            .pull(reference, auth, None)
            .await
            .map_err(|error| pull_error(&error))?;
        Ok(image(&record))
    }

    async fn prepare(&self, image: &Image, key: &str) -> Result<PathBuf, ImagesError> {
        let record = self.store.get(&image.key).ok_or_else(|| ImagesError {
            reason: "CreateContainerError",
            message: format!("image {} was removed", image.key),
        })?;
        let mount = self
            .store
            .prepare(key, &record)
            .await
            .map_err(|error| snapshot_error(&error))?;
        Ok(mount.rootfs)
    }

    async fn release(&self, key: &str) -> Result<(), ImagesError> {
        self.store
            .release(key)
            .await
            .map_err(|error| snapshot_error(&error))
    }

    async fn keys(&self) -> Result<Vec<String>, ImagesError> {
        let store = Arc::clone(&self.store);
        let all = tokio::task::spawn_blocking(move || store.snapshots()).await;
        match all {
            Ok(Ok(all)) => Ok(all.into_iter().map(|snapshot| snapshot.key).collect()),
            Ok(Err(error)) => Err(snapshot_error(&error)),
            Err(error) => Err(ImagesError {
                reason: "CreateContainerError",
                message: error.to_string(),
            }),
        }
    }

    async fn list(&self) -> Result<Vec<Image>, ImagesError> {
        Ok(self
            .store
            .list()
            .iter()
            .map(|record| image(record))
            .collect())
    }
}
