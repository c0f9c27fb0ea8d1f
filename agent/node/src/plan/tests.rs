//! What is planned in every state that a pod can be in.

use serde_json::{Value, json};
use skiff_runtime::{ContainerRef, ExitStatus};

use super::*;
use crate::testing::pod_from;

const T0: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(T0 + second).unwrap()
}

fn instance(name: &str, restart_count: u32, state: ContainerState) -> Instance {
    let container_id = format!("{name}-{restart_count}");
    Instance {
        id: ContainerRef {
            pod_uid: "uid-web".to_owned(),
            container_id,
        },
        name: name.to_owned(),
        restart_count,
        created_at: at(i64::from(restart_count)),
        state,
        annotations: BTreeMap::new(),
    }
}

fn running(name: &str) -> Instance {
    instance(
        name,
        0,
        ContainerState::Running {
            started_at: at(0),
            pid: 1,
        },
    )
}

fn exited(name: &str, restart_count: u32, code: i32) -> Instance {
    let exit = ExitStatus {
        started_at: Some(at(0)),
        finished_at: at(5),
        exit_code: code,
        signal: None,
        oom_killed: false,
        message: None,
    };
    instance(name, restart_count, ContainerState::Exited(exit))
}

/// A pod whose sandbox and volumes are there.
fn ready() -> Observed {
    Observed {
        sandbox: SandboxState::Ready,
        volumes_ready: true,
        start_time: Some(at(0)),
        ..Observed::default()
    }
}

fn with(instances: Vec<Instance>) -> Observed {
    Observed {
        instances,
        ..ready()
    }
}

fn simple(policy: &str) -> Pod {
    let spec = json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 9, "containers": [{"name": "c"}]});
    pod_from("web", spec)
}

fn with_inits() -> Pod {
    pod_from(
        "web",
        json!({
            "restartPolicy": "Always",
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "c"}],
        }),
    )
}

fn deleting(mut pod: Pod, grace: i64) -> Pod {
    let meta: Value = json!({"deletionTimestamp": "2026-01-02T03:04:05Z"});
    let meta: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta =
        serde_json::from_value(meta).unwrap();
    pod.metadata.deletion_timestamp = meta.deletion_timestamp;
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

fn image(container: &str, restart_count: u32) -> Action {
    Action::EnsureImage {
        container: container.to_owned(),
        restart_count,
    }
}

fn start(container: &str, restart_count: u32) -> Action {
    Action::Start {
        container: container.to_owned(),
        restart_count,
    }
}

fn stop(container: &str, grace: u64, why: StopReason) -> Action {
    Action::Stop {
        container: container.to_owned(),
        id: format!("{container}-0"),
        grace: Duration::from_secs(grace),
        why,
    }
}

fn failure(retry_at: i64) -> Failure {
    Failure {
        reason: "X",
        message: String::new(),
        at: at(0),
        retry_at: at(retry_at),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_state_has_its_next_step() {
    let has_image = |mut o: Observed| {
        o.images_ready.insert("c".to_owned());
        o
    };
    let busy = |mut o: Observed, op: Op| {
        o.busy.insert(op);
        o
    };
    let failed = |mut o: Observed, op: Op, retry: i64| {
        o.failures.insert(op, failure(retry));
        o
    };
    let always = || simple("Always");
    let pods_end = StopReason::PodEnds;
    let table: Vec<(&str, Pod, Observed, Vec<Action>)> = vec![
        (
            "new: all at once",
            always(),
            Observed::default(),
            vec![Action::CreateSandbox, Action::MountVolumes, image("c", 0)],
        ),
        (
            "under way",
            always(),
            busy(
                busy(busy(Observed::default(), Op::Sandbox), Op::Volumes),
                Op::Image("c".into()),
            ),
            vec![],
        ),
        ("image first", always(), ready(), vec![image("c", 0)]),
        (
            "image there, no sandbox",
            always(),
            has_image(Observed {
                volumes_ready: true,
                ..Observed::default()
            }),
            vec![Action::CreateSandbox],
        ),
        (
            "image there, no volumes",
            always(),
            has_image(Observed {
                volumes_ready: false,
                ..ready()
            }),
            vec![Action::MountVolumes],
        ),
        (
            "all there",
            always(),
            has_image(ready()),
            vec![start("c", 0)],
        ),
        (
            "starting",
            always(),
            busy(has_image(ready()), Op::Start("c".into())),
            vec![],
        ),
        (
            "start failed, must wait",
            always(),
            failed(has_image(ready()), Op::Start("c".into()), 99),
            vec![],
        ),
        (
            "start failed, due",
            always(),
            failed(has_image(ready()), Op::Start("c".into()), 10),
            vec![start("c", 0)],
        ),
        (
            "pull failed, must wait",
            always(),
            failed(ready(), Op::Image("c".into()), 99),
            vec![],
        ),
        ("running", always(), with(vec![running("c")]), vec![]),
        (
            "half created",
            always(),
            with(vec![instance("c", 0, ContainerState::Created)]),
            vec![stop("c", 0, StopReason::Unfinished)],
        ),
        (
            "ended, Always",
            always(),
            with(vec![exited("c", 0, 0)]),
            vec![image("c", 1)],
        ),
        (
            "ended well, OnFailure",
            simple("OnFailure"),
            with(vec![exited("c", 0, 0)]),
            vec![Action::Teardown],
        ),
        (
            "ended badly, OnFailure",
            simple("OnFailure"),
            with(vec![exited("c", 0, 1)]),
            vec![image("c", 1)],
        ),
        (
            "ended badly, Never",
            simple("Never"),
            with(vec![exited("c", 0, 1)]),
            vec![Action::Teardown],
        ),
        (
            "old ones go",
            always(),
            with(vec![
                exited("c", 0, 1),
                exited("c", 1, 1),
                instance(
                    "c",
                    2,
                    ContainerState::Running {
                        started_at: at(0),
                        pid: 1,
                    },
                ),
            ]),
            vec![Action::Remove { id: "c-0".into() }],
        ),
        (
            "shim lost",
            always(),
            Observed {
                sandbox: SandboxState::Lost,
                ..with(vec![running("c")])
            },
            vec![Action::ResetSandbox],
        ),
        (
            "deleted, running",
            deleting(always(), 3),
            with(vec![running("c")]),
            vec![stop("c", 3, pods_end.clone())],
        ),
        (
            "deleted, stopping",
            deleting(always(), 3),
            busy(with(vec![running("c")]), Op::Stop("c-0".into())),
            vec![],
        ),
        (
            "forced while stopping",
            deleting(always(), 3),
            Observed {
                gone: true,
                ..busy(with(vec![running("c")]), Op::Stop("c-0".into()))
            },
            vec![Action::Kill { id: "c-0".into() }],
        ),
        (
            "deleted before anything",
            deleting(always(), 3),
            Observed::default(),
            vec![Action::Teardown],
        ),
        (
            "deleted while making the sandbox",
            deleting(always(), 3),
            busy(Observed::default(), Op::Sandbox),
            vec![],
        ),
        (
            "deleted while pulling",
            deleting(always(), 3),
            busy(Observed::default(), Op::Image("c".into())),
            vec![Action::Teardown],
        ),
        (
            "deleted, ended",
            deleting(always(), 3),
            with(vec![exited("c", 0, 0)]),
            vec![Action::Teardown],
        ),
        (
            "deleted, torn down",
            deleting(always(), 3),
            Observed {
                torn_down: true,
                ..with(vec![exited("c", 0, 0)])
            },
            vec![Action::Delete],
        ),
        (
            "the last status is under way",
            deleting(always(), 3),
            busy(
                Observed {
                    torn_down: true,
                    ..ready()
                },
                Op::Status,
            ),
            vec![],
        ),
        (
            "Succeeded, torn down, not deleted",
            simple("Never"),
            Observed {
                torn_down: true,
                final_phase: Some(Phase::Succeeded),
                ..ready()
            },
            vec![],
        ),
        (
            "refused",
            always(),
            Observed {
                rejected: Some(Rejection {
                    reason: "OutOfcpu".into(),
                    message: String::new(),
                }),
                ..Observed::default()
            },
            vec![Action::Teardown],
        ),
        ("init first", with_inits(), ready(), vec![image("i", 0)]),
        ("init runs", with_inits(), with(vec![running("i")]), vec![]),
        (
            "init failed, Always",
            with_inits(),
            with(vec![exited("i", 0, 1)]),
            vec![image("i", 1)],
        ),
        (
            "sidecar next",
            with_inits(),
            with(vec![exited("i", 0, 0)]),
            vec![image("s", 0)],
        ),
        (
            "sidecar up: main next",
            with_inits(),
            with(vec![exited("i", 0, 0), running("s")]),
            vec![image("c", 0)],
        ),
        (
            "sidecar ended: again",
            with_inits(),
            with(vec![exited("i", 0, 0), exited("s", 0, 0), running("c")]),
            vec![image("s", 1)],
        ),
        (
            "sidecars end last",
            deleting(with_inits(), 3),
            with(vec![exited("i", 0, 0), running("s"), running("c")]),
            vec![stop("c", 3, pods_end.clone())],
        ),
        (
            "then they end, too",
            deleting(with_inits(), 3),
            with(vec![exited("i", 0, 0), running("s"), exited("c", 0, 0)]),
            vec![stop("s", 3, pods_end)],
        ),
    ];
    for (what, pod, observed, expected) in table {
        assert_eq!(
            plan_pod(&pod, &observed, at(20)).actions,
            expected,
            "{what}"
        );
    }
}

#[test]
fn a_restart_that_is_under_way_is_not_held_back() {
    let mut observed = with(vec![exited("c", 1, 0)]);
    // Beginning the start made the back-off, for the run after it.
    let backoff = Backoff::first(at(1));
    observed.backoffs.insert("c".to_owned(), backoff);
    observed.busy.insert(Op::Start("c".to_owned()));
    assert_eq!(plan_pod(&simple("Always"), &observed, at(2)).actions, []);
}

#[test]
fn a_restart_waits_for_its_back_off() {
    let mut observed = with(vec![exited("c", 1, 1)]);
    observed
        .backoffs
        .insert("c".to_owned(), Backoff::first(at(1)));
    let plan = plan_pod(&simple("Always"), &observed, at(6));
    assert_eq!(
        plan.actions,
        [Action::NoteBackOff {
            container: "c".to_owned(),
            restart_count: 1
        }]
    );
    assert_eq!(plan.wake_at, Some(at(15)));
    assert_eq!(
        plan_pod(&simple("Always"), &observed, at(15)).actions,
        [image("c", 2)]
    );
}

#[test]
fn a_failed_operation_wakes_when_it_is_due() {
    let mut observed = ready();
    observed
        .failures
        .insert(Op::Image("c".to_owned()), failure(42));
    assert_eq!(
        plan_pod(&simple("Always"), &observed, at(1)).wake_at,
        Some(at(42))
    );
}

#[test]
fn final_phases_follow_the_exit_codes() {
    let two = pod_from(
        "web",
        json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}),
    );
    let phase = |instances| plan_pod(&two, &with(instances), at(9)).final_phase;
    assert_eq!(phase(vec![exited("a", 0, 0)]), None);
    assert_eq!(phase(vec![exited("a", 0, 0), running("b")]), None);
    assert_eq!(
        phase(vec![exited("a", 0, 0), exited("b", 0, 0)]),
        Some(Phase::Succeeded)
    );
    assert_eq!(
        phase(vec![exited("a", 0, 2), exited("b", 0, 0)]),
        Some(Phase::Failed)
    );
    let inits = pod_from(
        "web",
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}),
    );
    assert_eq!(
        plan_pod(&inits, &with(vec![exited("i", 0, 1)]), at(9)).final_phase,
        Some(Phase::Failed)
    );
}

#[test]
fn a_pod_that_never_restarts_fails_when_its_containers_are_lost() {
    let mut observed = ready();
    let last = Some(exited("c", 0, 137));
    observed.carried.insert(
        "c".to_owned(),
        Carried {
            next_restart: 1,
            last,
        },
    );
    assert_eq!(
        plan_pod(&simple("Never"), &observed, at(9)).final_phase,
        Some(Phase::Failed)
    );
    assert_eq!(
        plan_pod(&simple("Always"), &observed, at(9)).actions,
        [image("c", 1)]
    );
}

#[test]
fn probes_and_deadlines_end_containers() {
    let mut observed = with(vec![running("c")]);
    let verdict = ProbeVerdict {
        started: true,
        ready: true,
        failed: Some("liveness"),
    };
    observed.probes.insert("c-0".to_owned(), verdict);
    let plan = plan_pod(&simple("Always"), &observed, at(9));
    assert_eq!(plan.actions, [stop("c", 9, StopReason::Probe("liveness"))]);

    let mut limited = simple("Always");
    limited.spec.as_mut().unwrap().active_deadline_seconds = Some(30);
    let plan = plan_pod(&limited, &with(vec![running("c")]), at(9));
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(30))));
    let plan = plan_pod(&limited, &with(vec![running("c")]), at(30));
    assert!(plan.deadline_exceeded);
    assert_eq!(plan.final_phase, Some(Phase::Failed));
    assert_eq!(plan.actions, [stop("c", 9, StopReason::PodEnds)]);
}

#[test]
fn a_sidecar_counts_as_started_after_its_probe() {
    let mut pod = with_inits();
    let inits = pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    inits[1].startup_probe = Some(k8s_openapi::api::core::v1::Probe::default());
    let mut observed = with(vec![exited("i", 0, 0), running("s")]);
    assert_eq!(plan_pod(&pod, &observed, at(9)).actions, []);
    let started = ProbeVerdict {
        started: true,
        ..ProbeVerdict::default()
    };
    observed.probes.insert("s-0".to_owned(), started);
    assert_eq!(plan_pod(&pod, &observed, at(9)).actions, [image("c", 0)]);
}

#[test]
fn the_worker_ends_when_nothing_is_left() {
    let torn_down = Observed {
        torn_down: true,
        ..Observed::default()
    };
    let gone = Observed {
        gone: true,
        ..torn_down.clone()
    };
    assert!(plan_pod(&simple("Always"), &gone, at(9)).finished);
    let deleted = Observed {
        deleted: true,
        ..torn_down.clone()
    };
    assert!(plan_pod(&deleting(simple("Always"), 1), &deleted, at(9)).finished);
    assert!(!plan_pod(&deleting(simple("Always"), 1), &torn_down, at(9)).finished);
}
