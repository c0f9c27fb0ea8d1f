//! The pod's conditions.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Phase;
use crate::plan::{Observed, SandboxState, is_sidecar};

struct Verdict {
    type_: &'static str,
    ok: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn new(type_: &'static str, ok: bool) -> Self {
        Self {
            type_,
            ok,
            reason: None,
            message: None,
        }
    }

    fn because(type_: &'static str, reason: &'static str, message: Option<String>) -> Self {
        Self {
            type_,
            ok: false,
            reason: Some(reason),
            message,
        }
    }
}

/// The node's conditions, and those that others wrote, unchanged.
pub(super) fn conditions(
    pod: &Pod,
    o: &Observed,
    phase: Phase,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let previous = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let containers_ready = containers_ready(o, phase, mains);
    let ready = ready(pod, previous, &containers_ready);
    let own = [
        Verdict::new(
            "PodReadyToStartContainers",
            o.sandbox == SandboxState::Ready && !o.torn_down,
        ),
        initialized(pod, o, phase, inits, mains),
        ready,
        containers_ready,
        Verdict::new("PodScheduled", true),
    ];
    let foreign = previous
        .iter()
        .filter(|old| own.iter().all(|new| new.type_ != old.type_));
    let foreign: Vec<PodCondition> = foreign.cloned().collect();
    own.into_iter()
        .map(|verdict| to_condition(verdict, previous, pod.metadata.generation, now))
        .chain(foreign)
        .collect()
}

fn to_condition(
    verdict: Verdict,
    previous: &[PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> PodCondition {
    let status = if verdict.ok { "True" } else { "False" };
    let unchanged = previous
        .iter()
        .find(|old| old.type_ == verdict.type_ && old.status == status)
        .and_then(|old| old.last_transition_time.clone());
    PodCondition {
        type_: verdict.type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(unchanged.unwrap_or(Time(now))),
        observed_generation: generation,
        ..PodCondition::default()
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(" ")
}

fn initialized(
    pod: &Pod,
    o: &Observed,
    phase: Phase,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Verdict {
    let specs = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.as_deref());
    if phase == Phase::Succeeded {
        return Verdict {
            reason: Some("PodCompleted"),
            ..Verdict::new("Initialized", true)
        };
    }
    let main_started = mains.iter().any(|status| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || status
                .last_state
                .as_ref()
                .is_some_and(|last| last.terminated.is_some())
    });
    if main_started || o.rejected.is_some() && inits.is_empty() {
        return Verdict::new("Initialized", true);
    }
    let incomplete = specs
        .unwrap_or_default()
        .iter()
        .zip(inits)
        .filter(|(container, status)| {
            if is_sidecar(container) {
                return status.started != Some(true);
            }
            super::terminated(status) != Some(0)
        });
    let incomplete = names(incomplete.map(|(container, _)| container.name.as_str()));
    if incomplete.is_empty() {
        return Verdict::new("Initialized", true);
    }
    let message = format!("containers with incomplete status: [{incomplete}]");
    Verdict::because("Initialized", "ContainersNotInitialized", Some(message))
}

fn containers_ready(o: &Observed, phase: Phase, mains: &[ContainerStatus]) -> Verdict {
    const TYPE: &str = "ContainersReady";
    match phase {
        Phase::Succeeded => return Verdict::because(TYPE, "PodCompleted", None),
        Phase::Failed if o.rejected.is_none() => return Verdict::because(TYPE, "PodFailed", None),
        _ => {}
    }
    let unready = names(
        mains
            .iter()
            .filter(|s| !s.ready)
            .map(|status| status.name.as_str()),
    );
    if unready.is_empty() && !mains.is_empty() {
        return Verdict::new(TYPE, true);
    }
    let message = format!("containers with unready status: [{unready}]");
    Verdict::because(TYPE, "ContainersNotReady", Some(message))
}

fn ready(pod: &Pod, previous: &[PodCondition], containers: &Verdict) -> Verdict {
    if !containers.ok {
        return Verdict {
            type_: "Ready",
            ok: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_deref());
    for gate in gates.unwrap_or_default() {
        let kind = &gate.condition_type;
        match previous.iter().find(|condition| &condition.type_ == kind) {
            Some(condition) if condition.status == "True" => {}
            Some(_) => {
                let message =
                    format!("the status of pod readiness gate \"{kind}\" is not \"True\"");
                return Verdict::because("Ready", "ReadinessGatesNotReady", Some(message));
            }
            None => {
                let message = format!(
                    "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                );
                return Verdict::because("Ready", "ReadinessGatesNotReady", Some(message));
            }
        }
    }
    Verdict::new("Ready", true)
}
