//! What cannot work gets an answer that names the reason, and recovers when the reason goes.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    Cluster, eventually, leftovers,
    scene::{Case, PYTHON, Scene, container, has, play, pod, runs, script, script_pod},
};

const CASES: &[Case] = &[
    ("unknown-field", an_unknown_field_is_named),
    ("wrong-type", a_wrong_type_is_named),
    ("invalid-value", every_invalid_value_is_named),
    ("image-missing", an_image_that_does_not_exist),
    ("registry-unreachable", a_registry_that_cannot_be_reached),
    ("image-name", an_image_name_that_is_none),
    ("command-missing", a_command_that_does_not_exist),
    (
        "command-missing-never",
        a_command_that_does_not_exist_is_not_tried_again,
    ),
    ("workdir", a_command_that_may_not_be_executed),
    ("config-key", a_missing_config_map_key),
    ("config-volume", a_missing_config_map_of_a_volume),
    ("node-selector", a_node_selector_that_fits_nowhere),
    ("too-large", a_request_larger_than_the_node),
];

#[test]
fn bad_manifests_get_an_answer() -> Result<()> {
    let cluster = Cluster::up("bad-input")?;
    play(&cluster, CASES)?;
    cluster.down()
}

#[test]
fn a_node_that_cannot_start_says_why_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::up("bad-node")?;
    a_second_daemon_is_refused(&cluster)?;
    a_data_directory_has_one_daemon(&cluster)?;
    cluster.down()?;
    an_api_port_that_is_taken()?;
    a_published_port_that_is_taken()?;
    a_data_directory_that_is_a_file()?;
    a_registries_file_with_an_unknown_field()?;
    not_root()?;
    flags_that_make_no_sense()
}

fn an_unknown_field_is_named(scene: &Scene<'_>) -> Result<()> {
    let mut manifest = script_pod("typo", "sleep 1");
    manifest["spec"]["containers"][0]["imagePullPolicey"] = json!("Always");
    let said = refused(scene, &manifest)?;
    has(
        &said,
        "unknown field \"spec.containers[0].imagePullPolicey\"",
    )?;
    ensure!(nothing_there(scene, "pods")?);
    // Asked to, the server only warns.
    let args = ["apply", "--validate=warn", "-f", "-"];
    let output = scene.feed(&args, manifest.to_string().as_bytes())?;
    ensure!(output.status.success(), "{output:?}");
    has(
        &String::from_utf8_lossy(&output.stderr),
        "unknown field \"spec.containers[0].imagePullPolicey\"",
    )
}

fn refused(scene: &Scene<'_>, manifest: &Value) -> Result<String> {
    let output = scene.feed(&["apply", "-f", "-"], manifest.to_string().as_bytes())?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

fn nothing_there(scene: &Scene<'_>, kind: &str) -> Result<bool> {
    Ok(scene.run(&["get", kind, "-o", "name"])?.is_empty())
}

fn deployment(replicas: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [script("c", "sleep 1")]},
            },
        },
    })
}

fn a_wrong_type_is_named(scene: &Scene<'_>) -> Result<()> {
    let said = refused(scene, &deployment(json!("three")))?;
    has(&said, "spec.replicas")?;
    let mut manifest = script_pod("typo", "sleep 1");
    manifest["spec"]["containers"][0]["ports"] = json!({"containerPort": 80});
    has(&refused(scene, &manifest)?, "ports")?;
    ensure!(nothing_there(scene, "deployments,pods")?);
    Ok(())
}

fn every_invalid_value_is_named(scene: &Scene<'_>) -> Result<()> {
    let mut manifest = deployment(json!(-1));
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!("");
    manifest["spec"]["template"]["metadata"]["labels"]["app"] = json!("other");
    let said = refused(scene, &manifest)?;
    has(&said, "The Deployment \"web\" is invalid")?;
    has(
        &said,
        "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
    )?;
    has(
        &said,
        "spec.template.spec.containers[0].image: Required value",
    )?;
    has(&said, "`selector` does not match template `labels`")?;
    ensure!(nothing_there(scene, "deployments")?);
    Ok(())
}

/// The reason why a container waits.
fn waits<'v>(pod: &'v Value, name: &str) -> &'v str {
    container(pod, name)["state"]["waiting"]["reason"]
        .as_str()
        .unwrap_or_default()
}

fn waiting_message<'v>(pod: &'v Value, name: &str) -> &'v str {
    container(pod, name)["state"]["waiting"]["message"]
        .as_str()
        .unwrap_or_default()
}

fn an_image_that_does_not_exist(scene: &Scene<'_>) -> Result<()> {
    let image = "mcr.microsoft.com/azuredocs/azure-vote-front:v999";
    scene.apply(&pod(
        "p",
        json!({
            "containers": [runs("c", &["sleep", "infinity"], json!({"image": image}))]
        }),
    ))?;
    let seen = scene.pod("p", "ErrImagePull", |pod| waits(pod, "c") == "ErrImagePull")?;
    has(waiting_message(&seen, "c"), "manifest unknown")?;
    let seen = scene.pod("p", "ImagePullBackOff", |pod| {
        waits(pod, "c") == "ImagePullBackOff"
    })?;
    ensure!(seen["status"]["phase"] == "Pending", "{seen:#}");
    has(
        waiting_message(&seen, "c"),
        &format!("Back-off pulling image \"{image}\""),
    )?;
    let failed = format!("Failed to pull image \"{image}\"");
    let event = scene.event("p", "Failed", &failed)?;
    ensure!(event["type"] == "Warning", "{event:#}");
    has(
        event["message"].as_str().unwrap_or_default(),
        "manifest unknown",
    )?;
    scene.event("p", "Failed", "Error: ErrImagePull")?;
    scene.event(
        "p",
        "BackOff",
        &format!("Back-off pulling image \"{image}\""),
    )?;
    scene.run(&["set", "image", "pod/p", &format!("c={PYTHON}")])?;
    let ready = scene.ready("p")?;
    ensure!(container(&ready, "c")["restartCount"] == 0, "{ready:#}");
    Ok(())
}

fn a_registry_that_cannot_be_reached(scene: &Scene<'_>) -> Result<()> {
    // Port 9 of the machine's loopback: nobody listens.
    let image = "127.0.0.1:9/some/thing:v1";
    scene.apply(&pod(
        "p",
        json!({"containers": [{"name": "c", "image": image}]}),
    ))?;
    let seen = scene.pod("p", "ErrImagePull", |pod| waits(pod, "c") == "ErrImagePull")?;
    has(
        &waiting_message(&seen, "c").to_lowercase(),
        "connection refused",
    )
}

fn an_image_name_that_is_none(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&pod(
        "p",
        json!({"containers": [{"name": "c", "image": "Not/A:Valid:Name"}]}),
    ))?;
    let seen = scene.pod("p", "InvalidImageName", |pod| {
        waits(pod, "c") == "InvalidImageName"
    })?;
    has(waiting_message(&seen, "c"), "Not/A:Valid:Name")?;
    scene.event("p", "InspectFailed", "couldn't parse image name")?;
    Ok(())
}

fn a_command_that_does_not_exist(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&pod(
        "p",
        json!({"containers": [runs("c", &["/no/such/program"], json!({}))]}),
    ))?;
    let seen = scene.pod("p", "a back-off", |pod| {
        waits(pod, "c") == "CrashLoopBackOff"
    })?;
    let last = &container(&seen, "c")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 128, "{seen:#}");
    ensure!(last["reason"] == "StartError", "{seen:#}");
    let message = last["message"].as_str().unwrap_or_default();
    has(message, "/no/such/program")?;
    has(message, "no such file or directory")?;
    scene.event("p", "Failed", "Error: ")?;
    scene.event(
        "p",
        "BackOff",
        "Back-off restarting failed container c in pod p_",
    )?;
    Ok(())
}

fn a_command_that_does_not_exist_is_not_tried_again(scene: &Scene<'_>) -> Result<()> {
    let bad = runs("c", &["no-such-program"], json!({}));
    scene.apply(&pod(
        "p",
        json!({"restartPolicy": "Never", "containers": [bad]}),
    ))?;
    let ended = scene.phase("p", "Failed")?;
    let state = &container(&ended, "c")["state"]["terminated"];
    ensure!(state["exitCode"] == 128, "{ended:#}");
    has(
        state["message"].as_str().unwrap_or_default(),
        "\"no-such-program\": executable file not found in $PATH",
    )
}

fn a_command_that_may_not_be_executed(scene: &Scene<'_>) -> Result<()> {
    let bad = runs("c", &["/etc/passwd"], json!({}));
    scene.apply(&pod(
        "p",
        json!({"restartPolicy": "Never", "containers": [bad]}),
    ))?;
    let ended = scene.phase("p", "Failed")?;
    let state = &container(&ended, "c")["state"]["terminated"];
    ensure!(state["exitCode"] == 128, "{ended:#}");
    let message = state["message"].as_str().unwrap_or_default();
    has(message, "/etc/passwd")?;
    has(message, "permission denied")
}

fn a_missing_config_map_key(scene: &Scene<'_>) -> Result<()> {
    let env = json!([{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}}]);
    let main = runs("c", &["sleep", "infinity"], json!({"env": env}));
    scene.apply(&pod("p", json!({"containers": [main]})))?;
    let refused = |message: &str| {
        scene.pod("p", message, |pod| {
            waits(pod, "c") == "CreateContainerConfigError" && waiting_message(pod, "c") == message
        })
    };
    refused("configmap \"settings\" not found")?;
    scene.event("p", "Failed", "Error: configmap \"settings\" not found")?;
    scene.run(&["create", "configmap", "settings", "--from-literal=size=big"])?;
    let namespace = scene.namespace();
    refused(&format!(
        "couldn't find key color in ConfigMap {namespace}/settings"
    ))?;
    scene.run(&[
        "patch",
        "configmap",
        "settings",
        "-p",
        r#"{"data": {"color": "blue"}}"#,
    ])?;
    scene.ready("p")?;
    ensure!(scene.sh("p", "echo $COLOR")? == "blue\n");
    Ok(())
}

fn a_missing_config_map_of_a_volume(scene: &Scene<'_>) -> Result<()> {
    let main = runs(
        "c",
        &["sleep", "infinity"],
        json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    let volumes = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    scene.apply(&pod("p", json!({"containers": [main], "volumes": volumes})))?;
    scene.event(
        "p",
        "FailedMount",
        "MountVolume.SetUp failed for volume \"v\" : configmap \"settings\" not found",
    )?;
    scene.pod("p", "ContainerCreating", |pod| {
        waits(pod, "c") == "ContainerCreating"
    })?;
    scene.run(&["create", "configmap", "settings", "--from-literal=size=big"])?;
    scene.ready("p")?;
    ensure!(scene.exec("p", &["cat", "/v/size"])? == "big");
    Ok(())
}

fn a_node_selector_that_fits_nowhere(scene: &Scene<'_>) -> Result<()> {
    let mut manifest = script_pod("p", "sleep infinity");
    manifest["spec"]["nodeSelector"] = json!({"disk": "fast"});
    scene.apply(&manifest)?;
    let why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    unschedulable(scene, why)?;
    let node = scene.cluster().name();
    let label = |label: &str| {
        scene
            .cluster()
            .kubectl()
            .run(&["label", "node", node, label])
    };
    label("disk=fast")?;
    let ready = scene.ready("p");
    label("disk-")?;
    ready?;
    Ok(())
}

fn unschedulable(scene: &Scene<'_>, why: &str) -> Result<()> {
    scene.event("p", "FailedScheduling", why)?;
    let seen = scene.pod("p", "PodScheduled=False", |pod| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|condition| {
            condition["type"] == "PodScheduled"
                && condition["status"] == "False"
                && condition["reason"] == "Unschedulable"
                && condition["message"]
                    .as_str()
                    .unwrap_or_default()
                    .starts_with(why)
        })
    })?;
    ensure!(seen["status"]["phase"] == "Pending", "{seen:#}");
    ensure!(seen["spec"]["nodeName"].is_null(), "{seen:#}");
    Ok(())
}

fn a_request_larger_than_the_node(scene: &Scene<'_>) -> Result<()> {
    let resources = json!({"resources": {"requests": {"cpu": "1000", "memory": "1000Ti"}}});
    let main = runs("c", &["sleep", "infinity"], resources);
    scene.apply(&pod("p", json!({"containers": [main]})))?;
    unschedulable(
        scene,
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
    )
}

/// A node that never comes up: folders, a network namespace and a name; all removed in the end.
struct Doomed {
    name: String,
    home: PathBuf,
}

impl Doomed {
    fn new(name: &str) -> Result<Self> {
        let name = format!("skiff-t-doomed-{name}");
        let home = std::env::temp_dir().join(&name);
        let doomed = Self { name, home };
        doomed.clean_up();
        fs::create_dir_all(&doomed.home)?;
        let made = Command::new("ip")
            .args(["netns", "add", &doomed.name])
            .output()?;
        ensure!(made.status.success(), "{made:?}");
        Ok(doomed)
    }

    fn clean_up(&self) {
        // One that came up against expectation has more than folders.
        if self.home.join("run").exists()
            && let Ok(skiff) = skiff_test_harness::binary("skiff")
        {
            let node = self
                .args()
                .into_iter()
                .skip(2)
                .take_while(|arg| arg != "--api-bind");
            Command::new(skiff).arg("down").args(node).output().ok();
        }
        Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output()
            .ok();
        fs::remove_dir_all(&self.home).ok();
    }

    fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    fn args(&self) -> Vec<String> {
        let flag = |flag: &str, value: &Path| [flag.to_owned(), value.display().to_string()];
        let netns = Path::new("/run/netns").join(&self.name);
        [
            ["up".to_owned(), "--node-ip=10.240.0.1".to_owned()],
            flag("--node-name", Path::new(&self.name)),
            flag("--node-netns", &netns),
            flag("--cgroup-root", &Path::new("/").join(&self.name)),
            flag("--data-dir", &self.data_dir()),
            flag("--run-dir", &self.home.join("run")),
            flag("--api-bind", Path::new("127.0.0.1:0")),
        ]
        .concat()
    }

    /// Starts it with more flags, expecting one line with `part`, and that it leaves nothing in the kernel.
    fn dies(&self, more: &[&str], part: &str) -> Result<()> {
        let mut command = Command::new(skiff_test_harness::binary("skiff")?);
        command.args(self.args()).args(more);
        complains(&mut command, part)?;
        let traces: Vec<_> = leftovers(&self.name)?;
        let netns = format!("file /run/netns/{}", self.name);
        // The namespace is the test's own.
        let traces: Vec<_> = traces
            .into_iter()
            .filter(|trace| {
                *trace != netns && !trace.contains(&format!("/run/netns/{} ", self.name))
            })
            .collect();
        ensure!(traces.is_empty(), "{more:?} left {traces:#?}");
        Ok(())
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        self.clean_up();
    }
}

/// It ends with exit code 1 and exactly one line, which says `part`.
fn complains(command: &mut Command, part: &str) -> Result<()> {
    let output = ended(command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(
        said.lines().count() == 1 && said.starts_with("skiff: "),
        "not one line:\n{said}"
    );
    has(&said, part)
}

/// Runs it to its end; should it live, it is killed and that is the error.
fn ended(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let waited = eventually(
        "its end",
        Duration::from_secs(20),
        || Ok(child.try_wait()?),
        Option::is_some,
    );
    if waited.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    waited.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(output)
}

fn a_second_daemon_is_refused(cluster: &Cluster) -> Result<()> {
    let command = cluster.daemon_command()?;
    let (program, args) = command.split_first().context("no command line")?;
    let pid = cluster.daemon_pid()?;
    let run_dir = cluster.run_dir();
    let refusal = format!(
        "skiff is already running for {} (process {pid})",
        run_dir.display()
    );
    complains(Command::new(program).args(args), &refusal)?;
    // The first one did not notice.
    ensure!(cluster.daemon_pid()? == pid);
    ensure!(cluster.kubectl().run(&["get", "--raw", "/readyz"])? == "ok");
    Ok(())
}

/// The same data directory under another run directory, so that the lock there does not help.
fn a_data_directory_has_one_daemon(cluster: &Cluster) -> Result<()> {
    let doomed = Doomed::new("data")?;
    let data_dir = cluster.data_dir();
    let data_dir = data_dir.to_str().context("not UTF-8")?;
    // A flag that is given twice is refused, so it is replaced.
    let mut args = doomed.args();
    let at = args
        .iter()
        .position(|arg| arg == "--data-dir")
        .context("no --data-dir")?;
    data_dir.clone_into(args.get_mut(at + 1).context("no value")?);
    let mut command = Command::new(skiff_test_harness::binary("skiff")?);
    complains(command.args(args), data_dir)?;
    ensure!(cluster.kubectl().run(&["get", "--raw", "/readyz"])? == "ok");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(
        !mounts.contains(&doomed.home.display().to_string()),
        "{mounts}"
    );
    Ok(())
}

fn an_api_port_that_is_taken() -> Result<()> {
    let doomed = Doomed::new("api")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let mut args = doomed.args();
    args.retain(|arg| arg != "--api-bind" && arg != "127.0.0.1:0");
    args.extend(["--api-bind".to_owned(), address.clone()]);
    let mut command = Command::new(skiff_test_harness::binary("skiff")?);
    complains(
        command.args(args),
        &format!("listening on {address}: Address already in use"),
    )?;
    ensure!(!doomed.data_dir().exists(), "a data directory was made");
    Ok(())
}

fn a_published_port_that_is_taken() -> Result<()> {
    let doomed = Doomed::new("publish")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let publish = format!("--publish={address}=default/web:80");
    doomed.dies(
        &[&publish],
        &format!("listening on {address}: Address already in use"),
    )?;
    ensure!(!doomed.data_dir().exists(), "a data directory was made");
    Ok(())
}

fn a_data_directory_that_is_a_file() -> Result<()> {
    let doomed = Doomed::new("file")?;
    fs::write(doomed.data_dir(), "precious")?;
    let path = doomed.data_dir();
    doomed.dies(&[], path.to_str().context("not UTF-8")?)?;
    ensure!(fs::read_to_string(path)? == "precious");
    Ok(())
}

fn a_registries_file_with_an_unknown_field() -> Result<()> {
    let doomed = Doomed::new("registries")?;
    let file = doomed.home.join("registries.yaml");
    fs::write(
        &file,
        "mirrors:\n  docker.io:\n    endpoints: [\"http://127.0.0.1:5000\"]\n",
    )?;
    let flag = format!("--registries-config={}", file.display());
    doomed.dies(&[&flag], "endpoints")
}

fn not_root() -> Result<()> {
    let doomed = Doomed::new("user")?;
    // The folders above the binary may be closed to others.
    let copy = doomed.home.join("skiff");
    let skiff = skiff_test_harness::binary("skiff")?;
    fs::hard_link(&skiff, &copy).or_else(|_other_device| fs::copy(&skiff, &copy).map(drop))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(&copy).args(doomed.args());
    complains(&mut command, "must run as root")?;
    ensure!(!doomed.data_dir().exists(), "a data directory was made");
    Ok(())
}

fn flags_that_make_no_sense() -> Result<()> {
    let doomed = Doomed::new("flags")?;
    for (flag, part) in [
        (
            "--publish=nonsense",
            "--publish \"nonsense\" is not ADDRESS:PORT=",
        ),
        ("--cluster-cidr=10.96.0.0/12", "overlap"),
        ("--cluster-cidr=10.244.3.1/16", "must be a network address"),
        (
            "--service-cidr=10.96.0.0/30",
            "must be a network address with a prefix of at most 28",
        ),
    ] {
        doomed.dies(&[flag], part)?;
        ensure!(
            !doomed.data_dir().exists(),
            "{flag}: a data directory was made"
        );
    }
    let skiff = skiff_test_harness::binary("skiff")?;
    for (args, part) in [
        (
            ["up", "--node-name=Not_A_Name"],
            "--node-name \"Not_A_Name\" is not a lower-case DNS name",
        ),
        (["up", "--node-netns=/proc/self/exe"], "--node-netns"),
        (
            ["up", "--node-netns=/run/netns/skiff-t-nowhere"],
            "/run/netns/skiff-t-nowhere",
        ),
        (
            ["down", "--cgroup-root=relative"],
            "--cgroup-root \"relative\" must start with /",
        ),
    ] {
        // Should it be accepted against expectation, it must not touch the machine's own.
        let mut command = Command::new(&skiff);
        command.args(args).env("SKIFF_DATA_DIR", doomed.data_dir());
        command.env("SKIFF_RUN_DIR", doomed.home.join("run"));
        complains(&mut command, part)?;
    }
    for args in [
        ["up", "--no-such-flag"],
        ["up", "--api-bind=here"],
        ["sideways", "--help"],
    ] {
        let output = ended(Command::new(&skiff).args(args))?;
        ensure!(output.status.code() == Some(2), "{args:?}: {output:?}");
        has(&String::from_utf8_lossy(&output.stderr), "error: ")?;
    }
    Ok(())
}
