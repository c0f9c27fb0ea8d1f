//! Deaths of those who watch over pods, and what many pods leave behind.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use skiff_test_harness::{
    Cluster, eventually, leftovers,
    scene::{PATIENCE, PYTHON, Scene, condition, container, pod, runs, script, script_pod},
};

/// Processes of the machine whose command line has this.
fn processes(part: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        // Gone meanwhile: it is none of them.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(part) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Exit code and last words of a container that ends while the daemon is dead are told after its restart.
pub(crate) fn a_container_that_ends_while_no_daemon_lives(cluster: &mut Cluster) -> Result<()> {
    let exchange = cluster.data_dir().join("exchange");
    let before = {
        let scene = Scene::open(cluster, "before")?;
        let text = "echo waiting; until test -e /host/go; do sleep 0.05; done; echo going; exit 7";
        let mut ends = runs("c", &["sh", "-c", text, "ends-without-a-daemon"], json!({}));
        ends["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
        let volumes =
            json!([{"name": "host", "hostPath": {"path": exchange, "type": "DirectoryOrCreate"}}]);
        let ends = pod(
            "ends",
            json!({"restartPolicy": "Never", "containers": [ends], "volumes": volumes}),
        );
        scene.apply(&json!([
            ends,
            script_pod("stays", "echo alive; exec sleep infinity")
        ]))?;
        scene.ready("ends")?;
        let stays = scene.ready("stays")?;
        // The namespace must outlive the scene.
        std::mem::forget(scene);
        stays
    };
    let command = cluster.kill_daemon()?;
    fs::write(exchange.join("go"), "")?;
    eventually(
        "the program's end",
        PATIENCE,
        || processes("ends-without-a-daemon"),
        Vec::is_empty,
    )?;
    cluster.start_daemon(&command)?;
    let get = |name: &str| {
        cluster
            .kubectl()
            .json(&["get", "pod", "-n", "before", name])
    };
    let ended = eventually(
        "the exit code",
        PATIENCE,
        || get("ends"),
        |pod| pod["status"]["phase"] == "Failed",
    )?;
    ensure!(
        container(&ended, "c")["state"]["terminated"]["exitCode"] == 7,
        "{ended:#}"
    );
    let log = cluster.kubectl().run(&["logs", "-n", "before", "ends"])?;
    ensure!(log == "waiting\ngoing\n", "{log}");
    let stays = eventually(
        "the other",
        PATIENCE,
        || get("stays"),
        |pod| condition(pod, "Ready") == "True",
    )?;
    ensure!(
        container(&stays, "c") == container(&before, "c"),
        "{stays:#}\nwas\n{before:#}"
    );
    cluster
        .kubectl()
        .run(&["delete", "namespace", "before", "--timeout=90s"])?;
    Ok(())
}

/// Without its shim a pod's containers end; the pod is put up again, and of the old one nothing is left.
pub(crate) fn a_pod_whose_shim_is_killed(cluster: &Cluster) -> Result<()> {
    let scene = Scene::open(cluster, "shim")?;
    let main = runs(
        "c",
        &["sh", "-c", "exec sleep infinity", "of-the-killed-shim"],
        json!({}),
    );
    // `exec` forgets the words of the shell, so the program is told apart by its own.
    let marked = runs("marked", &["sleep", "918273645"], json!({}));
    scene.apply(&pod("p", json!({"containers": [main, marked]})))?;
    let first = scene.ready("p")?;
    let uid = first["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned();
    let shims = shims(&uid)?;
    ensure!(shims.len() == 1, "{shims:?}");
    let old = processes("sleep\0918273645")?;
    ensure!(old.len() == 1, "{old:?}");
    kill(Pid::from_raw(shims[0]), Signal::SIGKILL)?;
    let second = scene.pod("p", "new containers", |pod| {
        condition(pod, "Ready") == "True"
            && ["c", "marked"].iter().all(|name| {
                container(pod, name)["containerID"] != container(&first, name)["containerID"]
            })
    })?;
    for name in ["c", "marked"] {
        ensure!(
            container(&second, name)["restartCount"].as_u64() >= Some(1),
            "{second:#}"
        );
    }
    let new = processes("sleep\0918273645")?;
    ensure!(new.len() == 1 && new != old, "{old:?} became {new:?}");
    ensure!(self::shims(&uid)?.len() == 1);
    scene.sh("p", "true")?;
    scene.delete_pod("p", &[])?;
    eventually(
        "its traces to be gone",
        PATIENCE,
        || leftovers(&uid),
        Vec::is_empty,
    )?;
    ensure!(processes("sleep\0918273645")?.is_empty());
    ensure!(self::shims(&uid)?.is_empty());
    Ok(())
}

/// The shim processes of a pod.
fn shims(uid: &str) -> Result<Vec<i32>> {
    let of_pod = processes(uid)?.into_iter();
    Ok(of_pod
        .filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("skiff-shim")
        })
        .collect())
}

/// Everything of pods that a node can have, by name.
fn traces(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let name = cluster.name();
    let data = cluster.data_dir();
    for dir in [
        "pods",
        "cni/networks",
        "cni/cache",
        "images/containers",
        "logs/pods",
    ] {
        walk(&data.join(dir), 3, &mut found);
    }
    walk(&cluster.run_dir().join("pods"), 2, &mut found);
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        if line.contains(name) {
            found.insert(format!("mount {line}"));
        }
    }
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(path), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) {
            walk(&Path::new(path).join(name).join("skiff"), 2, &mut found);
        }
    }
    let links = Command::new("ip")
        .args(["-n", name, "-oneline", "link"])
        .output()?;
    for line in String::from_utf8(links.stdout)?.lines() {
        let link = line.split(": ").nth(1).unwrap_or_default();
        found.insert(format!("link {link}"));
    }
    let rules = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{name}"))
        .arg("iptables-save")
        .output()?;
    for line in String::from_utf8(rules.stdout)?
        .lines()
        .filter(|line| line.starts_with('-'))
    {
        found.insert(format!("rule {line}"));
    }
    for pod in fs::read_dir(cluster.run_dir().join("pods"))
        .into_iter()
        .flatten()
    {
        for pid in shims(&pod?.file_name().to_string_lossy())? {
            found.insert(format!("shim {pid}"));
        }
    }
    Ok(found)
}

fn walk(dir: &Path, depth: u32, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if depth > 1 && path.is_dir() && !path.is_symlink() {
            walk(&path, depth - 1, found);
        }
        found.insert(path.display().to_string());
    }
}

pub(crate) fn thirty_pods_leave_nothing(cluster: &Cluster) -> Result<()> {
    let before = traces(cluster)?;
    let scene = Scene::open(cluster, "many")?;
    let template = json!({
        "metadata": {"labels": {"app": "many"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": PYTHON, "command": ["sleep", "infinity"],
                            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "initContainers": [script("init", "true")],
            "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        },
    });
    scene.apply(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
        "spec": {"replicas": 30, "selector": {"matchLabels": {"app": "many"}}, "template": template},
    }))?;
    scene.run(&["rollout", "status", "deployment/many", "--timeout=90s"])?;
    let pods = scene.get(&["pods", "-l", "app=many"])?;
    let ips: BTreeSet<_> = items(&pods)
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .collect();
    ensure!(ips.len() == 30, "{ips:?}");
    let during = traces(cluster)?;
    let links = |traces: &BTreeSet<String>| {
        traces
            .iter()
            .filter(|trace| trace.starts_with("link veth"))
            .count()
    };
    ensure!(links(&during) == links(&before) + 30, "{during:#?}");
    let shims = during
        .iter()
        .filter(|trace| trace.starts_with("shim "))
        .count();
    ensure!(shims >= 30, "{shims} shims");
    scene.run(&["delete", "deployment", "many"])?;
    let none = || Ok(items(&scene.get(&["pods"])?).count());
    eventually("no pods", PATIENCE, none, |count| *count == 0)?;
    // The last address that was given is remembered; nothing else is.
    let left = || -> Result<Vec<String>> {
        let after = traces(cluster)?;
        let left = after
            .difference(&before)
            .filter(|trace| !trace.contains("last_reserved_ip"));
        Ok(left.cloned().collect())
    };
    eventually("the traces to be gone", PATIENCE, left, Vec::is_empty)?;
    for pod in items(&pods) {
        let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
        let left = leftovers(uid)?;
        ensure!(left.is_empty(), "{left:#?}");
    }
    Ok(())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}
