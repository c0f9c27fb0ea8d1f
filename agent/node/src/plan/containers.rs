//! Planning of a pod that is to run: sandbox, volumes, images, init containers, containers.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use skiff_runtime::{ContainerState, ContainerStatus as Instance, ExitStatus};

use super::{Action, Observed, Op, Plan, SandboxState, StopReason, is_ended, is_sidecar, stop};
use crate::status::Phase;

/// How a pod treats containers that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    /// Restarts them.
    Always,
    /// Restarts those that failed.
    OnFailure,
    /// Leaves them.
    Never,
}

impl RestartPolicy {
    /// The pod's policy.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn restarts(self, exit: &ExitStatus) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit.exit_code != 0,
            Self::Never => false,
        }
    }
}

fn exit_of(instance: &Instance) -> Option<&ExitStatus> {
    match &instance.state {
        ContainerState::Exited(exit) => Some(exit),
        _ => None,
    }
}

/// Where the init containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitProgress {
    /// One of them failed and is not restarted.
    Failed,
    /// The one with this index is next or runs.
    At(usize),
    /// All are done.
    Done,
}

/// How far initialisation is. Once an ordinary container was started it is done for good.
pub(crate) fn init_progress(spec: &PodSpec, o: &Observed) -> InitProgress {
    let main_started = spec.containers.iter().any(|container| {
        o.latest(&container.name).is_some()
            || o.carried
                .get(&container.name)
                .is_some_and(|c| c.last.is_some())
    });
    if main_started && o.sandbox == SandboxState::Ready && !needs_init_again(spec, o) {
        return InitProgress::Done;
    }
    let policy = RestartPolicy::of(spec);
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let done = match o.latest(&container.name) {
            Some(_) if is_sidecar(container) => o.is_started(container),
            Some(instance) => match exit_of(instance) {
                Some(exit) if exit.exit_code == 0 => true,
                Some(_) if policy == RestartPolicy::Never => return InitProgress::Failed,
                _ => false,
            },
            None => false,
        };
        if !done {
            return InitProgress::At(index);
        }
    }
    InitProgress::Done
}

/// A sandbox that was made anew has no instances, so initialisation runs again.
fn needs_init_again(spec: &PodSpec, o: &Observed) -> bool {
    let none_of = |containers: &[Container]| containers.iter().all(|c| o.latest(&c.name).is_none());
    spec.init_containers
        .as_ref()
        .is_some_and(|inits| !inits.is_empty() && none_of(inits))
        && none_of(&spec.containers)
}

/// The final phase, if no container will ever run again.
pub(super) fn final_phase(spec: &PodSpec, o: &Observed) -> Option<Phase> {
    if init_progress(spec, o) == InitProgress::Failed {
        return Some(Phase::Failed);
    }
    let policy = RestartPolicy::of(spec);
    if spec.containers.is_empty() {
        return None;
    }
    let lost = |container: &Container| {
        o.latest(&container.name).is_none()
            && o.carried
                .get(&container.name)
                .is_some_and(|carried| carried.last.is_some())
    };
    if policy == RestartPolicy::Never && spec.containers.iter().any(lost) {
        return Some(Phase::Failed);
    }
    let mut failed = false;
    for container in &spec.containers {
        let exit = exit_of(o.latest(&container.name)?)?;
        if policy.restarts(exit) || o.busy.contains(&Op::Start(container.name.clone())) {
            return None;
        }
        failed |= exit.exit_code != 0;
    }
    Some(if failed {
        Phase::Failed
    } else {
        Phase::Succeeded
    })
}

/// Plans a pod that is to run.
pub(super) fn plan_running(spec: &PodSpec, o: &Observed, now: Timestamp, plan: &mut Plan) {
    match o.sandbox {
        SandboxState::Lost => {
            plan.actions.push(Action::ResetSandbox);
            return;
        }
        SandboxState::Absent => plan.actions.push(Action::CreateSandbox),
        SandboxState::Ready => {}
    }
    if !o.volumes_ready {
        plan.actions.push(Action::MountVolumes);
    }
    let progress = init_progress(spec, o);
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let reached = match progress {
            InitProgress::At(at) => index <= at,
            InitProgress::Done => true,
            InitProgress::Failed => false,
        };
        // What is done stays done; sidecars are kept running.
        if reached && (is_sidecar(container) || progress == InitProgress::At(index)) {
            plan_container(container, spec, init_policy(container, spec), o, now, plan);
        }
    }
    if progress == InitProgress::Done {
        for container in &spec.containers {
            plan_container(container, spec, RestartPolicy::of(spec), o, now, plan);
        }
    }
}

fn init_policy(container: &Container, spec: &PodSpec) -> RestartPolicy {
    if is_sidecar(container) {
        return RestartPolicy::Always;
    }
    match RestartPolicy::of(spec) {
        RestartPolicy::Never => RestartPolicy::Never,
        RestartPolicy::Always | RestartPolicy::OnFailure => RestartPolicy::OnFailure,
    }
}

fn plan_container(
    container: &Container,
    spec: &PodSpec,
    policy: RestartPolicy,
    o: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) {
    remove_old_instances(container, o, plan);
    let Some(latest) = o.latest(&container.name) else {
        start(container, o, plan);
        return;
    };
    match &latest.state {
        ContainerState::Created => {
            if !o.busy.contains(&Op::Start(container.name.clone())) {
                let grace = std::time::Duration::ZERO;
                stop(latest, grace, StopReason::Unfinished, o, plan);
            }
        }
        ContainerState::Running { .. } => {
            let verdict = o.probes.get(&latest.id.container_id);
            if let Some(probe) = verdict.and_then(|verdict| verdict.failed) {
                let seconds = probe_grace(container, probe)
                    .or(spec.termination_grace_period_seconds)
                    .unwrap_or(30);
                let grace =
                    std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1));
                stop(latest, grace, StopReason::Probe(probe), o, plan);
            }
        }
        ContainerState::Exited(exit) => {
            // While it is being started again, the new back-off is for the run after that.
            if !policy.restarts(exit) || o.busy.contains(&Op::Start(container.name.clone())) {
                return;
            }
            let held = o
                .backoffs
                .get(&container.name)
                .and_then(|backoff| backoff.not_before(exit.finished_at))
                .filter(|at| *at > now);
            if let Some(at) = held {
                plan.wake(at);
                plan.actions.push(Action::NoteBackOff {
                    container: container.name.clone(),
                    restart_count: latest.restart_count,
                });
            } else {
                start(container, o, plan);
            }
        }
    }
}

fn probe_grace(container: &Container, probe: &str) -> Option<i64> {
    let probe = match probe {
        "startup" => container.startup_probe.as_ref(),
        _ => container.liveness_probe.as_ref(),
    };
    probe?.termination_grace_period_seconds
}

/// The image first, meanwhile the sandbox and the volumes; the start when all is there.
fn start(container: &Container, o: &Observed, plan: &mut Plan) {
    let name = container.name.clone();
    let restart_count = o.next_restart(&name);
    if o.busy.contains(&Op::Start(name.clone())) {
        return;
    }
    if !o.images_ready.contains(&name) {
        plan.actions.push(Action::EnsureImage {
            container: name,
            restart_count,
        });
    } else if o.sandbox == SandboxState::Ready && o.volumes_ready {
        plan.actions.push(Action::Start {
            container: name,
            restart_count,
        });
    }
}

/// The last ended instance is kept for its log and status; older ones go.
fn remove_old_instances(container: &Container, o: &Observed, plan: &mut Plan) {
    let mut all: Vec<&Instance> = o
        .instances
        .iter()
        .filter(|instance| instance.name == container.name)
        .collect();
    all.sort_by_key(|instance| (instance.restart_count, instance.created_at));
    let keep = all.len().saturating_sub(2);
    for instance in all
        .into_iter()
        .take(keep)
        .filter(|instance| is_ended(instance))
    {
        plan.actions.push(Action::Remove {
            id: instance.id.container_id.clone(),
        });
    }
}
