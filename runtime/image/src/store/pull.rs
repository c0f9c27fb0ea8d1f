//! One pull, from the reference to the record.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{StreamExt as _, TryStreamExt as _};

use super::record::{ImageRecord, write_atomically};
use super::{Inner, PullKey, PullResult};
use crate::auth::PullAuth;
use crate::digest::Digest;
use crate::error::{PullError, PullFailure, StoreError};
use crate::manifest::{Configuration, Descriptor, Manifest, Platform};
use crate::reference::ImageReference;
use crate::registry::{EndpointFailures, RegistriesConfig, Remote, plan_endpoints};
use crate::unpack::{UnpackLimits, unpack};

/// Layers of one image that are downloaded and unpacked at once.
const LAYERS_AT_ONCE: usize = 3;
/// Largest image configuration.
const MAX_CONFIGURATION: u64 = 8 << 20;
/// Most layers: overlayfs takes no more.
const MAX_LAYERS: usize = 500;

/// How far a pull is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes of all layers, as downloaded.
    pub total_bytes: u64,
    /// Bytes that are here. May fall when a download starts over.
    pub done_bytes: u64,
}

/// Is told of progress now and then; must not block.
pub type ProgressFn = Arc<dyn Fn(PullProgress) + Send + Sync>;

struct Meter {
    total: u64,
    done: AtomicU64,
    report: Option<ProgressFn>,
}

impl Meter {
    fn set(&self, change: impl Fn(u64) -> u64) {
        let done = self
            .done
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(change(n)));
        if let (Some(report), Ok(before)) = (&self.report, done) {
            report(PullProgress {
                total_bytes: self.total,
                done_bytes: change(before).min(self.total),
            });
        }
    }
}

/// Pulls, and takes the pull off the list of those under way.
pub(super) async fn run(
    inner: Arc<Inner>,
    key: PullKey,
    progress: Option<ProgressFn>,
) -> PullResult {
    let (reference, auth) = key.clone();
    let started = std::time::Instant::now();
    let result = pull(&inner, &reference, &auth, progress).await;
    inner.pulls.lock().remove(&key);
    match result {
        Ok(record) => {
            tracing::info!(image = %reference, id = %record.id, elapsed = ?started.elapsed(), "image pulled");
            Ok(record)
        }
        Err(failure) => Err(PullError::new(reference.to_string(), failure)),
    }
}

async fn pull(
    inner: &Arc<Inner>,
    reference: &ImageReference,
    auth: &PullAuth,
    progress: Option<ProgressFn>,
) -> Result<Arc<ImageRecord>, PullFailure> {
    let registries = match &inner.config.registries_file {
        Some(path) => RegistriesConfig::load(path)?,
        None => RegistriesConfig::default(),
    };
    let endpoints = plan_endpoints(reference, &registries, auth);
    let remote = Arc::new(Remote {
        endpoints,
        retry: inner.config.retry,
    });
    let platform = Platform::current();
    let (resolved, config, layers) = resolve(&remote, reference, &platform).await?;
    let configuration = fetch_configuration(inner, &remote, &config).await?;
    if !configuration.fits(&platform) {
        return Err(PullFailure::Platform {
            platform: platform.label(),
        });
    }
    if configuration.diff_ids.len() != layers.len() {
        let (diffs, layers) = (configuration.diff_ids.len(), layers.len());
        return Err(PullFailure::Image(format!(
            "configuration has {diffs} diff ids for {layers} layers"
        )));
    }
    let pin = Inner::pin(inner, configuration.diff_ids.clone());
    let size = |sum: u64, layer: &Descriptor| sum.saturating_add(layer.size);
    let total = layers.iter().fold(0, size);
    let meter = Arc::new(Meter {
        total,
        done: AtomicU64::new(0),
        report: progress,
    });
    // Each future owns what it needs: the pull is shared, hence 'static.
    let work: Vec<_> = layers
        .into_iter()
        .zip(configuration.diff_ids.clone())
        .map(|(layer, diff_id)| {
            ensure_layer(
                Arc::clone(inner),
                Arc::clone(&remote),
                layer,
                diff_id,
                Arc::clone(&meter),
            )
        })
        .collect();
    futures::stream::iter(work)
        .buffer_unordered(LAYERS_AT_ONCE)
        .try_collect::<()>()
        .await?;

    let record = ImageRecord {
        id: config.digest.clone(),
        names: reference.tagged_name().into_iter().collect(),
        repo_digests: vec![format!("{}@{resolved}", reference.name())],
        size: total.saturating_add(config.size),
        layers: configuration.diff_ids,
        config: configuration.run,
        pulled_at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
    };
    let record = inner.commit(record)?;
    drop(pin);
    Ok(record)
}

/// The digest that the reference stands for, and the configuration and layers for this platform.
async fn resolve(
    remote: &Remote,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<(Digest, Descriptor, Vec<Descriptor>), PullFailure> {
    let unresolved = |source: EndpointFailures| PullFailure::Resolve {
        reference: reference.to_string(),
        source,
    };
    let (body, resolved) = remote.resolve(reference).await.map_err(unresolved)?;
    let mut manifest = Manifest::parse(&body)?;
    // An index may name another index; more than that nobody does.
    for _ in 0..2 {
        let Manifest::Index(manifests) = &manifest else {
            break;
        };
        let chosen = platform
            .choose(manifests)
            .ok_or_else(|| PullFailure::Platform {
                platform: platform.label(),
            })?;
        let (body, _) = remote
            .manifest(Some(&chosen.digest), None)
            .await
            .map_err(unresolved)?;
        manifest = Manifest::parse(&body)?;
    }
    match manifest {
        Manifest::Image { layers, .. } if layers.len() > MAX_LAYERS => {
            Err(PullFailure::Image(format!(
                "{} layers, at most {MAX_LAYERS} are supported",
                layers.len()
            )))
        }
        Manifest::Image { config, layers } => Ok((resolved, config, layers)),
        Manifest::Index(_) => Err(PullFailure::Image(
            "index of an index of an index".to_owned(),
        )),
    }
}

async fn fetch_configuration(
    inner: &Inner,
    remote: &Remote,
    descriptor: &Descriptor,
) -> Result<Configuration, PullFailure> {
    if descriptor.size > MAX_CONFIGURATION {
        return Err(PullFailure::Image(format!(
            "configuration has {} bytes",
            descriptor.size
        )));
    }
    if !descriptor.media_type.is_empty() && !descriptor.media_type.contains("image") {
        return Err(PullFailure::Image(format!(
            "{} is not a container image",
            descriptor.media_type
        )));
    }
    let file = download(inner, remote, descriptor, &|_| {}).await?;
    let path = inner.dir.join("ingest");
    let body = tokio::task::spawn_blocking(move || read_all(file)).await;
    let body = body
        .map_err(|_join| StoreError::Interrupted)?
        .map_err(StoreError::io("read a download in", path))?;
    Configuration::parse(&body)
}

fn read_all(mut file: File) -> std::io::Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _};
    file.rewind()?;
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    Ok(body)
}

/// Downloads a blob, verified, to a file without a name: it goes with its descriptor.
async fn download(
    inner: &Inner,
    remote: &Remote,
    descriptor: &Descriptor,
    on_bytes: &(dyn Fn(u64) + Send + Sync),
) -> Result<File, PullFailure> {
    let ingest = inner.dir.join("ingest");
    let file = tempfile::tempfile_in(&ingest).map_err(StoreError::io("make a file in", &ingest))?;
    let mut file = tokio::fs::File::from_std(file);
    remote
        .blob(descriptor, &mut file, on_bytes)
        .await
        .map_err(|source| PullFailure::Blob {
            digest: descriptor.digest.to_string(),
            source,
        })?;
    Ok(file.into_std().await)
}

async fn ensure_layer(
    inner: Arc<Inner>,
    remote: Arc<Remote>,
    layer: Descriptor,
    diff_id: Digest,
    meter: Arc<Meter>,
) -> Result<(), PullFailure> {
    let lock = inner.layer_lock(&diff_id);
    let held = lock.lock_owned().await;
    if inner.layer_dir(&diff_id).join("layer.json").exists() {
        meter.set(|done| done + layer.size);
        return Ok(());
    }
    let counted = AtomicU64::new(0);
    let on_bytes = |n: u64| {
        counted.fetch_add(n, Ordering::Relaxed);
        meter.set(|done| done + n);
    };
    let blob = download(&inner, &remote, &layer, &on_bytes).await?;
    // What failed attempts counted is taken back.
    let surplus = counted.load(Ordering::Relaxed).saturating_sub(layer.size);
    meter.set(|done| done.saturating_sub(surplus));
    // Finishes even if the pull is cancelled, so it keeps the lock.
    tokio::task::spawn_blocking(move || {
        let _held = held;
        unpack_layer(&inner, blob, &diff_id, inner.config.limits)
    })
    .await
    .map_err(|_join| StoreError::Interrupted)?
}

/// Unpacks to one side, makes it durable, then puts it in place.
fn unpack_layer(
    inner: &Inner,
    blob: File,
    diff_id: &Digest,
    limits: UnpackLimits,
) -> Result<(), PullFailure> {
    let ingest = inner.dir.join("ingest");
    let staging =
        tempfile::tempdir_in(&ingest).map_err(StoreError::io("make a directory in", &ingest))?;
    let diff = staging.path().join("diff");
    make_dir(&diff, 0o755)?;
    let unpacked = unpack(blob, &diff, diff_id, limits).map_err(|source| PullFailure::Unpack {
        diff_id: diff_id.clone(),
        source,
    })?;
    let marker = serde_json::json!({
        "diffId": diff_id,
        "bytes": unpacked.bytes,
        "entries": unpacked.entries,
        "implicit": unpacked.implicit,
    });
    write_atomically(&staging.path().join("layer.json"), &marker)?;
    let root = File::open(staging.path()).map_err(StoreError::io("open", staging.path()))?;
    rustix::fs::syncfs(&root).map_err(|e| StoreError::io("sync", staging.path())(e.into()))?;
    let place = inner.layer_dir(diff_id);
    if place.exists() {
        // Without its marker: an older version's, or damaged.
        fs::remove_dir_all(&place).map_err(StoreError::io("remove", &place))?;
    }
    fs::rename(staging.path(), &place).map_err(StoreError::io("move a layer to", &place))?;
    // Moved away: there is nothing left to remove.
    let _moved = staging.keep();
    let layers = inner.dir.join("layers");
    File::open(&layers)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::io("sync", &layers))?;
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::create_dir(path).map_err(StoreError::io("make", path))?;
    // Whatever the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(StoreError::io("protect", path))
}
