//! What pod workers need of an image store. The node's own is [`store::StoreImages`] over `skiff-image`.

pub(crate) mod naming;
pub(crate) mod store;

use std::path::PathBuf;

use async_trait::async_trait;

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    /// The program and its first arguments.
    pub(crate) entrypoint: Vec<String>,
    /// Further arguments, or the whole command if there is no entrypoint.
    pub(crate) cmd: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// User, as the image writes it; empty for root.
    pub(crate) user: String,
    /// Working directory; empty for `/`.
    pub(crate) working_dir: String,
    /// Name or number of the signal that ends it.
    pub(crate) stop_signal: Option<String>,
}

/// An image that is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Name in the store, for [`Images::prepare`].
    pub(crate) key: String,
    /// As `imageID` shows it: a reference by digest.
    pub(crate) id: String,
    /// Names by tag and digest.
    pub(crate) names: Vec<String>,
    /// Bytes.
    pub(crate) size: u64,
    /// How it wants to be run.
    pub(crate) defaults: ImageDefaults,
}

/// Why an image or its root filesystem cannot be had.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub(crate) struct ImagesError {
    /// Waiting reason: `ErrImagePull`, `InvalidImageName`, `CreateContainerError`.
    pub(crate) reason: &'static str,
    /// The whole chain on one line.
    pub(crate) message: String,
}

/// A pull secret's content.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PullSecret {
    /// `.dockerconfigjson`.
    DockerConfigJson(Vec<u8>),
    /// The older `.dockercfg`.
    DockerCfg(Vec<u8>),
}

/// Images on the node and the root filesystems made from them.
#[async_trait]
pub(crate) trait Images: Send + Sync + 'static {
    /// The image of that reference, if it is on the node.
    ///
    /// # Errors
    /// [`ImagesError`] if the reference is malformed or the store cannot be read.
    async fn get(&self, reference: &str) -> Result<Option<Image>, ImagesError>;

    /// Fetches the image, or what of it is not there yet.
    ///
    /// # Errors
    /// [`ImagesError`] with the registry's message.
    async fn pull(&self, reference: &str, secrets: &[PullSecret]) -> Result<Image, ImagesError>;

    /// Mounts a root filesystem under `key`; what exists is returned.
    ///
    /// # Errors
    /// [`ImagesError`] if it cannot be mounted.
    async fn prepare(&self, image: &Image, key: &str) -> Result<PathBuf, ImagesError>;

    /// Unmounts and removes the root filesystem of `key`. Absent is success.
    ///
    /// # Errors
    /// [`ImagesError`] if it stays.
    async fn release(&self, key: &str) -> Result<(), ImagesError>;

    /// Keys of all root filesystems that exist.
    ///
    /// # Errors
    /// [`ImagesError`] if the store cannot be read.
    async fn keys(&self) -> Result<Vec<String>, ImagesError>;

    /// All images, for the node's status.
    ///
    /// # Errors
    /// [`ImagesError`] if the store cannot be read.
    async fn list(&self) -> Result<Vec<Image>, ImagesError>;
}
