use k8s_openapi::api::core::v1::PodCondition;
use serde_json::json;
use skiff_runtime::{ContainerRef, ContainerState, ContainerStatus as Instance, ExitStatus};

use super::*;
use crate::plan::{Failure, Op, ProbeVerdict};
use crate::testing::pod_from;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn instance(name: &str, state: ContainerState) -> Instance {
    Instance {
        id: ContainerRef {
            pod_uid: "u".to_owned(),
            container_id: format!("id-{name}"),
        },
        name: name.to_owned(),
        restart_count: 0,
        created_at: now(),
        state,
        annotations: [(
            crate::annotations::IMAGE_ID.to_owned(),
            "img@sha256:1".to_owned(),
        )]
        .into(),
    }
}

fn running(name: &str) -> Instance {
    instance(
        name,
        ContainerState::Running {
            started_at: now(),
            pid: 1,
        },
    )
}

fn exited(name: &str, code: i32, oom_killed: bool) -> Instance {
    let exit = ExitStatus {
        started_at: Some(now()),
        finished_at: now(),
        exit_code: code,
        signal: None,
        oom_killed,
        message: None,
    };
    instance(name, ContainerState::Exited(exit))
}

fn observed(instances: Vec<Instance>) -> Observed {
    Observed {
        sandbox: SandboxState::Ready,
        ips: vec!["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        start_time: Some(now()),
        volumes_ready: true,
        instances,
        ..Observed::default()
    }
}

fn compute(pod: &Pod, o: &Observed) -> PodStatus {
    compute_status(pod, o, &["192.0.2.1".parse().unwrap()], now())
}

fn two(policy: &str) -> Pod {
    pod_from(
        "web",
        json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}),
    )
}

fn condition(status: &PodStatus, kind: &str) -> PodCondition {
    let all = status.conditions.as_ref().unwrap();
    all.iter()
        .find(|condition| condition.type_ == kind)
        .unwrap()
        .clone()
}

#[test]
fn phases_follow_the_containers() {
    for (policy, instances, phase) in [
        ("Always", vec![], "Pending"),
        ("Always", vec![running("a")], "Pending"),
        ("Always", vec![running("a"), running("b")], "Running"),
        (
            "Always",
            vec![running("a"), exited("b", 1, false)],
            "Running",
        ),
        (
            "Always",
            vec![exited("a", 0, false), exited("b", 0, false)],
            "Running",
        ),
        (
            "Never",
            vec![exited("a", 0, false), exited("b", 0, false)],
            "Succeeded",
        ),
        (
            "Never",
            vec![exited("a", 0, false), exited("b", 1, false)],
            "Failed",
        ),
        (
            "OnFailure",
            vec![exited("a", 0, false), exited("b", 1, false)],
            "Running",
        ),
        (
            "OnFailure",
            vec![exited("a", 0, false), exited("b", 0, false)],
            "Succeeded",
        ),
    ] {
        let shown = compute(&two(policy), &observed(instances.clone()));
        assert_eq!(
            shown.phase.as_deref(),
            Some(phase),
            "{policy} {instances:?}"
        );
    }
}

#[test]
fn unready_containers_are_named() {
    let status = compute(&two("Always"), &observed(vec![running("a")]));
    for kind in ["Ready", "ContainersReady"] {
        let condition = condition(&status, kind);
        assert_eq!(condition.status, "False");
        assert_eq!(condition.reason.as_deref(), Some("ContainersNotReady"));
        let message = condition.message.unwrap();
        assert_eq!(message, "containers with unready status: [b]");
    }
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(status.pod_ips.as_ref().unwrap().len(), 2);
}

#[test]
fn readiness_is_what_the_probe_says() {
    let mut pod = two("Always");
    pod.spec.as_mut().unwrap().containers[0].readiness_probe = Some(Default::default());
    let mut o = observed(vec![running("a"), running("b")]);
    assert_eq!(condition(&compute(&pod, &o), "Ready").status, "False");
    let ready = ProbeVerdict {
        started: true,
        ready: true,
        failed: None,
    };
    o.probes.insert("id-a".to_owned(), ready);
    assert_eq!(condition(&compute(&pod, &o), "Ready").status, "True");
    // A hook that still runs keeps it unready.
    o.busy.insert(Op::Start("a".to_owned()));
    assert_eq!(condition(&compute(&pod, &o), "Ready").status, "False");
}

#[test]
fn transitions_keep_their_time_and_others_their_conditions() {
    let mut pod = two("Always");
    let o = observed(vec![running("a"), running("b")]);
    let mut first = compute(&pod, &o);
    first.conditions.as_mut().unwrap().push(PodCondition {
        type_: "example.com/gate".to_owned(),
        status: "False".to_owned(),
        ..PodCondition::default()
    });
    pod.status = Some(first);
    pod.spec.as_mut().unwrap().readiness_gates =
        Some(serde_json::from_value(json!([{"conditionType": "example.com/gate"}])).unwrap());
    let later = now()
        .saturating_add(jiff::SignedDuration::from_secs(60))
        .unwrap();
    let status = compute_status(&pod, &o, &[], later);
    let scheduled = condition(&status, "PodScheduled");
    assert_eq!(scheduled.last_transition_time.unwrap().0, now());
    let ready = condition(&status, "Ready");
    assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(ready.last_transition_time.unwrap().0, later);
    assert_eq!(condition(&status, "example.com/gate").status, "False");
}

#[test]
fn waiting_and_terminated_states_have_reasons() {
    let pod = two("Always");
    let mut o = observed(vec![exited("a", 137, true)]);
    o.restarts_held
        .insert("a".to_owned(), "back-off".to_owned());
    let failure = Failure {
        reason: "ErrImagePull",
        message: "denied".to_owned(),
        at: now(),
        retry_at: now(),
    };
    o.failures.insert(Op::Image("b".to_owned()), failure);
    let statuses = compute(&pod, &o).container_statuses.unwrap();
    let waiting = |index: usize| statuses[index].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting(0).reason.as_deref(), Some("CrashLoopBackOff"));
    let last = statuses[0].last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(
        (last.reason.as_deref(), last.exit_code),
        (Some("OOMKilled"), 137)
    );
    assert_eq!(waiting(1).reason.as_deref(), Some("ErrImagePull"));
    o.image_backoff_shown.insert("b".to_owned());
    let statuses = compute(&pod, &o).container_statuses.unwrap();
    let waiting = statuses[1].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ImagePullBackOff"));
    let message = "Back-off pulling image \"y\": ErrImagePull: denied";
    assert_eq!(waiting.message.as_deref(), Some(message));
}

#[test]
fn what_is_no_more_is_null_in_the_patch() {
    let status = PodStatus {
        phase: Some("Running".to_owned()),
        ..PodStatus::default()
    };
    let patch = status_patch("u1", &status);
    assert_eq!(patch["metadata"]["uid"], "u1");
    assert_eq!(patch["status"]["phase"], "Running");
    assert!(patch["status"].as_object().unwrap().contains_key("podIP"));
    assert!(patch["status"]["podIP"].is_null());
    assert!(
        !patch["status"]
            .as_object()
            .unwrap()
            .contains_key("nominatedNodeName")
    );
}
