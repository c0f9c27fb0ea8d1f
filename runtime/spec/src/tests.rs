//! Whole specs against files in `testdata/`; `UPDATE_GOLDEN=1` writes them anew, to be read in the diff.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use oci_spec::runtime::{Capability, LinuxSeccompOperator, Spec};
use serde_json::{Value, json};

use super::*;

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn pod_with(container: Value, spec: Value) -> Pod {
    let mut all = json!({"containers": [container]});
    all.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    all["containers"][0]["name"] = json!("c");
    pod(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": all}))
}

fn input(pod: &Pod) -> SpecInput<'_> {
    SpecInput {
        pod,
        container: &pod.spec.as_ref().unwrap().containers[0],
        image: ImageDefaults {
            entrypoint: vec!["/entrypoint".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: vec!["PATH=/usr/bin".to_owned(), "FROM=image".to_owned()],
            working_dir: String::new(),
        },
        user: User {
            uid: 0,
            gid: 0,
            additional_gids: vec![],
            home: "/root".to_owned(),
        },
        env: vec![
            ("FROM".to_owned(), "pod".to_owned()),
            ("WHO".to_owned(), "world".to_owned()),
        ],
        hostname: "p".to_owned(),
        mounts: vec![MountInput {
            source: "/data/pods/uid/etc-hosts".into(),
            destination: "/etc/hosts".into(),
            ..MountInput::default()
        }],
        rootfs: Path::new("/data/images/containers/id/rootfs"),
        cgroup_path: Path::new("/skiff/poduid/id"),
        namespaces: SandboxPaths {
            net: Some("/run/netns/skiff-uid".into()),
            ipc: Some("/run/skiff/pods/uid/ns/ipc".into()),
            uts: Some("/run/skiff/pods/uid/ns/uts".into()),
        },
        node_memory_bytes: 8 << 30,
        pids_limit: Some(1024),
        devices: vec![],
        architecture: Architecture::X86_64,
    }
}

fn build(pod: &Pod) -> Spec {
    build_spec(&input(pod)).unwrap()
}

/// A spec as JSON with its sets in order and the (separately tested) profile shortened.
fn readable(spec: &Spec) -> Value {
    let mut value = serde_json::to_value(spec).unwrap();
    for set in value["process"]["capabilities"]
        .as_object_mut()
        .unwrap()
        .values_mut()
    {
        set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
    }
    if let Some(seccomp) = value["linux"].get_mut("seccomp") {
        let rules = seccomp["syscalls"].as_array().unwrap().len();
        *seccomp = json!(format!("default profile, {rules} rules"));
    }
    value
}

fn assert_golden(name: &str, value: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/{name}.json"));
    let text = format!("{}\n", serde_json::to_string_pretty(value).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (got, want)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(got, want, "{}:{}", path.display(), number + 1);
    }
    assert_eq!(
        text.lines().count(),
        golden.lines().count(),
        "{}",
        path.display()
    );
}

#[test]
fn golden_azure_vote_back() {
    let pod = pod(
        json!({"metadata": {"name": "azure-vote-back-x", "namespace": "dev"}, "spec": {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "containers": [{"name": "azure-vote-back", "image": "mcr.microsoft.com/oss/bitnami/redis:6.0.8",
            "env": [{"name": "ALLOW_EMPTY_PASSWORD", "value": "yes"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "250m", "memory": "256Mi"}},
            "ports": [{"containerPort": 6379, "name": "redis"}]}]}}),
    );
    let mut input = input(&pod);
    input.env = vec![("ALLOW_EMPTY_PASSWORD".to_owned(), "yes".to_owned())];
    input.user = User {
        uid: 1001,
        gid: 0,
        additional_gids: vec![],
        home: "/".to_owned(),
    };
    assert_golden("azure-vote-back", &readable(&build_spec(&input).unwrap()));
}

#[test]
fn golden_azure_vote_front() {
    let pod = pod(
        json!({"metadata": {"name": "azure-vote-front-x", "namespace": "dev"}, "spec": {
        "containers": [{"name": "azure-vote-front", "image": "mcr.microsoft.com/azuredocs/azure-vote-front:v1",
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "250m", "memory": "256Mi"}},
            "ports": [{"containerPort": 80}], "env": [{"name": "REDIS", "value": "azure-vote-back"}]}]}}),
    );
    let mut input = input(&pod);
    input.env = vec![("REDIS".to_owned(), "azure-vote-back".to_owned())];
    input.image.working_dir = "/app".to_owned();
    assert_golden("azure-vote-front", &readable(&build_spec(&input).unwrap()));
}

#[test]
fn golden_privileged_on_the_nodes_namespaces() {
    let pod = pod_with(
        json!({"securityContext": {"privileged": true}, "tty": true}),
        json!({"hostNetwork": true, "hostPID": true, "priorityClassName": "system-node-critical"}),
    );
    let mut input = input(&pod);
    input.namespaces.net = None;
    input.mounts.push(MountInput {
        source: "/var/lib/x".into(),
        destination: "/x/".into(),
        propagation: Propagation::Bidirectional,
        ..MountInput::default()
    });
    assert_golden("privileged", &readable(&build_spec(&input).unwrap()));
}

#[test]
fn golden_restricted_user() {
    let pod = pod_with(
        json!({"command": ["/bin/sh", "-c", "echo $(WHO) $$(WHO) $(NONE)"], "workingDir": "/w",
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "runAsNonRoot": true, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}),
        json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [44, 7],
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}}),
    );
    let container = &pod.spec.as_ref().unwrap().containers[0];
    assert_eq!(
        user_to_resolve(&pod, container, "app").unwrap(),
        "1000:3000"
    );
    let mut input = input(&pod);
    input.user = User {
        uid: 1000,
        gid: 3000,
        additional_gids: vec![7],
        home: "/home/app".to_owned(),
    };
    assert_golden("restricted", &readable(&build_spec(&input).unwrap()));
}

#[test]
fn golden_unconfined_with_volumes() {
    let pod = pod_with(
        json!({"args": ["--name=$(WHO)"], "securityContext": {"seccompProfile": {"type": "Unconfined"}, "procMount": "Unmasked",
            "capabilities": {"add": ["CAP_SYS_ADMIN"], "drop": ["MKNOD"]}}}),
        json!({}),
    );
    let mut input = input(&pod);
    let mount = |source: &str, destination: &str, read_only, propagation| MountInput {
        source: source.into(),
        destination: destination.into(),
        options: vec![],
        read_only,
        propagation,
    };
    input.mounts.extend([
        mount("/data/a/b", "/a/b", true, Propagation::None),
        mount("/data/shm", "/dev/shm", false, Propagation::None),
        mount("/data/a", "/a", false, Propagation::HostToContainer),
    ]);
    assert_golden(
        "unconfined-volumes",
        &readable(&build_spec(&input).unwrap()),
    );
}

#[test]
fn golden_best_effort_on_arm() {
    let pod = pod_with(json!({}), json!({}));
    let mut input = input(&pod);
    input.architecture = Architecture::Aarch64;
    input.pids_limit = None;
    assert_golden("best-effort", &readable(&build_spec(&input).unwrap()));
}

#[test]
fn golden_default_seccomp_profile() {
    let spec = build(&pod_with(json!({}), json!({})));
    let linux = spec.linux().as_ref().unwrap();
    assert_golden(
        "seccomp-default",
        &serde_json::to_value(linux.seccomp()).unwrap(),
    );
}

#[test]
fn golden_seccomp_profile_with_capabilities_on_arm() {
    let capabilities = [Capability::SysAdmin, Capability::SysTime]
        .into_iter()
        .collect();
    let profile = default_profile(&capabilities, Architecture::Aarch64);
    assert_golden(
        "seccomp-sys-admin-arm",
        &serde_json::to_value(profile).unwrap(),
    );
}

#[test]
fn the_engine_gets_the_mask_where_it_looks_for_it() {
    let standard = default_profile(&Default::default(), Architecture::X86_64);
    let spec = build(&pod_with(json!({}), json!({})));
    let ours = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    let operands = |profile: &oci_spec::runtime::LinuxSeccomp| {
        let rules = profile.syscalls().clone().unwrap();
        let args = rules
            .iter()
            .flat_map(|rule| rule.args().clone().unwrap_or_default());
        args.filter(|arg| arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq)
            .map(|arg| (arg.value(), arg.value_two()))
            .collect::<Vec<_>>()
    };
    assert_eq!(operands(&standard), [(0x7e02_0000, Some(0))]);
    assert_eq!(operands(&ours), [(0, Some(0x7e02_0000))]);
}

#[test]
fn no_syscall_is_listed_twice_without_arguments() {
    let standard = default_profile(&Default::default(), Architecture::X86_64);
    let mut seen = std::collections::HashSet::new();
    for rule in standard
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.args().is_none())
    {
        for name in rule.names() {
            assert!(seen.insert(name.clone()), "{name}");
        }
    }
    for dangerous in [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "kexec_load",
        "init_module",
        "io_uring_setup",
        "keyctl",
        "clone",
        "personality",
        "socket",
        "userfaultfd",
    ] {
        assert!(!seen.contains(dangerous), "{dangerous}");
    }
}

#[test]
fn false_privilege_escalation_is_said_and_true_is_left_out() {
    for (given, want) in [
        (json!(null), None),
        (json!(true), None),
        (json!(false), Some(true)),
    ] {
        let pod = pod_with(
            json!({"securityContext": {"allowPrivilegeEscalation": given}}),
            json!({}),
        );
        assert_eq!(
            build(&pod).process().as_ref().unwrap().no_new_privileges(),
            want
        );
    }
}

#[test]
fn the_command_comes_from_the_container_or_the_image() {
    for (container, want) in [
        (json!({}), vec!["/entrypoint", "serve"]),
        (json!({"args": ["a"]}), vec!["/entrypoint", "a"]),
        (json!({"command": ["c"]}), vec!["c"]),
        (
            json!({"command": ["c"], "args": ["$(WHO)"]}),
            vec!["c", "world"],
        ),
    ] {
        let pod = pod_with(container.clone(), json!({}));
        assert_eq!(
            build(&pod)
                .process()
                .as_ref()
                .unwrap()
                .args()
                .as_deref()
                .unwrap(),
            want,
            "{container}"
        );
    }
    let pod = pod_with(json!({}), json!({}));
    let mut input = input(&pod);
    input.image = ImageDefaults::default();
    assert_eq!(build_spec(&input), Err(SpecError::NoCommand));
}

#[test]
fn what_cannot_be_satisfied_names_its_field() {
    for (container, spec, reason, want) in [
        (
            json!({"securityContext": {"capabilities": {"add": ["FLY"]}}}),
            json!({}),
            "CreateContainerConfigError",
            "securityContext.capabilities.add: unknown capability \"FLY\"",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
            json!({}),
            "CreateContainerConfigError",
            "seccompProfile.type",
        ),
        (
            json!({"resources": {"limits": {"memory": "much"}}}),
            json!({}),
            "CreateContainerConfigError",
            "containers[c].resources.limits[memory]",
        ),
        (
            json!({"workingDir": "relative"}),
            json!({}),
            "CreateContainerConfigError",
            "workingDir",
        ),
        (
            json!({}),
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
            "SysctlForbidden",
            "kernel.msgmax",
        ),
        (
            json!({}),
            json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}}),
            "SysctlForbidden",
            "tcp_syncookies",
        ),
        (
            json!({}),
            json!({"securityContext": {"fsGroup": -1}}),
            "CreateContainerConfigError",
            "-1",
        ),
    ] {
        let pod = pod_with(container, spec);
        let error = build_spec(&input(&pod)).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(error.reason(), reason);
    }
    let pod = pod_with(json!({}), json!({}));
    let mut input = input(&pod);
    input.mounts[0].destination = "/a/../b".into();
    assert!(
        build_spec(&input)
            .unwrap_err()
            .to_string()
            .contains("mountPath")
    );
}

#[test]
fn run_as_non_root_is_held_against_the_image() {
    for (own, image, want) in [
        (json!({"runAsNonRoot": true}), "", Err("will run as root")),
        (json!({"runAsNonRoot": true}), "0", Err("will run as root")),
        (
            json!({"runAsNonRoot": true}),
            "0:5",
            Err("will run as root"),
        ),
        (
            json!({"runAsNonRoot": true}),
            "root",
            Err("non-numeric user (root)"),
        ),
        (json!({"runAsNonRoot": true}), "1000", Ok("1000")),
        (
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            "1000",
            Err("will run as root"),
        ),
        (json!({"runAsNonRoot": true, "runAsUser": 5}), "", Ok("5")),
        (json!({"runAsUser": 5}), "app:grp", Ok("5")),
        (json!({"runAsGroup": 6}), "app:grp", Ok("app:6")),
        (json!({}), "app:grp", Ok("app:grp")),
        (json!({}), "", Ok("")),
    ] {
        let pod = pod_with(json!({"securityContext": own}), json!({}));
        let got = user_to_resolve(&pod, &pod.spec.as_ref().unwrap().containers[0], image);
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{got}"),
            (got, want) => panic!("{own} {image}: {got:?}, wanted {want:?}"),
        }
    }
}

#[test]
fn classes_of_service_and_scores_are_upstreams() {
    let cpu_memory = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    for (resources, class, score) in [
        (json!({}), "BestEffort", 1000),
        (json!({"requests": {"cpu": "0"}}), "BestEffort", 1000),
        (
            json!({"limits": cpu_memory("1", "1Gi")}),
            "Guaranteed",
            -997,
        ),
        (
            json!({"limits": cpu_memory("1", "1Gi"), "requests": cpu_memory("1000m", "1024Mi")}),
            "Guaranteed",
            -997,
        ),
        (
            json!({"limits": cpu_memory("1", "1Gi"), "requests": cpu_memory("500m", "1Gi")}),
            "Burstable",
            875,
        ),
        (json!({"limits": {"memory": "1Gi"}}), "Burstable", 875),
        (json!({"requests": {"cpu": "1"}}), "Burstable", 999),
        (json!({"requests": {"memory": "8Gi"}}), "Burstable", 3),
        (
            json!({"limits": {"ephemeral-storage": "1Gi"}}),
            "BestEffort",
            1000,
        ),
    ] {
        let pod = pod_with(json!({"resources": resources}), json!({}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(qos_class(&pod).as_str(), class, "{resources}");
        assert_eq!(
            oom_score_adj(&pod, container, 8 << 30),
            score,
            "{resources}"
        );
    }
    let init = pod(
        json!({"spec": {"containers": [{"name": "c", "resources": {"limits": cpu_memory("1", "1Gi")}}],
        "initContainers": [{"name": "i"}]}}),
    );
    assert_eq!(qos_class(&init), QosClass::Burstable);
    assert_eq!(
        (cpu_shares(0), cpu_shares(100), cpu_shares(1000)),
        (2, 102, 1024)
    );
    assert_eq!(
        (cpu_quota(0), cpu_quota(1), cpu_quota(250)),
        (None, Some(1000), Some(25_000))
    );
}
