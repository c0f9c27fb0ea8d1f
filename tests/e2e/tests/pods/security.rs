//! What a container may and may not do.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    eventually,
    scene::{Case, PATIENCE, REDIS, Scene, container, has, pod, runs},
};

pub(crate) const CASES: &[Case] = &[
    ("users", a_container_runs_as_who_it_is_told),
    ("read-only", a_root_file_system_may_be_read_only),
    ("capabilities", capabilities_are_dropped_and_added),
    ("non-root", root_is_refused_where_it_must_not_be),
    ("privileged", a_privileged_container_is_not_confined),
    ("seccomp", namespaces_are_not_to_be_had),
    ("masked", the_nodes_secrets_are_masked),
];

fn sleeper(name: &str, context: Value) -> Value {
    runs(
        name,
        &["sleep", "infinity"],
        json!({"securityContext": context}),
    )
}

fn a_container_runs_as_who_it_is_told(scene: &Scene<'_>) -> Result<()> {
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let mut own = sleeper("own", json!({"runAsUser": 2222}));
    let mut pods = sleeper("pods", json!({}));
    own["volumeMounts"] = mounts.clone();
    pods["volumeMounts"] = mounts;
    scene.apply(&pod("p", json!({
        "securityContext": {"runAsUser": 1234, "runAsGroup": 5678, "fsGroup": 4321, "supplementalGroups": [99]},
        "containers": [own, pods, {"name": "image", "image": REDIS, "command": ["sleep", "infinity"]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    })))?;
    scene.ready("p")?;
    let id = |container: &str| -> Result<Vec<u32>> {
        let script = "id -u; id -g; id -G | tr ' ' '\\n' | sort -n";
        let said = scene.run(&["exec", "p", "-c", container, "--", "sh", "-c", script])?;
        said.split_whitespace()
            .map(|word| Ok(word.parse()?))
            .collect()
    };
    ensure!(
        id("own")? == [2222, 5678, 99, 4321, 5678],
        "{:?}",
        id("own")?
    );
    ensure!(
        id("pods")? == [1234, 5678, 99, 4321, 5678],
        "{:?}",
        id("pods")?
    );
    // The main process is the same user.
    let status = scene.run(&["exec", "p", "-c", "own", "--", "cat", "/proc/1/status"])?;
    has(&status, "Uid:\t2222\t2222\t2222\t2222")?;
    let made = scene.run(&[
        "exec",
        "p",
        "-c",
        "own",
        "--",
        "sh",
        "-c",
        "touch /v/f && stat -c '%u %g' /v/f",
    ])?;
    ensure!(made == "2222 4321\n", "fsGroup: {made}");
    // Without any word in the spec, the image's user counts.
    scene.apply(&pod(
        "q",
        json!({"containers": [{"name": "c", "image": REDIS, "command": ["sleep", "infinity"]}]}),
    ))?;
    scene.ready("q")?;
    ensure!(scene.exec("q", &["id", "-u"])?.trim() == "1001");
    Ok(())
}

fn a_root_file_system_may_be_read_only(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&pod(
        "p",
        json!({"containers": [sleeper("c", json!({"readOnlyRootFilesystem": true}))]}),
    ))?;
    scene.ready("p")?;
    has(
        &scene.fails(&["exec", "p", "--", "touch", "/file"])?,
        "Read-only file system",
    )
}

/// A line of /proc/PID/status as a number.
fn status_field(scene: &Scene<'_>, container: &str, process: &str, field: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = scene.run(&["exec", "p", "-c", container, "--", "cat", &path])?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    Ok(u64::from_str_radix(value.context("no such field")?, 16)?)
}

fn capabilities_are_dropped_and_added(scene: &Scene<'_>) -> Result<()> {
    const NET_ADMIN: u64 = 1 << 12;
    const CHOWN: u64 = 1;
    const NET_BIND: u64 = 1 << 10;
    // What containerd gives.
    const DEFAULT: u64 = 0xa804_25fb;
    scene.apply(&pod("p", json!({"containers": [
        sleeper("default", json!({})),
        sleeper("none", json!({"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false})),
        sleeper("one", json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}})),
        sleeper("more", json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["CHOWN"]}})),
    ]})))?;
    scene.ready("p")?;
    for process in ["1", "self"] {
        for (container, expected) in [
            ("default", DEFAULT),
            ("none", 0),
            ("one", NET_BIND),
            ("more", (DEFAULT | NET_ADMIN) & !CHOWN),
        ] {
            let found = status_field(scene, container, process, "CapEff")?;
            ensure!(
                found == expected,
                "{container}, process {process}: {found:x}, not {expected:x}"
            );
        }
        ensure!(
            status_field(scene, "none", process, "NoNewPrivs")? == 1,
            "process {process}"
        );
        ensure!(
            status_field(scene, "default", process, "NoNewPrivs")? == 0,
            "process {process}"
        );
    }
    Ok(())
}

fn root_is_refused_where_it_must_not_be(scene: &Scene<'_>) -> Result<()> {
    let strict = json!({"runAsNonRoot": true});
    let root = pod(
        "root",
        json!({"containers": [sleeper("c", strict.clone())]}),
    );
    let mut numbered = sleeper("c", strict.clone());
    numbered["securityContext"]["runAsUser"] = json!(1000);
    let numbered = pod("numbered", json!({"containers": [numbered]}));
    let named = runs(
        "c",
        &["sleep", "infinity"],
        json!({"image": REDIS, "securityContext": strict}),
    );
    scene.apply(&json!([
        root,
        numbered,
        pod("named", json!({"containers": [named]}))
    ]))?;
    for (name, words) in [
        (
            "root",
            "container has runAsNonRoot and image will run as root",
        ),
        (
            "named",
            "container has runAsNonRoot and image has non-numeric user (redis), cannot verify user is non-root",
        ),
    ] {
        let seen = scene.pod(name, "a refusal", |pod| {
            container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })?;
        let message = container(&seen, "c")["state"]["waiting"]["message"].as_str();
        has(message.unwrap_or_default(), words)?;
    }
    scene.ready("numbered")?;
    Ok(())
}

fn a_privileged_container_is_not_confined(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&pod(
        "p",
        json!({"containers": [sleeper("c", json!({"privileged": true}))]}),
    ))?;
    scene.ready("p")?;
    for process in ["1", "self"] {
        ensure!(
            status_field(scene, "c", process, "Seccomp")? == 0,
            "process {process}"
        );
        // Everything that the node's own programs have.
        let own = std::fs::read_to_string("/proc/self/status")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:\t"))
            .context("no CapBnd")?;
        let own = u64::from_str_radix(own, 16)?;
        ensure!(
            status_field(scene, "c", process, "CapEff")? == own,
            "process {process}"
        );
    }
    Ok(())
}

/// Tries what a container escape would need, and what every program needs.
const ESCAPE: &str = r#"
import ctypes, errno, os, threading
libc = ctypes.CDLL(None, use_errno=True)
def name(result):
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "done"
CLONE_NEWUSER, SIGCHLD = 0x10000000, 17
print("unshare", name(libc.unshare(CLONE_NEWUSER)))
clone, clone3 = (56, 435) if os.uname().machine == "x86_64" else (220, 435)
result = libc.syscall(clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)
if result == 0: os._exit(0)
print("clone", name(result))
args = (ctypes.c_uint64 * 8)(CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0)
result = libc.syscall(clone3, args, 64)
if result == 0: os._exit(0)
print("clone3", name(result))
print("keyctl", name(libc.syscall(250 if os.uname().machine == "x86_64" else 219, 0, 0, 0, 0, 0)))
pid = os.fork()
if pid == 0: os._exit(7)
print("fork", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
t = threading.Thread(target=lambda: print("thread")); t.start(); t.join()
"#;

fn namespaces_are_not_to_be_had(scene: &Scene<'_>) -> Result<()> {
    let expected = "unshare EPERM\nclone EPERM\nclone3 ENOSYS\nkeyctl EPERM\nfork 7\nthread\n";
    let main = runs("c", &["python3", "-u", "-c", ESCAPE], json!({}));
    let sleeps = runs("sleeps", &["sleep", "infinity"], json!({}));
    scene.apply(&pod(
        "p",
        json!({"restartPolicy": "Never", "containers": [sleeps, main]}),
    ))?;
    scene.pod("p", "the program's end", |pod| {
        container(pod, "c")["state"]["terminated"]["exitCode"] == 0
    })?;
    let said = eventually(
        "its words",
        PATIENCE,
        || scene.logs("p", &["-c", "c"]),
        |log| log.contains("thread"),
    )?;
    ensure!(said == expected, "the main process:\n{said}");
    let said = scene.python("p", ESCAPE)?;
    ensure!(said == expected, "under exec:\n{said}");
    Ok(())
}

fn the_nodes_secrets_are_masked(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&pod("p", json!({"containers": [sleeper("c", json!({}))]})))?;
    scene.ready("p")?;
    ensure!(
        scene
            .sh("p", "cat /proc/kcore /proc/keys /proc/timer_list | wc -c")?
            .trim()
            == "0"
    );
    ensure!(scene.sh("p", "ls /sys/firmware | wc -l")?.trim() == "0");
    for script in [
        "echo 1 >/proc/sys/kernel/panic",
        "cd /sys/fs/cgroup; test -e cgroup.procs || cd memory; mkdir new",
    ] {
        let error = scene.fails(&["exec", "p", "--", "sh", "-c", script])?;
        has(&error.to_lowercase(), "read-only file system")?;
    }
    // Neither the node's disks nor its processes.
    let seen = scene.sh("p", "echo /dev/*; echo /proc/[0-9]*")?;
    ensure!(
        !seen.contains("/dev/vda") && !seen.contains("/dev/sda") && !seen.contains("/dev/kmsg"),
        "{seen}"
    );
    ensure!(
        seen.lines()
            .last()
            .is_some_and(|line| line.split(' ').count() <= 3),
        "{seen}"
    );
    Ok(())
}
