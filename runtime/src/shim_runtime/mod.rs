//! [`ShimRuntime`]: the [`Runtime`] whose containers are children of per-pod shims.
//!
//! Holds one connection per pod, with one task that reads from it. Nothing is remembered here that is not in
//! the pod's directory too: [`ShimRuntime::open`] finds the same pods that an earlier daemon left.

mod attach;
mod container;
mod exec;
mod pod;
mod sandbox;
mod sweep;

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use skiff_netns::NodeNetns;
use tokio::{sync::broadcast, task::JoinSet};

use self::pod::Pod;
use crate::{
    AttachConfig, AttachSession, ContainerConfig, ContainerRef, ContainerStats, ExecConfig,
    ExecSession, PodRecord, Runtime, RuntimeError, RuntimeEvent, Sandbox, SandboxConfig,
    cgroup::NodeCgroups,
    container_spec::Privileges,
    layout::{PID_FILE, PodDir},
    spawn,
};

/// Events that a slow receiver may lag behind before it has to look at everything again.
const EVENT_BACKLOG: usize = 1024;

/// What a [`ShimRuntime`] is made from.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Run directory of the node, e.g. `/run/skiff`.
    pub run_dir: PathBuf,
    /// Executable of the shim.
    pub shim_path: PathBuf,
    /// The node's cgroup in every hierarchy, e.g. `/` or `/skiff-demo`.
    pub cgroup_root: PathBuf,
    /// The node's network namespace, for pods that share it.
    pub node_netns: NodeNetns,
    /// Where pods' network namespaces are pinned: `/run/netns`, as `ip netns` has it.
    pub netns_dir: PathBuf,
}

impl RuntimeConfig {
    /// The machine's own node with the shim that lies beside this executable or, failing that, `skiff-shim`.
    #[must_use]
    pub fn new(run_dir: PathBuf) -> Self {
        let beside = std::env::current_exe().ok().and_then(|own| {
            let shim = own.parent()?.join("skiff-shim");
            shim.exists().then_some(shim)
        });
        Self {
            run_dir,
            shim_path: beside.unwrap_or_else(|| PathBuf::from("/usr/local/bin/skiff-shim")),
            cgroup_root: PathBuf::from("/"),
            node_netns: NodeNetns::machine(),
            netns_dir: PathBuf::from("/run/netns"),
        }
    }
}

/// Runs pods through shims. Dropping it leaves everything running.
pub struct ShimRuntime {
    shared: Arc<Shared>,
    /// One reader per pod and one resizer per terminal; ended with this value.
    tasks: Mutex<JoinSet<()>>,
}

/// What tasks and blocking calls need too.
struct Shared {
    config: RuntimeConfig,
    cgroups: NodeCgroups,
    privileges: Privileges,
    shim: OwnedFd,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl ShimRuntime {
    /// Opens the run directory and adopts the sandboxes in it. What an earlier daemon left half-made is
    /// removed.
    ///
    /// # Errors
    /// [`RuntimeError`] if the shim's executable, the cgroup hierarchies or the run directory are not usable.
    pub async fn open(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let pods_dir = config.run_dir.join("pods");
        std::fs::create_dir_all(&pods_dir)
            .map_err(|source| RuntimeError::io("making", &pods_dir, source))?;
        let cgroups = NodeCgroups::detect(&config.cgroup_root)?;
        let shim = open_shim(&config.shim_path)?;
        let shared = Arc::new(Shared {
            config,
            cgroups,
            privileges: Privileges::own(),
            shim,
            pods: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
        });
        let runtime = Self {
            shared,
            tasks: Mutex::default(),
        };
        for uid in directories(&pods_dir)? {
            // One pod's trouble is not the node's: what is not adopted is made anew or swept.
            if let Err(error) = runtime.adopt(&uid).await {
                tracing::warn!(pod_uid = uid, %error, "adopting a sandbox");
            }
        }
        Ok(runtime)
    }

    /// See [`NodeCgroups::expect_entry`]. Nobody waits for it.
    fn expect_entry(&self, uid: &str, dir: &PodDir) {
        let pid = std::fs::read_to_string(dir.file(PID_FILE)).ok();
        let Some(pid) = pid.and_then(|text| text.trim().parse().ok()) else {
            return;
        };
        let (shared, uid) = (Arc::clone(&self.shared), uid.to_owned());
        self.tasks
            .lock()
            .spawn_blocking(move || shared.cgroups.expect_entry(&uid, pid));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl Shared {
    fn dir(&self, uid: &str) -> PodDir {
        PodDir::new(&self.config.run_dir, uid)
    }

    fn pod(&self, uid: &str) -> Result<Arc<Pod>, RuntimeError> {
        let pods = self.pods.lock();
        let pod = pods.get(uid).map(Arc::clone);
        pod.ok_or_else(|| RuntimeError::NotFound {
            what: "sandbox",
            id: uid.to_owned(),
        })
    }

    fn announce(&self, event: RuntimeEvent) {
        // Without a receiver there is nobody to tell.
        self.events.send(event).ok();
    }
}

fn open_shim(path: &Path) -> Result<OwnedFd, RuntimeError> {
    let at = |source| RuntimeError::io("opening", path, source);
    spawn::sealed_executable(path).or_else(|error| match error.raw_os_error() {
        // Before Linux 5.12, or in a sandbox that forbids mounts.
        Some(libc::ENOSYS | libc::EPERM) => {
            tracing::warn!(%error, "the shim's executable cannot be sealed");
            std::fs::File::open(path).map(Into::into).map_err(at)
        }
        _ => Err(at(error)),
    })
}

/// Names of the directories in `path`.
fn directories(path: &Path) -> Result<Vec<String>, RuntimeError> {
    let at = |source| RuntimeError::io("reading", path, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?;
        if entry.file_type().map_err(at)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Runs what waits for the kernel off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_cancelled: tokio::task::JoinError| Err(RuntimeError::ShuttingDown))
}

#[async_trait]
impl Runtime for ShimRuntime {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError> {
        self.make_sandbox(config).await
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        self.unmake_sandbox(pod_uid).await
    }

    async fn start_container(&self, config: ContainerConfig) -> Result<ContainerRef, RuntimeError> {
        self.start(config).await
    }

    async fn stop_container(
        &self,
        id: &ContainerRef,
        signal: i32,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.stop(id, signal, grace).await
    }

    async fn remove_container(&self, id: &ContainerRef) -> Result<(), RuntimeError> {
        self.remove(id).await
    }

    async fn list(&self) -> Result<Vec<PodRecord>, RuntimeError> {
        let pods: Vec<Arc<Pod>> = self.shared.pods.lock().values().map(Arc::clone).collect();
        blocking(move || pods.iter().map(|pod| pod.record()).collect()).await
    }

    async fn pod(&self, pod_uid: &str) -> Result<PodRecord, RuntimeError> {
        let pod = self.shared.pod(pod_uid)?;
        blocking(move || pod.record()).await
    }

    async fn exec(
        &self,
        id: &ContainerRef,
        config: ExecConfig,
    ) -> Result<ExecSession, RuntimeError> {
        self.run_command(id, config).await
    }

    async fn attach(
        &self,
        id: &ContainerRef,
        config: AttachConfig,
    ) -> Result<AttachSession, RuntimeError> {
        self.connect_client(id, config).await
    }

    async fn stats(&self, id: &ContainerRef) -> Result<ContainerStats, RuntimeError> {
        let shared = Arc::clone(&self.shared);
        let id = id.clone();
        blocking(move || shared.cgroups.stats(&id.pod_uid, &id.container_id)).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.shared.events.subscribe()
    }
}
