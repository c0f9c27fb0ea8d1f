//! Start, memory and reaction of a node as a whole.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{BenchCluster, Better, Figure, api::Proxy, median, millis, rss_mib, wait_until};
use crate::{
    cluster::{self, Instance, InstanceArgs, free_port},
    command, paths,
};

/// Starts of the daemon on an empty data directory.
const STARTS: usize = 5;
/// Pods for memory and for the time to Ready.
const PODS: usize = 10;
/// Time for allocators and caches to come to rest.
const SETTLE: Duration = Duration::from_secs(3);

fn answers(url: &str) -> bool {
    command::succeeds(Command::new("curl").args(["-sfk", "--max-time", "2", url]))
}

/// Start of the daemon to `/readyz`, beside etcd's start to `/health`: upstream's control plane cannot be quicker.
pub(super) fn ready() -> Result<Vec<Figure>> {
    let args = InstanceArgs {
        name: "skiff-bench".to_owned(),
        release: true,
    };
    let instance = Instance::new(&args)?;
    let (mut ours, mut etcd) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        cluster::down::run(&args)?;
        let started = daemon_start(&instance);
        cluster::down::run(&args)?;
        ours.push(started?);
        etcd.push(etcd_start()?.0);
    }
    Ok(vec![Figure::new(
        "ready-ms",
        (median(&ours), "ms"),
        ("etcd alone to /health", median(&etcd)),
        Better::Lower,
    )])
}

fn daemon_start(instance: &Instance) -> Result<f64> {
    cluster::up::make_netns(instance)?;
    fs::create_dir_all(instance.data_dir())?;
    let port = free_port(0)?;
    let start = Instant::now();
    let mut child = cluster::up::skiff_command(instance, port)
        .spawn()
        .context("starting skiff")?;
    let url = format!("https://127.0.0.1:{port}/readyz");
    let ready = wait_until("/readyz", || {
        anyhow::ensure!(child.try_wait()?.is_none(), "skiff ended");
        Ok(answers(&url))
    });
    let took = start.elapsed();
    ready?;
    Ok(millis(took))
}

/// Milliseconds to `/health` and resident MiB of an empty etcd.
fn etcd_start() -> Result<(f64, f64)> {
    let dir = std::env::temp_dir().join(format!("skiff-bench-etcd-{}", std::process::id()));
    let (client, peer) = (free_port(0)?, free_port(0)?);
    let start = Instant::now();
    let mut child = Command::new("etcd")
        .arg("--data-dir")
        .arg(&dir)
        .arg(format!("--listen-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--advertise-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"))
        .arg("--log-level=error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting etcd")?;
    let url = format!("http://127.0.0.1:{client}/health");
    let healthy = wait_until("etcd", || Ok(answers(&url)));
    let took = millis(start.elapsed());
    let memory = i32::try_from(child.id())
        .map_err(Into::into)
        .and_then(rss_mib);
    child.kill()?;
    child.wait()?;
    fs::remove_dir_all(dir)?;
    healthy?;
    Ok((took, memory?))
}

/// Resident memory of the daemon without pods, beside an empty etcd.
pub(super) fn memory_idle(cluster: &BenchCluster) -> Result<Vec<Figure>> {
    thread::sleep(SETTLE);
    let ours = rss_mib(cluster.daemon_pid()?)?;
    Ok(vec![Figure::new(
        "rss-idle",
        (ours, "MiB"),
        ("etcd alone", etcd_start()?.1),
        Better::Lower,
    )])
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main",
            "image": "mcr.microsoft.com/azuredocs/azure-vote-front:v1",
            "command": ["sleep", "infinity"],
        }]},
    })
}

fn is_ready(event: &Value) -> bool {
    let conditions = event["object"]["status"]["conditions"].as_array();
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(ready))
}

/// Pod create to Ready with the image present, and memory with ten pods; beside one bare `runc run`.
pub(super) fn pods(cluster: &BenchCluster, runc_ms: f64) -> Result<Vec<Figure>> {
    let api = Proxy::start(&cluster.instance)?;
    let pods = "/api/v1/namespaces/default/pods";
    let mut times = Vec::new();
    // The first one pulls the image, should nothing have done so before.
    for n in 0..=PODS {
        let name = format!("bench-{n}");
        let start = Instant::now();
        api.request("POST", pods, Some(&pod(&name)))?;
        let watch = format!("{pods}?watch=1&fieldSelector=metadata.name%3D{name}");
        api.watch(&watch, is_ready)?;
        if n == 0 {
            api.request("DELETE", &format!("{pods}/{name}"), None)?;
        } else {
            times.push(millis(start.elapsed()));
        }
    }
    thread::sleep(SETTLE);
    let memory = rss_mib(cluster.daemon_pid()?)?;
    for n in 1..=PODS {
        api.request("DELETE", &format!("{pods}/bench-{n}"), None)?;
    }
    Ok(vec![
        Figure::new(
            "pod-ready-ms",
            (median(&times), "ms"),
            ("a container by runc alone", runc_ms),
            Better::Lower,
        ),
        Figure::new(
            "rss-10",
            (memory, "MiB"),
            ("etcd alone", etcd_start()?.1),
            Better::Lower,
        ),
    ])
}

/// `kubectl apply` of the voting application to its first page, images present.
pub(super) fn application(cluster: &BenchCluster) -> Result<Vec<Figure>> {
    let manifest = paths::root().join("examples/azure-vote-all-in-one-redis.yaml");
    let kubectl = || cluster.instance.kubectl();
    let mut times = Vec::new();
    for n in 0..=3 {
        let namespace = format!("vote-{n}");
        command::output(kubectl().args(["create", "namespace", &namespace]))?;
        let start = Instant::now();
        command::output(
            kubectl()
                .args(["apply", "-n", &namespace, "-f"])
                .arg(&manifest),
        )?;
        let address =
            command::output(kubectl().args(["get", "service", "-n", &namespace]).args([
                "azure-vote-front",
                "-o",
                "jsonpath={.spec.clusterIP}",
            ]))?;
        wait_until("the page", || {
            let mut curl = cluster::node_exec::command(&cluster.instance)?;
            curl.args([
                "curl",
                "-sf",
                "--max-time",
                "5",
                &format!("http://{address}/"),
            ]);
            Ok(command::succeeds(&mut curl))
        })?;
        // The first round pulls the images.
        if n > 0 {
            times.push(millis(start.elapsed()));
        }
        command::output(kubectl().args(["delete", "namespace", &namespace, "--wait=true"]))?;
    }
    Ok(vec![Figure::new(
        "apply-to-answer-ms",
        (median(&times), "ms"),
        ("the page's process alone", process_alone(cluster)?),
        Better::Lower,
    )])
}

/// The page's own start: its process under the manifest's CPU limit, in a network namespace made by hand, to the first
/// answer (an error page, for there is no database).
fn process_alone(cluster: &BenchCluster) -> Result<f64> {
    let limit = CpuLimit::new()?;
    let rootfs = crate::images::unpack_front(&cluster.instance.run_dir().join("front-rootfs"))?;
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let mut child = Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--kill-child", "sh", "-c"])
            .arg(
                "ip link set lo up; \
                 (echo 0 > \"$1/cgroup.procs\"; exec chroot \"$0\" /usr/bin/python3 -u /app/main.py) >/dev/null 2>&1 & \
                 until curl -s -o /dev/null --max-time 5 http://127.0.0.1/; do sleep 0.005; done",
            )
            .arg(&rootfs)
            .arg(&limit.0)
            .env("REDIS", "127.0.0.1")
            .stdin(Stdio::null())
            .spawn()?;
        child.wait()?;
        times.push(millis(start.elapsed()));
    }
    fs::remove_dir_all(rootfs)?;
    Ok(median(&times))
}

/// A cgroup with the CPU limit of the manifest's containers, a quarter of a core; removed on drop.
struct CpuLimit(PathBuf);

impl CpuLimit {
    fn new() -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/cpu");
        let (parent, file, limit) = if v1.exists() {
            (v1, "cpu.cfs_quota_us", "25000")
        } else {
            (Path::new("/sys/fs/cgroup"), "cpu.max", "25000 100000")
        };
        let dir = parent.join("skiff-bench-reference");
        fs::create_dir_all(&dir)?;
        let cgroup = Self(dir);
        fs::write(cgroup.0.join(file), limit).context("limiting the reference's CPU time")?;
        Ok(cgroup)
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        let gone = wait_until(
            "the reference's end",
            || Ok(fs::remove_dir(&self.0).is_ok()),
        );
        if let Err(error) = gone {
            eprintln!("removing {}: {error:#}", self.0.display());
        }
    }
}
