//! Starting, stopping and removing containers.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout_at};

use super::{
    Shared, ShimRuntime, blocking,
    pod::{EXIT_NOT_STARTED, Pod, ended, remove_dir},
};
use crate::{
    ContainerConfig, ContainerRef, ContainerState, RuntimeError,
    container_spec::{self, JoinedNamespaces},
    files::{self, ContainerRecord},
    layout::{CONTAINER_FILE, EXIT_FILE, SPEC_FILE},
    protocol::{Operation, StartRequest},
};

/// How long a killed container may take to end: the kernel has to free its memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

impl ShimRuntime {
    pub(super) async fn start(
        &self,
        config: ContainerConfig,
    ) -> Result<ContainerRef, RuntimeError> {
        let pod = self.shared.pod(&config.pod_uid)?;
        self.expect_entry(&pod.uid, &pod.dir);
        let (shared, owner) = (Arc::clone(&self.shared), Arc::clone(&pod));
        let prepared = blocking(move || shared.prepare(&owner, config)).await?;
        let (id, request) = match prepared {
            Prepared::Exists(id) => return Ok(id),
            Prepared::New(id, request) => (id, request),
        };
        let client = pod.client()?;
        let result = client
            .call("starting container", Operation::Start(request), &[])
            .await;
        if let Err(error) = result {
            // The shim has written this already, unless it could not.
            let exit_file = pod.dir.container(&id.container_id).join(EXIT_FILE);
            if !exit_file.exists() {
                files::write(
                    &exit_file,
                    &ended(None, EXIT_NOT_STARTED, &error.to_string()),
                )?;
            }
            return Err(error);
        }
        Ok(id)
    }

    pub(super) async fn stop(
        &self,
        id: &ContainerRef,
        signal: i32,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let Ok(pod) = self.shared.pod(&id.pod_uid) else {
            return Ok(());
        };
        if !is_running(&pod, id)? {
            return Ok(());
        }
        if !grace.is_zero() {
            self.signal(&pod, id, signal).await?;
            if ended_within(&pod, id, grace).await? {
                return Ok(());
            }
        }
        self.signal(&pod, id, Signal::SIGKILL as i32).await?;
        if ended_within(&pod, id, KILL_TIMEOUT).await? {
            return Ok(());
        }
        Err(RuntimeError::Shim {
            operation: "stopping container",
            message: format!("still there {}s after SIGKILL", KILL_TIMEOUT.as_secs()),
        })
    }

    async fn signal(&self, pod: &Pod, id: &ContainerRef, signal: i32) -> Result<(), RuntimeError> {
        let container_id = id.container_id.clone();
        let request = Operation::Signal {
            container_id,
            signal,
        };
        match pod
            .client()?
            .call("signalling container", request, &[])
            .await
        {
            // It may have ended in the meantime.
            Err(error) if is_running(pod, id)? => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn remove(&self, id: &ContainerRef) -> Result<(), RuntimeError> {
        let Ok(pod) = self.shared.pod(&id.pod_uid) else {
            return Ok(());
        };
        if is_running(&pod, id)? {
            return Err(RuntimeError::Shim {
                operation: "removing container",
                message: "it is still running".to_owned(),
            });
        }
        if let Ok(client) = pod.client() {
            let request = Operation::Delete {
                container_id: id.container_id.clone(),
            };
            match client.call("deleting container", request, &[]).await {
                // A lost shim has nothing to forget.
                Ok(_) | Err(RuntimeError::ShimLost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (shared, id) = (Arc::clone(&self.shared), id.clone());
        blocking(move || {
            shared
                .cgroups
                .remove_container(&id.pod_uid, &id.container_id)?;
            remove_dir(&shared.dir(&id.pod_uid).container(&id.container_id))
        })
        .await
    }
}

/// A container that is about to be started, or was already.
enum Prepared {
    Exists(ContainerRef),
    New(ContainerRef, StartRequest),
}

impl Shared {
    fn prepare(&self, pod: &Pod, mut config: ContainerConfig) -> Result<Prepared, RuntimeError> {
        for id in pod.container_ids()? {
            if let Some(known) = pod.status(&id)?
                && known.name == config.name
                && known.restart_count == config.restart_count
            {
                return Ok(Prepared::Exists(known.id));
            }
        }
        let container_id = new_id()?;
        let uid = pod.uid.as_str();
        container_spec::complete(
            &mut config.spec,
            &config.rootfs,
            &JoinedNamespaces {
                net: self.joined_netns(pod),
                ipc: pod.dir.namespace("ipc"),
                uts: pod.dir.namespace("uts"),
            },
            self.cgroups.container_spec_path(uid, &container_id),
            config.tty,
            self.privileges,
        )?;
        if !self.cgroups.is_v1() {
            container_spec::forbid_mknod(&mut config.spec);
        }
        let dir = pod.dir.container(&container_id);
        fs::create_dir_all(&dir).map_err(|e| RuntimeError::io("making", &dir, e))?;
        files::write(&dir.join(SPEC_FILE), &config.spec)?;
        // Last: a directory without this file is no container.
        files::write(
            &dir.join(CONTAINER_FILE),
            &ContainerRecord {
                name: config.name,
                restart_count: config.restart_count,
                created_at: Timestamp::now(),
                annotations: config.annotations,
            },
        )?;
        let request = StartRequest {
            container_id: container_id.clone(),
            dir,
            log_path: config.log_path,
            tty: config.tty,
            stdin: config.stdin,
            oom_file: Some(self.cgroups.oom_file(uid, &container_id)),
        };
        let id = ContainerRef {
            pod_uid: uid.to_owned(),
            container_id,
        };
        Ok(Prepared::New(id, request))
    }

    fn joined_netns(&self, pod: &Pod) -> Option<std::path::PathBuf> {
        if pod.sandbox.config.host_network && self.config.node_netns.path().is_none() {
            return None;
        }
        Some(pod.sandbox.netns.clone())
    }
}

fn is_running(pod: &Pod, id: &ContainerRef) -> Result<bool, RuntimeError> {
    let status = pod.status(&id.container_id)?;
    Ok(status.is_some_and(|status| !matches!(status.state, ContainerState::Exited(_))))
}

async fn ended_within(pod: &Pod, id: &ContainerRef, time: Duration) -> Result<bool, RuntimeError> {
    let deadline = Instant::now() + time;
    let mut changed = pod.changed.subscribe();
    loop {
        // After subscribing: an end before it is on file, one after it changes the value.
        if !is_running(pod, id)? {
            return Ok(true);
        }
        if timeout_at(deadline, changed.changed()).await.is_err() {
            return Ok(!is_running(pod, id)?);
        }
    }
}

fn new_id() -> Result<String, RuntimeError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 32];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| RuntimeError::io("reading", path, source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
