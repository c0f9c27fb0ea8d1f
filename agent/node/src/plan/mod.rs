//! What to do next for one pod. Pure: from the pod as the API wants it, what is known of it on the node and
//! the time, [`plan_pod`] tells which operations to begin now and when to look again without being asked.
//!
//! Level triggered: it is called after every change of anything and forgets nothing, because it remembers
//! nothing. Operations that are under way ([`Observed::busy`]) are never begun twice, and those that failed
//! wait for their time.

mod containers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use skiff_runtime::{ContainerState, ContainerStatus as Instance};

use crate::backoff::{self, Backoff};
use crate::status::Phase;

/// An operation of a pod worker. At most one of each runs at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    /// Makes the sandbox and attaches it to the network.
    Sandbox,
    /// Removes a sandbox whose shim is gone, with its dead containers.
    Reset,
    /// Makes and fills the volumes.
    Volumes,
    /// Has the image of this container and its snapshot ready.
    Image(String),
    /// Starts this container.
    Start(String),
    /// Stops the container with this id.
    Stop(String),
    /// Kills the container with this id although it is being stopped already.
    Kill(String),
    /// Removes what is left of the container with this id.
    Remove(String),
    /// Gives everything back: network, sandbox, volumes, snapshots.
    Teardown,
    /// Writes the status.
    Status,
    /// Removes the object from the API.
    Delete,
}

/// Why an operation failed and when it may be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Waiting reason, such as `ErrImagePull`.
    pub(crate) reason: &'static str,
    /// What the user is told.
    pub(crate) message: String,
    /// When it failed.
    pub(crate) at: Timestamp,
    /// When it may be tried again.
    pub(crate) retry_at: Timestamp,
}

/// How far the sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SandboxState {
    /// None yet, or its network is not attached.
    #[default]
    Absent,
    /// There, with addresses.
    Ready,
    /// Its shim is gone.
    Lost,
}

/// What the probes say of one container instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProbeVerdict {
    /// The startup probe has succeeded, or there is none.
    pub(crate) started: bool,
    /// The readiness probe succeeds, or there is none.
    pub(crate) ready: bool,
    /// The liveness or startup probe has failed for good: which one.
    pub(crate) failed: Option<&'static str>,
}

/// What an earlier, vanished instance leaves to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Restart count for the next instance.
    pub(crate) next_restart: u32,
    /// How the last one ended, if known.
    pub(crate) last: Option<Instance>,
}

/// Why this node refuses to run the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// CamelCase reason for the status.
    pub(crate) reason: String,
    /// What the user is told.
    pub(crate) message: String,
}

/// What is known of a pod on this node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// The object is gone from the API.
    pub(crate) gone: bool,
    /// The sandbox.
    pub(crate) sandbox: SandboxState,
    /// The pod's addresses.
    pub(crate) ips: Vec<IpAddr>,
    /// When the node first saw the pod.
    pub(crate) start_time: Option<Timestamp>,
    /// Its container instances, ended ones too.
    pub(crate) instances: Vec<Instance>,
    /// All volumes are there.
    pub(crate) volumes_ready: bool,
    /// Containers whose image and snapshot are ready for a start.
    pub(crate) images_ready: BTreeSet<String>,
    /// Operations under way.
    pub(crate) busy: BTreeSet<Op>,
    /// Operations that failed last time.
    pub(crate) failures: BTreeMap<Op, Failure>,
    /// Probe results by container id.
    pub(crate) probes: BTreeMap<String, ProbeVerdict>,
    /// Facts of vanished instances, by container name.
    pub(crate) carried: BTreeMap<String, Carried>,
    /// Restart back-off by container name.
    pub(crate) backoffs: BTreeMap<String, Backoff>,
    /// Containers whose restart is held back, with what the user is told.
    pub(crate) restarts_held: BTreeMap<String, String>,
    /// Containers that wait for the next attempt to pull their image long enough to say so.
    pub(crate) image_backoff_shown: BTreeSet<String>,
    /// Termination messages by container id.
    pub(crate) messages: BTreeMap<String, String>,
    /// The node refuses the pod.
    pub(crate) rejected: Option<Rejection>,
    /// The pod has reached this final phase before.
    pub(crate) final_phase: Option<Phase>,
    /// The pod ran longer than `activeDeadlineSeconds`.
    pub(crate) deadline_exceeded: bool,
    /// Everything was given back.
    pub(crate) torn_down: bool,
    /// The object was removed from the API by us.
    pub(crate) deleted: bool,
}

impl Observed {
    /// The newest instance of a container.
    pub(crate) fn latest(&self, container: &str) -> Option<&Instance> {
        self.instances
            .iter()
            .filter(|instance| instance.name == container)
            .max_by_key(|instance| (instance.restart_count, instance.created_at))
    }

    /// The newest instance before the newest one, or what is remembered of it.
    pub(crate) fn previous(&self, container: &str) -> Option<&Instance> {
        let mut all: Vec<&Instance> = self
            .instances
            .iter()
            .filter(|instance| instance.name == container)
            .collect();
        all.sort_by_key(|instance| (instance.restart_count, instance.created_at));
        all.pop();
        all.pop().or_else(|| {
            self.carried
                .get(container)
                .and_then(|carried| carried.last.as_ref())
        })
    }

    /// Restart count of the next instance of a container.
    pub(crate) fn next_restart(&self, container: &str) -> u32 {
        let latest = self
            .latest(container)
            .map_or(0, |instance| instance.restart_count + 1);
        let carried = self
            .carried
            .get(container)
            .map_or(0, |carried| carried.next_restart);
        latest.max(carried)
    }

    /// Whether the container has passed its startup probe.
    pub(crate) fn is_started(&self, container: &Container) -> bool {
        match self.latest(&container.name) {
            Some(Instance {
                state: ContainerState::Running { .. },
                id,
                ..
            }) => {
                // While the start is under way the postStart hook has not ended.
                !self.busy.contains(&Op::Start(container.name.clone()))
                    && (container.startup_probe.is_none()
                        || self
                            .probes
                            .get(&id.container_id)
                            .is_some_and(|probe| probe.started))
            }
            _ => false,
        }
    }

    /// Whether the container is ready for traffic.
    pub(crate) fn is_ready(&self, container: &Container) -> bool {
        self.is_started(container)
            && (container.readiness_probe.is_none()
                || self
                    .latest(&container.name)
                    .and_then(|instance| self.probes.get(&instance.id.container_id))
                    .is_some_and(|probe| probe.ready))
    }
}

/// Why a container is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The pod ends.
    PodEnds,
    /// This probe failed.
    Probe(&'static str),
    /// An earlier daemon died while creating it.
    Unfinished,
}

/// One thing to begin now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the sandbox and its network.
    CreateSandbox,
    /// Remove the dead sandbox.
    ResetSandbox,
    /// Make the volumes.
    MountVolumes,
    /// Have the image of this container ready.
    EnsureImage {
        /// Name of the container.
        container: String,
        /// Restart count of the instance it is for.
        restart_count: u32,
    },
    /// Start this container.
    Start {
        /// Name of the container.
        container: String,
        /// Restart count of the new instance.
        restart_count: u32,
    },
    /// Stop this instance.
    Stop {
        /// Name of the container.
        container: String,
        /// Its id.
        id: String,
        /// Time to end by itself.
        grace: Duration,
        /// Why.
        why: StopReason,
    },
    /// Kill this instance at once.
    Kill {
        /// Its id.
        id: String,
    },
    /// Remove what is left of this instance.
    Remove {
        /// Its id.
        id: String,
    },
    /// Give everything back.
    Teardown,
    /// Remove the object from the API.
    Delete,
    /// Tell the user that a restart is held back.
    NoteBackOff {
        /// Name of the container.
        container: String,
        /// Restart count of the instance that is held back.
        restart_count: u32,
    },
}

impl Action {
    /// The operation that carries it out; `None` for what is done on the spot.
    pub(crate) fn op(&self) -> Option<Op> {
        Some(match self {
            Self::CreateSandbox => Op::Sandbox,
            Self::ResetSandbox => Op::Reset,
            Self::MountVolumes => Op::Volumes,
            Self::EnsureImage { container, .. } => Op::Image(container.clone()),
            Self::Start { container, .. } => Op::Start(container.clone()),
            Self::Stop { id, .. } => Op::Stop(id.clone()),
            Self::Kill { id } => Op::Kill(id.clone()),
            Self::Remove { id } => Op::Remove(id.clone()),
            Self::Teardown => Op::Teardown,
            Self::Delete => Op::Delete,
            Self::NoteBackOff { .. } => return None,
        })
    }
}

/// What to do now, and when to look again at the latest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To begin now, all of them.
    pub(crate) actions: Vec<Action>,
    /// Look again then even if nothing happens.
    pub(crate) wake_at: Option<Timestamp>,
    /// The pod is ending; image pulls are of no use any more.
    pub(crate) ending: bool,
    /// The final phase that the pod has reached with this plan.
    pub(crate) final_phase: Option<Phase>,
    /// The pod ran into its deadline.
    pub(crate) deadline_exceeded: bool,
    /// Nothing of the pod is left and nothing will come: the worker may end.
    pub(crate) finished: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Whether this instance has ended.
pub(crate) fn is_ended(instance: &Instance) -> bool {
    matches!(instance.state, ContainerState::Exited(_))
}

/// Whether this init container is a sidecar.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's time to end, at least what the API was told.
pub(crate) fn grace_period(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or_else(|| {
            pod.spec
                .as_ref()
                .and_then(|spec| spec.termination_grace_period_seconds)
        })
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
}

/// Decides what to do next for `pod`.
pub(crate) fn plan_pod(pod: &Pod, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = pod.spec.as_ref() else {
        plan.finished = observed.gone;
        return plan;
    };
    if is_ending(pod, spec, observed, now, &mut plan) {
        plan.ending = true;
        plan_ending(pod, spec, observed, &mut plan);
    } else {
        containers::plan_running(spec, observed, now, &mut plan);
    }
    hold_back(observed, now, &mut plan);
    plan
}

/// Whether the pod is to end or has ended; notes a final phase in the plan.
fn is_ending(pod: &Pod, spec: &PodSpec, o: &Observed, now: Timestamp, plan: &mut Plan) -> bool {
    plan.final_phase = o.final_phase;
    plan.deadline_exceeded = o.deadline_exceeded;
    if o.gone || pod.metadata.deletion_timestamp.is_some() {
        return true;
    }
    if o.rejected.is_some() {
        plan.final_phase = Some(Phase::Failed);
        return true;
    }
    if o.final_phase.is_some() || o.deadline_exceeded {
        return true;
    }
    if let (Some(limit), Some(start)) = (spec.active_deadline_seconds, o.start_time) {
        let end = backoff::add(
            start,
            Duration::from_secs(u64::try_from(limit).unwrap_or(0)),
        );
        if end <= now {
            plan.final_phase = Some(Phase::Failed);
            plan.deadline_exceeded = true;
            return true;
        }
        plan.wake(end);
    }
    plan.final_phase = containers::final_phase(spec, o);
    plan.final_phase.is_some()
}

/// Stops what runs, sidecars last, then gives everything back, then deletes the object.
fn plan_ending(pod: &Pod, spec: &PodSpec, o: &Observed, plan: &mut Plan) {
    if o.torn_down {
        let deleting = pod.metadata.deletion_timestamp.is_some();
        if o.gone || o.deleted {
            plan.finished = true;
        } else if deleting && !o.busy.contains(&Op::Status) {
            plan.actions.push(Action::Delete);
        }
        return;
    }
    let sidecars: BTreeSet<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    let alive: Vec<&Instance> = o.instances.iter().filter(|i| !is_ended(i)).collect();
    let only_sidecars = alive
        .iter()
        .all(|instance| sidecars.contains(instance.name.as_str()));
    for instance in &alive {
        if only_sidecars || !sidecars.contains(instance.name.as_str()) {
            stop(instance, grace_period(pod), StopReason::PodEnds, o, plan);
        }
    }
    let waits = o
        .busy
        .iter()
        .any(|op| !matches!(op, Op::Status | Op::Image(_) | Op::Delete));
    if alive.is_empty() && !waits {
        plan.actions.push(Action::Teardown);
    }
}

/// Stops an instance, or kills it if it is being stopped and nobody waits for it any more.
fn stop(instance: &Instance, grace: Duration, why: StopReason, o: &Observed, plan: &mut Plan) {
    let id = instance.id.container_id.clone();
    if o.busy.contains(&Op::Stop(id.clone())) {
        if o.gone {
            plan.actions.push(Action::Kill { id });
        }
        return;
    }
    plan.actions.push(Action::Stop {
        container: instance.name.clone(),
        id,
        grace,
        why,
    });
}

/// Drops what is under way already and what failed and must wait.
fn hold_back(o: &Observed, now: Timestamp, plan: &mut Plan) {
    let mut wakes = Vec::new();
    plan.actions.retain(|action| {
        let Some(op) = action.op() else { return true };
        if o.busy.contains(&op) {
            return false;
        }
        match o.failures.get(&op) {
            Some(failure) if failure.retry_at > now => {
                wakes.push(failure.retry_at);
                false
            }
            _ => true,
        }
    });
    for at in wakes {
        plan.wake(at);
    }
}
