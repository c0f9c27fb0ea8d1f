//! The pod's status as the API shows it. Pure: computed whole from the pod and what is observed.

mod conditions;
mod containers;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::plan::{Observed, SandboxState};

pub(crate) use self::containers::api_container_id;

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not all containers were started yet.
    Pending,
    /// Containers run or are restarted.
    Running,
    /// All ended well, for good.
    Succeeded,
    /// At least one ended badly, for good.
    Failed,
}

impl Phase {
    /// The API's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// The final phase that a status shows, if it is final.
    pub(crate) fn final_of(status: Option<&PodStatus>) -> Option<Self> {
        match status?.phase.as_deref()? {
            "Succeeded" => Some(Self::Succeeded),
            "Failed" => Some(Self::Failed),
            _ => None,
        }
    }
}

/// Computes the status. `previous` is the one shown so far: times of transitions are kept from it, and what
/// others wrote.
pub(crate) fn compute_status(
    pod: &Pod,
    o: &Observed,
    host_ips: &[IpAddr],
    now: Timestamp,
) -> PodStatus {
    let empty = PodStatus::default();
    let previous = pod.status.as_ref().unwrap_or(&empty);
    let Some(spec) = pod.spec.as_ref() else {
        return previous.clone();
    };
    let init_statuses = containers::init_statuses(spec, o, previous);
    let container_statuses = containers::main_statuses(spec, o, previous);
    let phase = phase(spec, o, &init_statuses, &container_statuses);
    let conditions =
        conditions::conditions(pod, o, phase, &init_statuses, &container_statuses, now);
    let (reason, message) = reason_and_message(o, previous);
    let mut status = PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions),
        reason,
        message,
        start_time: o
            .start_time
            .map(Time)
            .or_else(|| previous.start_time.clone()),
        qos_class: Some(skiff_spec::qos_class(pod).as_str().to_owned()),
        observed_generation: pod.metadata.generation,
        container_statuses: Some(container_statuses),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        ..PodStatus::default()
    };
    set_addresses(
        &mut status,
        spec.host_network == Some(true),
        o,
        host_ips,
        previous,
    );
    status
}

fn set_addresses(
    status: &mut PodStatus,
    host_network: bool,
    o: &Observed,
    host_ips: &[IpAddr],
    previous: &PodStatus,
) {
    status.host_ip = host_ips.first().map(ToString::to_string);
    let host = |ip: &IpAddr| HostIP { ip: ip.to_string() };
    status.host_ips = (!host_ips.is_empty()).then(|| host_ips.iter().map(host).collect());
    let pod_ips: &[IpAddr] = if host_network { host_ips } else { &o.ips };
    if pod_ips.is_empty() && (o.torn_down || o.sandbox == SandboxState::Lost) {
        status.pod_ip.clone_from(&previous.pod_ip);
        status.pod_ips.clone_from(&previous.pod_ips);
    } else if !pod_ips.is_empty() && (o.sandbox == SandboxState::Ready || o.torn_down) {
        status.pod_ip = pod_ips.first().map(ToString::to_string);
        let ips = pod_ips
            .iter()
            .map(|ip| PodIP { ip: ip.to_string() })
            .collect();
        status.pod_ips = Some(ips);
    }
}

fn reason_and_message(o: &Observed, previous: &PodStatus) -> (Option<String>, Option<String>) {
    if let Some(rejection) = &o.rejected {
        return (
            Some(rejection.reason.clone()),
            Some(rejection.message.clone()),
        );
    }
    if o.deadline_exceeded {
        let message = "Pod was active on the node longer than the specified deadline";
        return (
            Some("DeadlineExceeded".to_owned()),
            Some(message.to_owned()),
        );
    }
    if o.final_phase.is_some() {
        return (previous.reason.clone(), previous.message.clone());
    }
    (None, None)
}

fn phase(
    spec: &k8s_openapi::api::core::v1::PodSpec,
    o: &Observed,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Phase {
    if let Some(phase) = o.final_phase {
        return phase;
    }
    if o.rejected.is_some() || o.deadline_exceeded {
        return Phase::Failed;
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    for (container, status) in spec.init_containers.iter().flatten().zip(inits) {
        if crate::plan::is_sidecar(container) {
            continue;
        }
        let exit = terminated(status);
        if exit.is_some_and(|code| code != 0) && policy == "Never" {
            return Phase::Failed;
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in mains {
        let state = status.state.as_ref();
        if state.is_some_and(|state| state.running.is_some()) {
            running += 1;
        } else if let Some(code) = terminated(status) {
            stopped += 1;
            succeeded += usize::from(code == 0);
        } else if status
            .last_state
            .as_ref()
            .is_some_and(|last| last.terminated.is_some())
        {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    match () {
        () if waiting > 0 || mains.is_empty() => Phase::Pending,
        () if running > 0 || policy == "Always" => Phase::Running,
        () if stopped == succeeded => Phase::Succeeded,
        () if policy == "Never" => Phase::Failed,
        () => Phase::Running,
    }
}

fn terminated(status: &ContainerStatus) -> Option<i32> {
    status
        .state
        .as_ref()?
        .terminated
        .as_ref()
        .map(|terminated| terminated.exit_code)
}

/// The body of the patch that makes the API show `status`: a merge patch in which what the node owns and
/// is no more is null.
pub(crate) fn status_patch(uid: &str, status: &PodStatus) -> Value {
    const OWNED: [&str; 13] = [
        "phase",
        "conditions",
        "message",
        "reason",
        "hostIP",
        "hostIPs",
        "podIP",
        "podIPs",
        "startTime",
        "initContainerStatuses",
        "containerStatuses",
        "qosClass",
        "observedGeneration",
    ];
    let mut body = serde_json::to_value(status).unwrap_or_else(|_| json!({}));
    if let Some(fields) = body.as_object_mut() {
        for name in OWNED {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    json!({ "metadata": { "uid": uid }, "status": body })
}
