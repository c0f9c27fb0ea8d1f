//! The containers' statuses.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_runtime::{ContainerState, ContainerStatus as Instance, ExitStatus};

use crate::annotations;
use crate::plan::{Observed, Op, is_ended, is_sidecar};

/// Statuses of the init containers, in the order of the spec.
pub(super) fn init_statuses(
    spec: &PodSpec,
    o: &Observed,
    previous: &PodStatus,
) -> Vec<ContainerStatus> {
    let old = previous
        .init_container_statuses
        .as_deref()
        .unwrap_or_default();
    let containers = spec.init_containers.iter().flatten();
    containers
        .map(|container| container_status(container, spec, o, old, true))
        .collect()
}

/// Statuses of the containers, in the order of the spec.
pub(super) fn main_statuses(
    spec: &PodSpec,
    o: &Observed,
    previous: &PodStatus,
) -> Vec<ContainerStatus> {
    let old = previous.container_statuses.as_deref().unwrap_or_default();
    spec.containers
        .iter()
        .map(|container| container_status(container, spec, o, old, false))
        .collect()
}

/// The id as the API shows it.
pub(crate) fn api_container_id(id: &str) -> String {
    format!("skiff://{id}")
}

fn container_status(
    container: &Container,
    spec: &PodSpec,
    o: &Observed,
    old: &[ContainerStatus],
    init: bool,
) -> ContainerStatus {
    let old = old.iter().find(|status| status.name == container.name);
    let Some(latest) = o.latest(&container.name) else {
        return without_instance(container, spec, o, old);
    };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: latest
            .annotations
            .get(annotations::IMAGE_ID)
            .cloned()
            .unwrap_or_default(),
        container_id: Some(api_container_id(&latest.id.container_id)),
        restart_count: i32::try_from(latest.restart_count).unwrap_or(i32::MAX),
        ready: o.is_ready(container),
        started: Some(o.is_started(container)),
        state: Some(state_of(latest, o)),
        last_state: o
            .previous(&container.name)
            .map(|previous| state_of(previous, o)),
        ..ContainerStatus::default()
    };
    if init && !is_sidecar(container) {
        let done = matches!(&latest.state, ContainerState::Exited(exit) if exit.exit_code == 0);
        status.ready = done;
        status.started = Some(!is_ended(latest));
    }
    if let Some(waiting) = waiting_to_restart(container, latest, o) {
        status.last_state = status.state.replace(waiting);
    }
    status
}

/// An ended container that will be started again waits; nothing else does.
fn waiting_to_restart(container: &Container, latest: &Instance, o: &Observed) -> Option<ApiState> {
    if !is_ended(latest) || o.final_phase.is_some() {
        return None;
    }
    let held = o.restarts_held.get(&container.name);
    match (failure_of(container, o), held) {
        // It never ran, and the next try is held back as after a crash.
        (Some(("RunContainerError", _)) | None, Some(message)) => {
            Some(waiting("CrashLoopBackOff", Some(message.clone())))
        }
        (Some((reason, message)), _) => Some(waiting(reason, Some(message))),
        (None, None) => None,
    }
}

fn without_instance(
    container: &Container,
    spec: &PodSpec,
    o: &Observed,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    // Nothing on the node any more: what was shown last is all that is known.
    if let Some(old) = old
        && (o.final_phase.is_some() || o.torn_down)
    {
        return ContainerStatus {
            ready: false,
            started: Some(false),
            ..old.clone()
        };
    }
    let has_inits = spec
        .init_containers
        .as_ref()
        .is_some_and(|inits| !inits.is_empty());
    let state = match (&o.rejected, failure_of(container, o)) {
        (Some(_), _) => waiting("ContainerCreating", None),
        (None, Some((reason, message))) => waiting(reason, Some(message)),
        (None, None) if has_inits => waiting("PodInitializing", None),
        (None, None) => waiting("ContainerCreating", None),
    };
    let carried = o.carried.get(&container.name);
    let last_state = carried
        .and_then(|carried| carried.last.as_ref())
        .map(|last| state_of(last, o));
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: carried.map_or(0, |carried| {
            i32::try_from(carried.next_restart).unwrap_or(i32::MAX)
        }),
        ready: false,
        started: Some(false),
        state: Some(state),
        last_state: last_state.or_else(|| old.and_then(|old| old.last_state.clone())),
        ..ContainerStatus::default()
    }
}

/// What keeps the container from being started, if an operation failed. The image's failure counts only
/// until the container could be started with it.
fn failure_of(container: &Container, o: &Observed) -> Option<(&'static str, String)> {
    let image = o.failures.get(&Op::Image(container.name.clone()));
    let start = o.failures.get(&Op::Start(container.name.clone()));
    let failure = image.or(start)?;
    if failure.reason == "ErrImagePull" && o.image_backoff_shown.contains(&container.name) {
        let image = container.image.as_deref().unwrap_or_default();
        let message = format!(
            "Back-off pulling image \"{image}\": {}: {}",
            failure.reason, failure.message
        );
        return Some(("ImagePullBackOff", message));
    }
    Some((failure.reason, failure.message.clone()))
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ApiState::default()
    }
}

fn state_of(instance: &Instance, o: &Observed) -> ApiState {
    match &instance.state {
        ContainerState::Created => waiting("ContainerCreating", None),
        ContainerState::Running { started_at, .. } => ApiState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            }),
            ..ApiState::default()
        },
        ContainerState::Exited(exit) => ApiState {
            terminated: Some(terminated(instance, exit, o)),
            ..ApiState::default()
        },
    }
}

fn terminated(instance: &Instance, exit: &ExitStatus, o: &Observed) -> ContainerStateTerminated {
    let id = &instance.id.container_id;
    let reason = match () {
        () if exit.oom_killed => "OOMKilled",
        () if exit.started_at.is_none() && exit.message.is_some() => "StartError",
        () if exit.exit_code == 0 => "Completed",
        () => "Error",
    };
    ContainerStateTerminated {
        container_id: Some(api_container_id(id)),
        exit_code: exit.exit_code,
        reason: Some(reason.to_owned()),
        message: o.messages.get(id).cloned().or_else(|| exit.message.clone()),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
        ..ContainerStateTerminated::default()
    }
}
