//! Making, adopting and removing sandboxes.

use std::{
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use skiff_netns::{SandboxNamespaces, create_sandbox, delete_pinned, delete_sandbox};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Shared, ShimRuntime, blocking,
    pod::{Pod, remove_dir},
};
use crate::{
    RuntimeError, RuntimeEvent, Sandbox, SandboxConfig,
    client::{self, ShimClient},
    files,
    layout::{PID_FILE, PodDir, SANDBOX_FILE, SHIM_LOG_FILE},
    protocol::{self, Operation, Reply},
    spawn::{self, ShimProcess},
};

/// How long a shim may take to answer for the first time, and to end its containers.
const SHIM_TIMEOUT: Duration = Duration::from_secs(10);

impl ShimRuntime {
    pub(super) async fn make_sandbox(
        &self,
        config: SandboxConfig,
    ) -> Result<Sandbox, RuntimeError> {
        if let Ok(pod) = self.shared.pod(&config.pod_uid) {
            return Ok(pod.sandbox.clone());
        }
        check_uid(&config.pod_uid)?;
        let uid = config.pod_uid.clone();
        match self.try_make_sandbox(config).await {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                let shared = Arc::clone(&self.shared);
                if let Err(error) = blocking(move || shared.clear(&uid)).await {
                    tracing::warn!(%error, "undoing a sandbox that could not be made");
                }
                Err(error)
            }
        }
    }

    async fn try_make_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let shared = Arc::clone(&self.shared);
        let (sandbox, pidfd) = blocking(move || shared.make(config)).await?;
        let uid = &sandbox.config.pod_uid;
        let dir = self.shared.dir(uid);
        let client = ShimClient::connect(uid, dir.path())?;
        let pod = Arc::new(Pod::new(dir.clone(), sandbox.clone(), Some(client)));
        self.watch(&pod, Some(pidfd));
        if let Err(error) = greet(&pod).await {
            pod.closing.store(true, Ordering::Release);
            return Err(with_last_words(error, &dir));
        }
        files::write(&dir.file(SANDBOX_FILE), &sandbox)?;
        // Its first container is next.
        self.expect_entry(uid, &dir);
        self.shared.pods.lock().insert(uid.clone(), pod);
        Ok(sandbox)
    }

    /// Takes over a pod that an earlier daemon made.
    pub(super) async fn adopt(&self, uid: &str) -> Result<(), RuntimeError> {
        let dir = self.shared.dir(uid);
        let Some(sandbox) = files::read::<Sandbox>(&dir.file(SANDBOX_FILE))? else {
            tracing::info!(pod_uid = uid, "removing a sandbox that was never finished");
            let shared = Arc::clone(&self.shared);
            let uid = uid.to_owned();
            return blocking(move || shared.clear(&uid)).await;
        };
        let client = ShimClient::connect(uid, dir.path()).ok();
        let pod = Arc::new(Pod::new(dir.clone(), sandbox.clone(), client));
        self.watch(&pod, self.shared.adopted_pidfd(&dir));
        match self.ask_state(&pod).await {
            Ok(known) => pod.bury_containers(&known)?,
            Err(error) => {
                tracing::warn!(pod_uid = uid, %error, "the shim is gone");
                pod.set_client(None);
                let (shared, lost) = (Arc::clone(&self.shared), Arc::clone(&pod));
                blocking(move || shared.bury(&lost)).await?;
            }
        }
        self.shared.pods.lock().insert(uid.to_owned(), pod);
        Ok(())
    }

    pub(super) async fn unmake_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        check_uid(uid)?;
        let pod = self.shared.pods.lock().get(uid).map(Arc::clone);
        if let Some(pod) = pod {
            pod.closing.store(true, Ordering::Release);
            if let Ok(client) = pod.client() {
                let shutdown = client.call("shutdown", Operation::Shutdown, &[]);
                // A shim that does not go by itself is killed with its cgroup.
                if !matches!(timeout(SHIM_TIMEOUT, shutdown).await, Ok(Ok(_))) {
                    tracing::warn!(pod_uid = uid, "the shim did not end its containers");
                }
            }
        }
        let shared = Arc::clone(&self.shared);
        let id = uid.to_owned();
        blocking(move || shared.clear(&id)).await?;
        self.shared.pods.lock().remove(uid);
        Ok(())
    }

    /// Starts the task that reads from a pod's shim and reaps it.
    fn watch(&self, pod: &Arc<Pod>, pidfd: Option<OwnedFd>) {
        let Ok(client) = pod.client() else { return };
        let (shared, pod) = (Arc::clone(&self.shared), Arc::clone(pod));
        self.spawn(async move {
            shared.listen(&pod, client).await;
            let closing = pod.is_closing();
            let (lost, undertaker) = (Arc::clone(&pod), Arc::clone(&shared));
            let burial = blocking(move || {
                if let Some(pidfd) = pidfd {
                    // A shim that has closed its socket, or does not answer, is dead or useless.
                    spawn::kill(&pidfd).ok();
                    spawn::reap(&pidfd);
                }
                if closing {
                    Ok(())
                } else {
                    undertaker.bury(&lost)
                }
            });
            if let Err(error) = burial.await {
                tracing::warn!(pod_uid = pod.uid, %error, "burying the containers of a lost shim");
            }
            if !closing {
                pod.changed.send_replace(());
                shared.announce(RuntimeEvent::ShimLost {
                    pod_uid: pod.uid.clone(),
                });
            }
        });
    }

    async fn ask_state(&self, pod: &Pod) -> Result<Vec<String>, RuntimeError> {
        greet(pod).await?;
        match pod
            .client()?
            .call("asking the shim's state", Operation::State, &[])
            .await?
        {
            (Reply::State { containers }, _) => Ok(containers),
            _ => Err(RuntimeError::ShimLost {
                pod_uid: pod.uid.clone(),
            }),
        }
    }
}

async fn greet(pod: &Pod) -> Result<(), RuntimeError> {
    let client = pod.client()?;
    let hello = Operation::Hello {
        version: protocol::VERSION,
    };
    match timeout(SHIM_TIMEOUT, client.call("greeting the shim", hello, &[])).await {
        Ok(result) => result.map(drop),
        Err(_elapsed) => Err(RuntimeError::ShimLost {
            pod_uid: pod.uid.clone(),
        }),
    }
}

impl Shared {
    /// Passes events on until the shim is gone. A shim drops a daemon that does not read for long: then we are
    /// connected anew.
    async fn listen(&self, pod: &Pod, mut client: Arc<ShimClient>) {
        loop {
            let (sender, mut events) = mpsc::unbounded_channel();
            // The sender goes with the read loop, which ends the forwarding.
            let forward = async {
                while events.recv().await.is_some() {
                    self.changed(pod);
                }
            };
            let greeting = async {
                let answers = greet(pod).await.is_ok();
                if !answers {
                    client.close();
                }
                answers
            };
            let ((), (), answers) = tokio::join!(client.read_loop(sender), forward, greeting);
            if pod.is_closing() || !answers {
                return;
            }
            let Ok(again) = ShimClient::connect(&pod.uid, pod.dir.path()) else {
                return;
            };
            pod.set_client(Some(Arc::clone(&again)));
            client = again;
            // Events may have been missed.
            self.changed(pod);
        }
    }

    fn changed(&self, pod: &Pod) {
        pod.changed.send_replace(());
        self.announce(RuntimeEvent::PodChanged {
            pod_uid: pod.uid.clone(),
        });
    }

    fn namespaces(&self, uid: &str) -> SandboxNamespaces {
        let dir = self.dir(uid);
        SandboxNamespaces {
            net: self.config.netns_dir.join(format!("skiff-{uid}")),
            ipc: dir.namespace("ipc"),
            uts: dir.namespace("uts"),
        }
    }

    /// Directory, shim and namespaces. The shim comes first: it starts while the namespaces are made.
    fn make(&self, config: SandboxConfig) -> Result<(Sandbox, OwnedFd), RuntimeError> {
        let uid = config.pod_uid.as_str();
        let dir = self.dir(uid);
        if dir.path().exists() {
            // A sandbox of this UID could not be removed wholly, or not be adopted.
            self.clear(uid)?;
        }
        for path in [dir.containers(), dir.file("ns")] {
            fs::create_dir_all(&path).map_err(|e| RuntimeError::io("making", &path, e))?;
        }
        let (pid, pidfd) = self.start_shim(uid, &dir)?;
        files::write_bytes(&dir.file(PID_FILE), pid.to_string().as_bytes())?;

        let namespaces = self.namespaces(uid);
        let failed = |source| RuntimeError::Namespaces {
            id: uid.to_owned(),
            source,
        };
        create_sandbox(&namespaces, &config.hostname).map_err(failed)?;
        let netns = if config.host_network {
            delete_pinned(&namespaces.net).map_err(failed)?;
            match self.config.node_netns.path() {
                Some(path) => path.to_owned(),
                None => PathBuf::from("/proc/self/ns/net"),
            }
        } else {
            namespaces.net
        };
        Ok((
            Sandbox {
                config,
                netns,
                created_at: Timestamp::now(),
            },
            pidfd,
        ))
    }

    fn start_shim(&self, uid: &str, dir: &PodDir) -> Result<(i32, OwnedFd), RuntimeError> {
        let cgroup = self.cgroups.shim_dir(uid);
        fs::create_dir_all(&cgroup).map_err(|e| RuntimeError::io("making", &cgroup, e))?;
        let cgroup_dir =
            File::open(&cgroup).map_err(|e| RuntimeError::io("opening", &cgroup, e))?;
        let at = |source| RuntimeError::io("starting the shim in", dir.path(), source);
        let pod_dir = File::open(dir.path()).map_err(at)?;
        let listener = client::listen_in(pod_dir.as_fd()).map_err(at)?;
        let log = File::create(dir.file(SHIM_LOG_FILE)).map_err(at)?;
        spawn::spawn(&ShimProcess {
            executable: self.shim.as_fd(),
            dir: pod_dir.as_fd(),
            cgroup: cgroup_dir.as_fd(),
            listener: listener.as_fd(),
            log: log.as_fd(),
            label: uid,
        })
        .map_err(at)
    }

    /// The shim of an adopted pod, to be watched. Without it the socket's end says as much.
    fn adopted_pidfd(&self, dir: &PodDir) -> Option<OwnedFd> {
        let pid = fs::read_to_string(dir.file(PID_FILE))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        // The number may be another's by now: only who is in the shim's cgroup is our shim.
        let pidfd = spawn::open_pidfd(pid).ok()?;
        let uid = dir.path().file_name()?.to_str()?;
        let members = fs::read_to_string(self.cgroups.shim_dir(uid).join("cgroup.procs")).ok()?;
        members
            .lines()
            .any(|line| line == pid.to_string())
            .then_some(pidfd)
    }

    /// Ends what a dead shim has left behind, and writes it down.
    fn bury(&self, pod: &Pod) -> Result<(), RuntimeError> {
        // Containers without a shim have nobody who reads their output or learns their end.
        let _burial = pod.burial.lock();
        self.cgroups.remove_pod(&pod.uid)?;
        pod.bury_containers(&[])
    }

    /// Removes everything of a sandbox that there is; goes on after an error and gives the first one.
    pub(super) fn clear(&self, uid: &str) -> Result<(), RuntimeError> {
        let cgroups = self.cgroups.remove_pod(uid);
        let namespaces =
            delete_sandbox(&self.namespaces(uid)).map_err(|source| RuntimeError::Namespaces {
                id: uid.to_owned(),
                source,
            });
        cgroups.and(namespaces)?;
        // Last, and only if all else is gone: the directory is what a later sweep finds it by.
        remove_dir(self.dir(uid).path())
    }
}

/// What a shim that did not come up has said.
fn with_last_words(error: RuntimeError, dir: &PodDir) -> RuntimeError {
    let words = fs::read_to_string(dir.file(SHIM_LOG_FILE)).unwrap_or_default();
    match words.lines().last() {
        Some(line) => RuntimeError::Shim {
            operation: "starting the shim",
            message: line.to_owned(),
        },
        None => error,
    }
}

/// A UID becomes a part of paths.
fn check_uid(uid: &str) -> Result<(), RuntimeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !uid.is_empty() && uid.len() <= 128 && uid.chars().all(plain) {
        return Ok(());
    }
    Err(RuntimeError::Unsupported {
        message: format!("{uid:?} as the UID of a pod"),
    })
}
