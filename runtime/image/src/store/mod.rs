//! The store itself: records of images, who may use them, and what may be removed.

mod pull;
mod record;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use futures::FutureExt as _;
use futures::future::{BoxFuture, WeakShared};
use parking_lot::Mutex;

use crate::auth::PullAuth;
use crate::digest::{Digest, ImageId};
use crate::error::{PullError, PullFailure, StoreError};
use crate::reference::ImageReference;
use crate::registry::RetryPolicy;
use crate::snapshot::{Mount, Snapshot, SnapshotError, Snapshots};
use crate::unpack::UnpackLimits;

pub use pull::{ProgressFn, PullProgress};
pub use record::ImageRecord;

pub(crate) use record::write_atomically;

/// How a store behaves.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// File of mirrors and credentials (see [`RegistriesConfig`](crate::RegistriesConfig)), read at each pull; it need not exist.
    pub registries_file: Option<PathBuf>,
    /// How transient failures are tried again.
    pub retry: RetryPolicy,
    /// Bounds on layers.
    pub limits: UnpackLimits,
}

/// What a clean-up removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Images whose records were removed.
    pub images: Vec<ImageId>,
    /// Layers that were removed.
    pub layers: Vec<Digest>,
}

/// A node's images. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

type PullResult = Result<Arc<ImageRecord>, PullError>;
type PullKey = (ImageReference, PullAuth);

struct Inner {
    dir: PathBuf,
    config: ImageConfig,
    records: Mutex<HashMap<ImageId, Arc<ImageRecord>>>,
    pulls: Mutex<HashMap<PullKey, WeakShared<BoxFuture<'static, PullResult>>>>,
    layer_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Layers that something under way counts on, and how often.
    pins: Mutex<HashMap<Digest, usize>>,
    snapshots: Snapshots,
}

/// Keeps layers from being removed while it lives.
struct Pin {
    inner: Arc<Inner>,
    layers: Vec<Digest>,
}

impl ImageStore {
    /// Opens or makes the store in `dir` and removes what an interrupted pull left. One process at a time: the
    /// caller holds the lock of the data directory.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be made or read.
    pub fn open(dir: &Path, config: ImageConfig) -> Result<ImageStore, StoreError> {
        // Fails only if there is a provider already, which is then used.
        let _previous = rustls::crypto::ring::default_provider().install_default();
        let ingest = dir.join("ingest");
        if ingest.exists() {
            fs::remove_dir_all(&ingest).map_err(StoreError::io("empty", &ingest))?;
        }
        for sub in ["images", "layers", "containers", "ingest"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(StoreError::io("make", &path))?;
            // Unpacked set-uid programs are not for users of this machine.
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(&path, private).map_err(StoreError::io("protect", &path))?;
        }
        let dir = fs::canonicalize(dir).map_err(StoreError::io("open", dir))?;
        let records = record::load_all(&dir.join("images"))?;
        let snapshots = Snapshots::new(dir.join("containers"), dir.join("layers"));
        let inner = Inner {
            dir,
            config,
            records: Mutex::new(records),
            pulls: Mutex::default(),
            layer_locks: Mutex::default(),
            pins: Mutex::default(),
            snapshots,
        };
        Ok(ImageStore {
            inner: Arc::new(inner),
        })
    }

    /// Fetches an image, or what has changed of it. Calls for the same image with the same credentials share
    /// one pull, and one progress callback: the first caller's.
    ///
    /// # Errors
    /// [`PullError`]; its [`message`](PullError::message) is fit for an event.
    pub async fn pull(
        &self,
        reference: &str,
        auth: PullAuth,
        progress: Option<ProgressFn>,
    ) -> Result<Arc<ImageRecord>, PullError> {
        let parsed: ImageReference = reference
            .parse()
            .map_err(|e| PullError::new(reference, PullFailure::Reference(e)))?;
        let key = (parsed, auth);
        let shared = {
            let mut pulls = self.inner.pulls.lock();
            match pulls.get(&key).and_then(WeakShared::upgrade) {
                Some(running) => running,
                None => {
                    let started = pull::run(Arc::clone(&self.inner), key.clone(), progress)
                        .boxed()
                        .shared();
                    if let Some(weak) = started.downgrade() {
                        pulls.insert(key, weak);
                    }
                    started
                }
            }
        };
        shared.await
    }

    /// Finds an image by name, by repository digest (`name@sha256:...`) or by id.
    #[must_use]
    pub fn get(&self, reference: &str) -> Option<Arc<ImageRecord>> {
        let records = self.inner.records.lock();
        if let Ok(id) = reference.parse::<Digest>() {
            return records.get(&id).cloned();
        }
        let parsed: ImageReference = reference.parse().ok()?;
        records
            .values()
            .find(|record| record.is_named(&parsed))
            .cloned()
    }

    /// All images, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        let mut all: Vec<_> = self.inner.records.lock().values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Forgets an image and removes the layers that nothing else needs. An unknown image is success.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if a snapshot is made from it, or [`StoreError::Io`].
    pub async fn remove(&self, id: &ImageId) -> Result<GcReport, StoreError> {
        let id = id.clone();
        self.blocking(move |inner| {
            let snapshots = inner.snapshots.list().map_err(SnapshotError::into_store)?;
            if let Some(snapshot) = snapshots.iter().find(|s| s.image == id) {
                return Err(StoreError::InUse {
                    id,
                    container: snapshot.key.clone(),
                });
            }
            let images = if inner.forget(&id)? {
                vec![id]
            } else {
                Vec::new()
            };
            Ok(GcReport {
                images,
                layers: inner.remove_unused_layers()?,
            })
        })
        .await
    }

    /// Removes every image that is neither in `in_use` nor under a snapshot, and every layer that no image
    /// or snapshot needs. Images that are being pulled are left alone.
    ///
    /// # Errors
    /// [`StoreError`] if something cannot be read or removed.
    pub async fn gc(&self, in_use: &HashSet<ImageId>) -> Result<GcReport, StoreError> {
        let mut keep = in_use.clone();
        self.blocking(move |inner| {
            let snapshots = inner.snapshots.list().map_err(SnapshotError::into_store)?;
            keep.extend(snapshots.into_iter().map(|s| s.image));
            let unused: Vec<ImageId> = inner
                .records
                .lock()
                .keys()
                .filter(|id| !keep.contains(*id))
                .cloned()
                .collect();
            let mut images = Vec::new();
            for id in unused {
                if inner.forget(&id)? {
                    images.push(id);
                }
            }
            Ok(GcReport {
                images,
                layers: inner.remove_unused_layers()?,
            })
        })
        .await
    }

    /// Mounts a writable root filesystem of `image` for the container `key` (letters, digits, `-_.`). If it is
    /// there already, it is kept as it is and only mounted if it is not.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing is left mounted.
    pub async fn prepare(&self, key: &str, image: &ImageRecord) -> Result<Mount, SnapshotError> {
        let key = key.to_owned();
        let (id, layers) = (image.id.clone(), image.layers.clone());
        self.blocking(move |inner| {
            let pin = Inner::pin(&inner, layers.clone());
            let mount = inner.snapshots.prepare(&key, &id, &layers);
            drop(pin);
            Ok(mount)
        })
        .await
        .unwrap_or(Err(SnapshotError::Interrupted))
    }

    /// Unmounts and removes a container's root filesystem. An absent one is success.
    ///
    /// # Errors
    /// [`SnapshotError`] if it cannot be unmounted or removed.
    pub async fn release(&self, key: &str) -> Result<(), SnapshotError> {
        let key = key.to_owned();
        self.blocking(move |inner| Ok(inner.snapshots.release(&key)))
            .await
            .unwrap_or(Err(SnapshotError::Interrupted))
    }

    /// Every snapshot on disk, mounted or not.
    ///
    /// # Errors
    /// [`SnapshotError`] if the directory cannot be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        self.inner.snapshots.list()
    }

    /// Releases every snapshot whose key is not in `known`; returns the keys of those that are gone. One that
    /// cannot be released is logged and does not stop the others.
    ///
    /// # Errors
    /// [`SnapshotError`] if the directory cannot be read.
    pub async fn sweep_snapshots(
        &self,
        known: &HashSet<String>,
    ) -> Result<Vec<String>, SnapshotError> {
        let known = known.clone();
        self.blocking(move |inner| Ok(inner.snapshots.sweep(&known)))
            .await
            .unwrap_or(Err(SnapshotError::Interrupted))
    }

    /// The directory that the store was opened in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Inner>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(inner)).await {
            Ok(result) => result,
            Err(_join) => Err(StoreError::Interrupted),
        }
    }
}

impl Inner {
    fn pin(inner: &Arc<Inner>, layers: Vec<Digest>) -> Pin {
        let mut pins = inner.pins.lock();
        for layer in &layers {
            *pins.entry(layer.clone()).or_default() += 1;
        }
        drop(pins);
        Pin {
            inner: Arc::clone(inner),
            layers,
        }
    }

    fn layer_dir(&self, layer: &Digest) -> PathBuf {
        self.dir.join("layers").join(layer.file_name())
    }

    /// Two pulls that need one layer: the second waits and finds it.
    fn layer_lock(&self, layer: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.layer_locks.lock();
        if let Some(lock) = locks.get(layer).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(layer.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Removes the record of an image; false if there was none.
    fn forget(&self, id: &ImageId) -> Result<bool, StoreError> {
        let mut records = self.records.lock();
        if records.contains_key(id) {
            record::delete(&self.dir.join("images"), id)?;
        }
        Ok(records.remove(id).is_some())
    }

    /// Keeps a record; the names it has now are taken from other records.
    fn commit(&self, mut new: ImageRecord) -> Result<Arc<ImageRecord>, StoreError> {
        let images = self.dir.join("images");
        let mut records = self.records.lock();
        if let Some(old) = records.get(&new.id) {
            new.take_in(old);
        }
        record::save(&images, &new)?;
        let losers: Vec<Arc<ImageRecord>> = records
            .values()
            .filter(|old| old.id != new.id && old.names.iter().any(|name| new.names.contains(name)))
            .cloned()
            .collect();
        for old in losers {
            let mut without = (*old).clone();
            without.names.retain(|name| !new.names.contains(name));
            record::save(&images, &without)?;
            records.insert(without.id.clone(), Arc::new(without));
        }
        let new = Arc::new(new);
        records.insert(new.id.clone(), Arc::clone(&new));
        Ok(new)
    }

    fn remove_unused_layers(&self) -> Result<Vec<Digest>, StoreError> {
        let layers = self.dir.join("layers");
        let mut removed = Vec::new();
        let mut trash = Vec::new();
        {
            // Held until the last rename: who pins a layer after this looks for it after this.
            let pins = self.pins.lock();
            let mut needed: HashSet<Digest> = pins.keys().cloned().collect();
            needed.extend(
                self.records
                    .lock()
                    .values()
                    .flat_map(|record| record.layers.clone()),
            );
            let snapshots = self.snapshots.list().map_err(SnapshotError::into_store)?;
            needed.extend(snapshots.into_iter().flat_map(|snapshot| snapshot.layers));
            for item in fs::read_dir(&layers).map_err(StoreError::io("read", &layers))? {
                let item = item.map_err(StoreError::io("read", &layers))?;
                let name = item.file_name();
                let Some(layer) = name.to_str().and_then(Digest::from_file_name) else {
                    continue;
                };
                if needed.contains(&layer) {
                    continue;
                }
                let to = self
                    .dir
                    .join("ingest")
                    .join(format!("removed-{}", layer.file_name()));
                fs::rename(item.path(), &to).map_err(StoreError::io("remove", item.path()))?;
                trash.push(to);
                removed.push(layer);
            }
        }
        for path in trash {
            fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(removed)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.inner.pins.lock();
        for layer in &self.layers {
            if let Some(count) = pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(layer);
                }
            }
        }
    }
}
