//! One task for each pod of this node: it alone changes anything about its pod.
//!
//! ```text
//! informer ── Desired (watch) ──┐
//! runtime events, probes, ──────┼─▶ observe ─▶ plan_pod ─▶ begin operations ─▶ publish status
//! objects of volumes (Notify)   │                               │
//! timer of the plan ────────────┤                               │
//! operations that ended ────────┘◀──────────── JoinSet ─────────┘
//! ```
//! Operations run beside the loop, so that a pull never keeps a deletion waiting; at most one of each kind,
//! see [`Op`]. The loop never polls: it sleeps until one of the arrows says something.

mod adopt;
pub(crate) mod files;
pub(crate) use self::finish::{remove_dir, tear_down};
mod finish;
mod image;
mod mounts;
mod observe;
mod publish;
mod sandbox;
mod start;
mod stop;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use skiff_client::EventKind;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::backoff::{self, Backoff};
use crate::context::NodeContext;
use crate::plan::{Action, Failure, Observed, Op, Plan, plan_pod};
use crate::probes::ProbeManager;

/// What the API wants of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Desired {
    /// The object as last seen.
    pub(crate) pod: Arc<Pod>,
    /// The API has it no more.
    pub(crate) gone: bool,
}

/// The worker's side that others hold.
pub(crate) struct WorkerHandle {
    /// Sends what the API wants.
    pub(crate) desired: watch::Sender<Desired>,
    /// Look again: something on the node has changed.
    pub(crate) wake: Arc<Notify>,
    /// Set before `wake` when the shim is lost.
    pub(crate) shim_lost: Arc<std::sync::atomic::AtomicBool>,
}

/// How an operation ended.
pub(crate) enum Outcome {
    /// Well.
    Done,
    /// The sandbox is there, with these addresses.
    Sandbox(Vec<std::net::IpAddr>),
    /// The volumes are there, at these places.
    Volumes(BTreeMap<String, PathBuf>),
    /// The image is there and its root filesystem mounted.
    Image(Box<image::PreparedImage>),
    /// The status was written.
    Status(Box<PodStatus>),
    /// It failed; the waiting reason and what the user is told.
    Failed(&'static str, String),
}

/// Looks after one pod until nothing of it is left.
pub(crate) struct Worker {
    ctx: Arc<NodeContext>,
    uid: String,
    pod: Arc<Pod>,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    shim_lost: Arc<std::sync::atomic::AtomicBool>,
    observed: Observed,
    /// The runtime may know more than `observed` does.
    stale: bool,
    ops: JoinSet<(Op, Outcome)>,
    aborts: BTreeMap<Op, AbortHandle>,
    retries: BTreeMap<Op, Backoff>,
    images: BTreeMap<String, image::PreparedImage>,
    places: BTreeMap<String, PathBuf>,
    /// The pod's network namespace, once the runtime told.
    netns: PathBuf,
    volumes_dirty: Arc<std::sync::atomic::AtomicBool>,
    watches: JoinSet<()>,
    watching: bool,
    probes: ProbeManager,
    noted: BTreeSet<(String, u32)>,
    shown: Option<PodStatus>,
}

impl Worker {
    /// A worker for the pod in `desired`, and the handle for those who feed it.
    pub(crate) fn new(ctx: Arc<NodeContext>, pod: Arc<Pod>) -> (Self, WorkerHandle) {
        let first = Desired {
            pod: Arc::clone(&pod),
            gone: false,
        };
        let (sender, desired) = watch::channel(first);
        let wake = Arc::new(Notify::new());
        let shim_lost = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let handle = WorkerHandle {
            desired: sender,
            wake: Arc::clone(&wake),
            shim_lost: Arc::clone(&shim_lost),
        };
        let worker = Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ctx,
            pod,
            desired,
            probes: ProbeManager::new(Arc::clone(&wake)),
            wake,
            shim_lost,
            observed: Observed::default(),
            stale: true,
            ops: JoinSet::new(),
            aborts: BTreeMap::new(),
            retries: BTreeMap::new(),
            images: BTreeMap::new(),
            places: BTreeMap::new(),
            netns: PathBuf::new(),
            volumes_dirty: Arc::default(),
            watches: JoinSet::new(),
            watching: false,
            noted: BTreeSet::new(),
            shown: None,
        };
        (worker, handle)
    }

    /// Works until nothing of the pod is left or `token` is cancelled; then everything stays as it is, for the
    /// next daemon to adopt. The UID of the pod if it is finished.
    pub(crate) async fn run(mut self, token: CancellationToken) -> Option<String> {
        self.adopt().await;
        loop {
            self.observe().await;
            let now = self.ctx.clock.now();
            let plan = plan_pod(&self.pod, &self.observed, now);
            if self.note_ending(&plan) {
                // The phase is shown before anything is given back.
                self.publish(now);
                continue;
            }
            if plan.finished && self.ops.is_empty() {
                self.finish().await;
                return Some(self.uid);
            }
            self.note_held_restarts(&plan);
            let image_at = self.note_image_back_offs(now);
            let status_at = self.publish(now);
            let plan_at = self.apply(plan);
            let wake_at = [image_at, status_at, plan_at].into_iter().flatten().min();
            tokio::select! {
                () = token.cancelled() => return None,
                () = self.wait(wake_at) => {}
            }
        }
    }

    /// Keeps what the plan found out for good; whether that changed anything.
    fn note_ending(&mut self, plan: &Plan) -> bool {
        let observed = &mut self.observed;
        let changed = observed.final_phase != plan.final_phase
            || observed.deadline_exceeded != plan.deadline_exceeded;
        observed.final_phase = plan.final_phase;
        observed.deadline_exceeded = plan.deadline_exceeded;
        if changed && plan.deadline_exceeded {
            let message = "Pod was active on the node longer than the specified deadline";
            self.event(EventKind::Normal, "DeadlineExceeded", message.to_owned());
        }
        changed
    }

    /// Begins what the plan says; when to look again.
    fn apply(&mut self, plan: Plan) -> Option<Timestamp> {
        if plan.ending {
            for (op, abort) in &self.aborts {
                if matches!(op, Op::Image(_)) {
                    abort.abort();
                }
            }
        }
        for action in plan.actions {
            self.begin(action);
        }
        if self.volumes_dirty.load(Ordering::Acquire)
            && !plan.ending
            && self.observed.volumes_ready
            && !self.observed.busy.contains(&Op::Volumes)
        {
            self.begin(Action::MountVolumes);
        }
        self.sync_probes(plan.ending);
        plan.wake_at
    }

    fn begin(&mut self, action: Action) {
        match action {
            Action::CreateSandbox => self.begin_sandbox(),
            Action::ResetSandbox => self.begin_reset(),
            Action::MountVolumes => self.begin_volumes(),
            Action::EnsureImage {
                container,
                restart_count,
            } => {
                self.begin_image(&container, restart_count);
            }
            Action::Start {
                container,
                restart_count,
            } => self.begin_start(&container, restart_count),
            Action::Stop {
                container,
                id,
                grace,
                why,
            } => self.begin_stop(&container, id, grace, why),
            Action::Kill { id } => self.begin_kill(id),
            Action::Remove { id } => self.begin_remove(id),
            Action::Teardown => self.begin_teardown(),
            Action::Delete => self.begin_delete(),
            Action::NoteBackOff { .. } => {}
        }
    }

    /// What the status says of restarts that are held back.
    fn note_held_restarts(&mut self, plan: &Plan) {
        self.observed.restarts_held.clear();
        for action in &plan.actions {
            if let Action::NoteBackOff {
                container,
                restart_count,
            } = action
            {
                self.note_back_off(container.clone(), *restart_count);
            }
        }
    }

    /// Runs an operation beside the loop.
    fn spawn(&mut self, op: Op, work: impl Future<Output = Outcome> + Send + 'static) {
        let name = op.clone();
        let abort = self.ops.spawn(async move { (name, work.await) });
        self.observed.busy.insert(op.clone());
        self.aborts.insert(op, abort);
    }

    /// Until something happens; what ended is taken in.
    async fn wait(&mut self, wake_at: Option<Timestamp>) {
        let now = self.ctx.clock.now();
        let timer = async {
            match wake_at {
                Some(at) => {
                    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    tokio::time::sleep(wait).await;
                }
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = self.ops.join_next_with_id(), if !self.ops.is_empty() => ended,
            changed = self.desired.changed() => {
                if changed.is_err() {
                    // The manager is gone; the token will follow.
                    std::future::pending::<()>().await;
                }
                self.take_desired();
                None
            }
            () = self.wake.notified() => { self.stale = true; None }
            () = timer => None,
        };
        match ended {
            Some(Ok((_, (op, outcome)))) => self.ended(op, outcome),
            Some(Err(error)) => self.aborted(&error),
            None => {}
        }
        while let Some(ended) = self.ops.try_join_next() {
            match ended {
                Ok((op, outcome)) => self.ended(op, outcome),
                Err(error) => self.aborted(&error),
            }
        }
    }

    fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        let (old, new) = (&self.pod.metadata, &desired.pod.metadata);
        if old.labels != new.labels || old.annotations != new.annotations {
            // A volume may show them.
            self.volumes_dirty.store(true, Ordering::Release);
        }
        self.pod = desired.pod;
        self.observed.gone |= desired.gone;
        self.ctx
            .pods
            .write()
            .insert(self.uid.clone(), Arc::clone(&self.pod));
    }

    fn aborted(&mut self, error: &tokio::task::JoinError) {
        let id = error.id();
        let op = self
            .aborts
            .iter()
            .find(|(_, abort)| abort.id() == id)
            .map(|(op, _)| op.clone());
        if let Some(op) = op {
            self.aborts.remove(&op);
            self.observed.busy.remove(&op);
            if !error.is_cancelled() {
                tracing::error!(uid = self.uid, ?op, "operation of a pod worker panicked");
                self.fail(op, "InternalError", "operation panicked".to_owned());
            }
        }
        self.stale = true;
    }

    fn ended(&mut self, op: Op, outcome: Outcome) {
        self.aborts.remove(&op);
        self.observed.busy.remove(&op);
        self.stale |= !matches!(op, Op::Status | Op::Image(_) | Op::Volumes);
        if let Outcome::Failed(reason, message) = outcome {
            self.failed(op, reason, message);
            return;
        }
        self.retries.remove(&op);
        self.observed.failures.remove(&op);
        match (&op, outcome) {
            (_, Outcome::Sandbox(ips)) => self.sandbox_made(ips),
            (_, Outcome::Volumes(places)) => {
                self.places = places;
                self.observed.volumes_ready = true;
            }
            (Op::Image(container), Outcome::Image(image)) => {
                self.observed.images_ready.insert(container.clone());
                self.observed.image_backoff_shown.remove(container);
                self.images.insert(container.clone(), *image);
            }
            (Op::Start(container), _) => {
                let container = container.clone();
                self.forget_image(&container);
            }
            (Op::Reset, _) => self.sandbox_reset(),
            (Op::Teardown, _) => self.torn_down(),
            (Op::Delete, _) => self.observed.deleted = true,
            (_, Outcome::Status(status)) => self.shown = Some(*status),
            _ => {}
        }
    }

    /// Takes note of a failure and of when to try again.
    fn fail(&mut self, op: Op, reason: &'static str, message: String) {
        let now = self.ctx.clock.now();
        let backoff = Backoff::next(self.retries.get(&op).copied(), now);
        self.retries.insert(op.clone(), backoff);
        let delay = match op {
            Op::Image(_) | Op::Start(_) => backoff.delay(),
            // What the node itself does is tried again sooner: 1 s, 2 s ... 30 s.
            _ => backoff.delay() / 10,
        };
        let retry_at = backoff::add(now, delay);
        self.observed.failures.insert(
            op,
            Failure {
                reason,
                message,
                at: now,
                retry_at,
            },
        );
    }

    fn failed(&mut self, op: Op, reason: &'static str, message: String) {
        let pod = Arc::clone(&self.pod);
        match &op {
            Op::Sandbox => {
                let message = format!("Failed to create pod sandbox: {message}");
                self.event(EventKind::Warning, "FailedCreatePodSandBox", message);
            }
            Op::Volumes => {
                self.event(EventKind::Warning, "FailedMount", message.clone());
                self.observed.volumes_ready &= !self.places.is_empty();
            }
            Op::Stop(_) | Op::Kill(_) => {
                let message = format!("error killing pod: {message}");
                self.event(EventKind::Warning, "FailedKillPod", message);
            }
            Op::Image(container) | Op::Start(container) => {
                // The registry's own words were told by the operation.
                let text = if reason == "ErrImagePull" {
                    reason
                } else {
                    message.as_str()
                };
                let text = format!("Error: {text}");
                let (kind, name) = (EventKind::Warning, container.clone());
                self.ctx.container_event(&pod, &name, kind, "Failed", text);
            }
            _ => tracing::warn!(uid = self.uid, ?op, error = message, "pod operation failed"),
        }
        if let Op::Start(container) = &op {
            // The runtime may keep the failed instance and its root filesystem: the next gets its own.
            self.forget_image(&container.clone());
        }
        self.fail(op, reason, message);
    }

    /// Tells once per ended instance that its restart is held back.
    fn note_back_off(&mut self, container: String, restart_count: u32) {
        let meta = &self.pod.metadata;
        let full = format!(
            "{}_{}({})",
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            self.uid
        );
        let delay = self
            .observed
            .backoffs
            .get(&container)
            .map_or(0, |b| b.delay().as_secs());
        let delay = if delay < 60 {
            format!("{delay}s")
        } else {
            format!("{}m{}s", delay / 60, delay % 60)
        };
        let held = format!("back-off {delay} restarting failed container={container} pod={full}");
        self.observed.restarts_held.insert(container.clone(), held);
        if self.noted.insert((container.clone(), restart_count)) {
            let message = format!("Back-off restarting failed container {container} in pod {full}");
            let pod = Arc::clone(&self.pod);
            self.ctx
                .container_event(&pod, &container, EventKind::Warning, "BackOff", message);
        }
    }

    fn event(&self, kind: EventKind, reason: &str, message: String) {
        self.ctx.pod_event(&self.pod, kind, reason, message);
    }

    fn container(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        let inits = spec.init_containers.iter().flatten();
        inits
            .chain(&spec.containers)
            .find(|container| container.name == name)
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}
