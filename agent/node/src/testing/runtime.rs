//! A runtime in memory. Containers run until the test ends them.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use parking_lot::Mutex;
use skiff_runtime::{
    AttachConfig, AttachSession, ContainerConfig, ContainerRef, ContainerState, ContainerStats,
    ContainerStatus, ExecConfig, ExecSession, ExitStatus, PodRecord, Runtime, RuntimeError,
    RuntimeEvent, Sandbox, SandboxConfig,
};
use tokio::sync::broadcast;

use crate::context::Clock;

pub(crate) struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, PodRecord>,
    calls: Vec<String>,
    execs: BTreeMap<String, VecDeque<i32>>,
    refuse_start: BTreeMap<String, String>,
    stubborn: bool,
    lost: bool,
    next: u64,
}

impl FakeRuntime {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            state: Mutex::default(),
            events: broadcast::channel(256).0,
            clock,
        }
    }

    /// Exit codes of the command of that name, the last one for ever.
    pub(crate) fn script_exec(&self, command: &str, codes: &[i32]) {
        self.state
            .lock()
            .execs
            .insert(command.to_owned(), codes.iter().copied().collect());
    }

    /// Containers of that name cannot be started any more, or can again.
    pub(crate) fn refuse_start(&self, container: &str, message: Option<&str>) {
        let mut state = self.state.lock();
        match message {
            Some(message) => state
                .refuse_start
                .insert(container.to_owned(), message.to_owned()),
            None => state.refuse_start.remove(container),
        };
    }

    /// Containers end by SIGKILL only.
    pub(crate) fn make_stubborn(&self) {
        self.state.lock().stubborn = true;
    }

    /// What was asked so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub(crate) fn pods(&self) -> Vec<PodRecord> {
        self.state.lock().pods.values().cloned().collect()
    }

    /// The newest container of that name ends by itself.
    pub(crate) fn exit(&self, uid: &str, container: &str, code: i32) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let record = state.pods.get_mut(uid).unwrap();
        let found = record
            .containers
            .iter_mut()
            .rev()
            .find(|c| c.name == container)
            .unwrap();
        end(found, code, now);
        drop(state);
        self.tell(uid);
    }

    /// The shim of the pod dies.
    pub(crate) fn lose(&self, uid: &str) {
        self.lose_unheard(uid);
        drop(self.events.send(RuntimeEvent::ShimLost {
            pod_uid: uid.to_owned(),
        }));
    }

    /// The shim of the pod dies while nobody listens.
    pub(crate) fn lose_unheard(&self, uid: &str) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.lost = true;
        for container in &mut state.pods.get_mut(uid).unwrap().containers {
            end(container, 255, now);
        }
    }

    fn tell(&self, uid: &str) {
        drop(self.events.send(RuntimeEvent::PodChanged {
            pod_uid: uid.to_owned(),
        }));
    }
}

fn end(container: &mut ContainerStatus, code: i32, now: jiff::Timestamp) {
    let started_at = match container.state {
        ContainerState::Running { started_at, .. } => Some(started_at),
        _ => None,
    };
    if !matches!(container.state, ContainerState::Exited(_)) {
        container.state = ContainerState::Exited(ExitStatus {
            started_at,
            finished_at: now,
            exit_code: code,
            signal: None,
            oom_killed: false,
            message: None,
        });
    }
}

fn not_found(id: &str) -> RuntimeError {
    RuntimeError::NotFound {
        what: "sandbox",
        id: id.to_owned(),
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push(format!("run_sandbox {}", config.name));
        let uid = config.pod_uid.clone();
        let sandbox = Sandbox {
            netns: PathBuf::from(format!("/fake/netns/{uid}")),
            config,
            created_at: self.clock.now(),
        };
        let record = state.pods.entry(uid).or_insert(PodRecord {
            sandbox,
            containers: Vec::new(),
        });
        Ok(record.sandbox.clone())
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push("remove_sandbox".to_owned());
        state.pods.remove(pod_uid);
        state.lost = false;
        Ok(())
    }

    async fn start_container(&self, config: ContainerConfig) -> Result<ContainerRef, RuntimeError> {
        let mut state = self.state.lock();
        state
            .calls
            .push(format!("start {} {}", config.name, config.restart_count));
        if state.lost {
            return Err(RuntimeError::ShimLost {
                pod_uid: config.pod_uid,
            });
        }
        let refused = state.refuse_start.get(&config.name).cloned();
        state.next += 1;
        let id = ContainerRef {
            pod_uid: config.pod_uid.clone(),
            container_id: format!("{:064x}", state.next),
        };
        let now = self.clock.now();
        let new_state = match &refused {
            None => ContainerState::Running {
                started_at: now,
                pid: 1,
            },
            // As the real one does, it keeps a record of what could not be started.
            Some(message) => ContainerState::Exited(ExitStatus {
                started_at: None,
                finished_at: now,
                exit_code: 128,
                signal: None,
                oom_killed: false,
                message: Some(message.clone()),
            }),
        };
        let record = state
            .pods
            .get_mut(&config.pod_uid)
            .ok_or_else(|| not_found(&config.pod_uid))?;
        record.containers.push(ContainerStatus {
            id: id.clone(),
            name: config.name,
            restart_count: config.restart_count,
            created_at: now,
            state: new_state,
            annotations: config.annotations,
        });
        drop(state);
        self.tell(&config.pod_uid);
        match refused {
            Some(message) => Err(RuntimeError::Shim {
                operation: "start",
                message,
            }),
            None => Ok(id),
        }
    }

    async fn stop_container(
        &self,
        id: &ContainerRef,
        signal: i32,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let stubborn = {
            let mut state = self.state.lock();
            state
                .calls
                .push(format!("stop {signal} {}", grace.as_secs()));
            state.stubborn && signal != 9
        };
        let mut events = self.events.subscribe();
        if stubborn {
            let deadline = tokio::time::sleep(grace);
            tokio::pin!(deadline);
            loop {
                tokio::select! {
                    () = &mut deadline => break,
                    _ = events.recv() => {}
                }
                let state = self.state.lock();
                let ended = state.pods.get(&id.pod_uid).is_none_or(|record| {
                    record
                        .containers
                        .iter()
                        .all(|c| c.id != *id || crate::plan::is_ended(c))
                });
                if ended {
                    return Ok(());
                }
            }
        }
        let now = self.clock.now();
        let code = if stubborn || signal == 9 { 137 } else { 143 };
        if let Some(record) = self.state.lock().pods.get_mut(&id.pod_uid) {
            for container in record.containers.iter_mut().filter(|c| c.id == *id) {
                end(container, code, now);
            }
        }
        self.tell(&id.pod_uid);
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerRef) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push("remove_container".to_owned());
        if let Some(record) = state.pods.get_mut(&id.pod_uid) {
            record.containers.retain(|container| container.id != *id);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<PodRecord>, RuntimeError> {
        Ok(self.pods())
    }

    async fn pod(&self, pod_uid: &str) -> Result<PodRecord, RuntimeError> {
        let state = self.state.lock();
        let record = state
            .pods
            .get(pod_uid)
            .cloned()
            .ok_or_else(|| not_found(pod_uid))?;
        Ok(record)
    }

    async fn exec(
        &self,
        _id: &ContainerRef,
        config: ExecConfig,
    ) -> Result<ExecSession, RuntimeError> {
        let mut state = self.state.lock();
        let name = config.command.first().cloned().unwrap_or_default();
        state
            .calls
            .push(format!("exec {}", config.command.join(" ")));
        let codes = state
            .execs
            .entry(name)
            .or_insert_with(|| VecDeque::from([0]));
        let code = if codes.len() > 1 {
            codes.pop_front()
        } else {
            codes.front().copied()
        };
        let code = code.unwrap_or(0);
        // Like `cat`: what comes in goes out.
        let (ours, theirs) = tokio::io::duplex(1024);
        let (reader, writer) = tokio::io::split(ours);
        let stdin: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>> = if config.stdin {
            Some(Box::new(theirs))
        } else {
            None
        };
        drop(writer);
        let output: Box<dyn tokio::io::AsyncRead + Send + Unpin> = if config.stdin {
            Box::new(reader)
        } else {
            Box::new(std::io::Cursor::new(b"out".to_vec()))
        };
        Ok(ExecSession {
            stdin,
            stdout: output,
            stderr: Some(Box::new(std::io::Cursor::new(b"err".to_vec()))),
            resize: None,
            exit: async move { Ok(code) }.boxed(),
        })
    }

    /// Like `cat`, until its input ends.
    async fn attach(
        &self,
        _id: &ContainerRef,
        config: AttachConfig,
    ) -> Result<AttachSession, RuntimeError> {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (reader, _) = tokio::io::split(ours);
        let boxed = |reader| Box::new(reader) as Box<dyn tokio::io::AsyncRead + Send + Unpin>;
        Ok(AttachSession {
            stdin: config
                .stdin
                .then(|| Box::new(theirs) as Box<dyn tokio::io::AsyncWrite + Send + Unpin>),
            stdout: config.stdout.then(|| boxed(reader)),
            stderr: None,
            resize: tokio::sync::mpsc::channel(1).0,
        })
    }

    async fn stats(&self, _id: &ContainerRef) -> Result<ContainerStats, RuntimeError> {
        Ok(ContainerStats {
            cpu_usage_nanos: 5,
            memory_working_set_bytes: 7,
            pids: 1,
        })
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}
