//! One pod as the daemon sees it: its directory, its files, and the connection to its shim.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::directories;
use crate::{
    ContainerRef, ContainerState, ContainerStatus, ExitStatus, PodRecord, RuntimeError, Sandbox,
    client::ShimClient,
    files::{self, ContainerRecord, RunState},
    layout::{CONTAINER_FILE, EXIT_FILE, PodDir, STATE_FILE},
};

/// Exit code of a container whose end nobody saw, as the kubelet has it.
const EXIT_UNKNOWN: i32 = 137;
/// Exit code of a container that never started, as containerd has it.
pub(super) const EXIT_NOT_STARTED: i32 = 128;

/// A sandbox that this daemon knows.
pub(super) struct Pod {
    pub uid: String,
    pub dir: PodDir,
    pub sandbox: Sandbox,
    /// `None` if the shim was gone when the pod was adopted.
    client: RwLock<Option<Arc<ShimClient>>>,
    /// Changes with every container event.
    pub changed: watch::Sender<()>,
    /// Held while a lost shim's containers are written down: whoever notices first does it.
    pub burial: Mutex<()>,
    /// The shim is being ended on purpose.
    pub closing: AtomicBool,
}

impl Pod {
    pub(super) fn new(dir: PodDir, sandbox: Sandbox, client: Option<Arc<ShimClient>>) -> Self {
        Self {
            uid: sandbox.config.pod_uid.clone(),
            dir,
            sandbox,
            client: RwLock::new(client),
            changed: watch::channel(()).0,
            burial: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    pub(super) fn client(&self) -> Result<Arc<ShimClient>, RuntimeError> {
        let client = self.client.read().as_ref().map(Arc::clone);
        client.ok_or_else(|| RuntimeError::ShimLost {
            pod_uid: self.uid.clone(),
        })
    }

    /// `None` if the shim is gone.
    pub(super) fn set_client(&self, client: Option<Arc<ShimClient>>) {
        *self.client.write() = client;
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Everything on file about the pod, oldest container first.
    pub(super) fn record(&self) -> Result<PodRecord, RuntimeError> {
        let mut containers = Vec::new();
        for id in self.container_ids()? {
            containers.extend(self.status(&id)?);
        }
        containers.sort_by_key(|container: &ContainerStatus| container.created_at);
        Ok(PodRecord {
            sandbox: self.sandbox.clone(),
            containers,
        })
    }

    pub(super) fn container_ids(&self) -> Result<Vec<String>, RuntimeError> {
        match directories(&self.dir.containers()) {
            Err(RuntimeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            result => result,
        }
    }

    /// What is on file about one container; `None` if there is none.
    pub(super) fn status(&self, id: &str) -> Result<Option<ContainerStatus>, RuntimeError> {
        let dir = self.dir.container(id);
        let Some(record) = files::read::<ContainerRecord>(&dir.join(CONTAINER_FILE))? else {
            return Ok(None);
        };
        Ok(Some(ContainerStatus {
            id: ContainerRef {
                pod_uid: self.uid.clone(),
                container_id: id.to_owned(),
            },
            name: record.name,
            restart_count: record.restart_count,
            created_at: record.created_at,
            state: state(&dir)?,
            annotations: record.annotations,
        }))
    }

    /// Writes down the end of every container whose end cannot be learned any more.
    ///
    /// `known` are the containers that a living shim still looks after.
    pub(super) fn bury_containers(&self, known: &[String]) -> Result<(), RuntimeError> {
        for id in self.container_ids()? {
            let dir = self.dir.container(&id);
            if known.contains(&id) || dir.join(EXIT_FILE).exists() {
                continue;
            }
            let run: Option<RunState> = files::read(&dir.join(STATE_FILE))?;
            let status = match run {
                Some(run) => ended(Some(run.started_at), EXIT_UNKNOWN, "the pod's shim is gone"),
                None => ended(None, EXIT_NOT_STARTED, "the start was interrupted"),
            };
            files::write(&dir.join(EXIT_FILE), &status)?;
        }
        Ok(())
    }
}

/// The end of a container that did not end by itself.
pub(super) fn ended(started_at: Option<Timestamp>, exit_code: i32, message: &str) -> ExitStatus {
    ExitStatus {
        started_at,
        finished_at: Timestamp::now(),
        exit_code,
        signal: None,
        oom_killed: false,
        message: Some(message.to_owned()),
    }
}

fn state(dir: &Path) -> Result<ContainerState, RuntimeError> {
    // In this order: the exit file is written last.
    let run: Option<RunState> = files::read(&dir.join(STATE_FILE))?;
    Ok(match (files::read(&dir.join(EXIT_FILE))?, run) {
        (Some(exit), _) => ContainerState::Exited(exit),
        (None, Some(run)) => ContainerState::Running {
            started_at: run.started_at,
            pid: run.pid,
        },
        (None, None) => ContainerState::Created,
    })
}

/// Removes a directory with all that is in it; absent is success.
pub(super) fn remove_dir(path: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| RuntimeError::io("removing", path, source)),
    }
}
