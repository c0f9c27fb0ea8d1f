//! The voting application, as Kubernetes lessons run it: upstream's kubectl, a real registry, real packets.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skiff_test_harness::{Cluster, eventually};

const MANIFEST: &str = "examples/azure-vote-all-in-one-redis.yaml";
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn the_voting_lesson() -> Result<()> {
    let mut cluster = Cluster::up("lesson")?;
    deploys_in_two_namespaces(&cluster)?;
    pods_are_listed(&cluster)?;
    votes_are_counted(&cluster)?;
    scaled_fronts_share_the_requests(&cluster)?;
    logs_follow(&cluster)?;
    exec_runs_under_the_seccomp_profile(&cluster)?;
    describe_tells_the_story(&cluster)?;
    the_page_outlives_the_daemon(&mut cluster)?;
    a_deleted_pod_is_replaced(&cluster)?;
    a_deleted_namespace_leaves_nothing(&cluster)?;
    cluster.down()
}

fn deploys_in_two_namespaces(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    for namespace in ["dev", "prod"] {
        kubectl.run(&["create", "namespace", namespace])?;
        kubectl.run(&["apply", "-n", namespace, "-f", MANIFEST])?;
    }
    for namespace in ["dev", "prod"] {
        for deployment in ["azure-vote-back", "azure-vote-front"] {
            rollout(cluster, namespace, deployment)?;
        }
        // A second apply changes nothing.
        let again = kubectl.run(&["apply", "-n", namespace, "-f", MANIFEST])?;
        ensure!(
            again.lines().all(|line| line.ends_with("unchanged")),
            "{again}"
        );
    }
    Ok(())
}

fn rollout(cluster: &Cluster, namespace: &str, deployment: &str) -> Result<()> {
    let target = format!("deployment/{deployment}");
    cluster
        .kubectl()
        .run(&[
            "rollout",
            "status",
            "-n",
            namespace,
            &target,
            "--timeout=90s",
        ])
        .map(drop)
}

fn pods_are_listed(cluster: &Cluster) -> Result<()> {
    let table = cluster
        .kubectl()
        .run(&["get", "pods", "-A", "-o", "wide"])?;
    let rows: Vec<Vec<_>> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(rows.len() == 4, "{table}");
    for row in rows {
        ensure!(
            row.get(2) == Some(&"1/1") && row.get(3) == Some(&"Running"),
            "{table}"
        );
        ensure!(
            row.iter().any(|cell| cell.starts_with("10.244.0.")),
            "{table}"
        );
        ensure!(row.contains(&cluster.name()), "{table}");
    }
    Ok(())
}

/// Address of the page's Service.
fn service_ip(cluster: &Cluster, namespace: &str) -> Result<String> {
    let service =
        cluster
            .kubectl()
            .json(&["get", "service", "-n", namespace, "azure-vote-front"])?;
    Ok(service["spec"]["clusterIP"]
        .as_str()
        .context("no cluster IP")?
        .to_owned())
}

fn page(cluster: &Cluster, url: &str, more: &[&str]) -> Result<String> {
    let args = [
        &["curl", "-sS", "--fail", "--max-time", "10", "-D", "-", url],
        more,
    ]
    .concat();
    cluster.node_exec(&args)
}

fn votes_are_counted(cluster: &Cluster) -> Result<()> {
    for (namespace, votes) in [("dev", 2), ("prod", 3)] {
        let url = format!("http://{}/", service_ip(cluster, namespace)?);
        // The manifest has no readiness probe: a pod is ready before its program listens.
        eventually(
            "the page",
            PATIENCE,
            || page(cluster, &url, &[]),
            |page| page.contains("Cats"),
        )?;
        for _ in 0..votes {
            page(cluster, &url, &["-d", "vote=Cats"])?;
        }
        let shown = page(cluster, &url, &[])?;
        ensure!(shown.contains(&format!("Cats - {votes}")), "{shown}");
        let back = [
            "exec",
            "-n",
            namespace,
            "deploy/azure-vote-back",
            "--",
            "redis-cli",
            "get",
            "Cats",
        ];
        let stored = cluster.kubectl().run(&back)?;
        ensure!(stored.trim() == votes.to_string(), "{stored}");
    }
    // The same page on the node's port, as the load balancer's address gives it.
    let service = cluster
        .kubectl()
        .json(&["get", "service", "-n", "prod", "azure-vote-front"])?;
    let port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("no node port")?;
    let node = cluster.kubectl().json(&["get", "node", cluster.name()])?;
    let address = node["status"]["addresses"][0]["address"]
        .as_str()
        .context("no node address")?;
    for host in [address, "127.0.0.1"] {
        let shown = page(cluster, &format!("http://{host}:{port}/"), &[])?;
        ensure!(shown.contains("Cats - 3"), "{shown}");
    }
    Ok(())
}

fn scaled_fronts_share_the_requests(cluster: &Cluster) -> Result<()> {
    cluster.kubectl().run(&[
        "scale",
        "--replicas",
        "5",
        "-n",
        "prod",
        "deployment/azure-vote-front",
    ])?;
    rollout(cluster, "prod", "azure-vote-front")?;
    let url = format!("http://{}/", service_ip(cluster, "prod")?);
    let pods =
        cluster
            .kubectl()
            .json(&["get", "pods", "-n", "prod", "-l", "app=azure-vote-front"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let own = format!(
            "http://{}/",
            pod["status"]["podIP"].as_str().context("no pod IP")?
        );
        eventually(
            "a new pod",
            PATIENCE,
            || page(cluster, &own, &[]),
            |page| page.contains("Cats"),
        )?;
    }
    let mut served: BTreeMap<String, u32> = BTreeMap::new();
    // With five backends the chance that one is missed in 100 requests is below 1e-9.
    for _ in 0..100 {
        let answer = page(cluster, &url, &[])?;
        let host = answer
            .lines()
            .find_map(|line| line.strip_prefix("X-Served-By: "));
        *served
            .entry(host.context("no X-Served-By")?.trim().to_owned())
            .or_default() += 1;
    }
    ensure!(served.len() == 5, "requests went to {served:?}");
    Ok(())
}

/// A child that is killed when the test is done with it.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn logs_follow(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.kubectl().command();
    command
        .args(["logs", "-f", "-n", "dev", "deploy/azure-vote-front"])
        .stdout(Stdio::piped());
    let mut follower = Follower(command.spawn()?);
    let stdout = follower.0.stdout.take().context("no stdout")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let url = format!("http://{}/logs-follow", service_ip(cluster, "dev")?);
    // The page does not exist; that it was asked for is logged.
    ensure!(
        page(cluster, &url, &[]).is_err(),
        "a page that does not exist was served"
    );
    let seen = || {
        lines
            .recv_timeout(PATIENCE)
            .context("the log ended or fell silent")
    };
    eventually("the request in the log", PATIENCE, seen, |line| {
        line.contains("GET /logs-follow")
    })?;
    drop(follower);
    reader.join().ok().context("the reader panicked")?;
    let tail =
        cluster
            .kubectl()
            .run(&["logs", "-n", "dev", "deploy/azure-vote-front", "--tail=1"])?;
    ensure!(
        tail.lines().count() == 1 && tail.contains("GET /logs-follow"),
        "{tail}"
    );
    Ok(())
}

fn exec_runs_under_the_seccomp_profile(cluster: &Cluster) -> Result<()> {
    let exec = |args: &[&str]| {
        let front = ["exec", "-n", "dev", "deploy/azure-vote-front", "--"];
        cluster.kubectl().run(&[&front, args].concat())
    };
    for process in ["/proc/self/status", "/proc/1/status"] {
        let status = exec(&["cat", process])?;
        ensure!(status.contains("Seccomp:\t2"), "{process}:\n{status}");
    }
    let failing = cluster
        .kubectl()
        .command()
        .args(["exec", "-n", "dev", "deploy/azure-vote-front"])
        .args(["--", "sh", "-c", "exit 7"])
        .output()?;
    ensure!(failing.status.code() == Some(7), "{failing:?}");
    Ok(())
}

fn describe_tells_the_story(cluster: &Cluster) -> Result<()> {
    let told =
        cluster
            .kubectl()
            .run(&["describe", "pods", "-n", "dev", "-l", "app=azure-vote-back"])?;
    let image = "mcr.microsoft.com/oss/bitnami/redis:6.0.8";
    for expected in [
        "Status:           Running",
        "cpu:     250m",
        "ALLOW_EMPTY_PASSWORD:  yes",
        "QoS Class:                   Burstable",
        "Node-Selectors:              kubernetes.io/os=linux",
        "Successfully assigned dev/azure-vote-back-",
        &format!("Pulling image \"{image}\""),
        "Started container azure-vote-back",
    ] {
        // kubectl pads columns by what else it shows.
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let normal =
            squeeze(&told).replace("Container started", "Started container azure-vote-back");
        ensure!(
            normal.contains(&squeeze(expected)),
            "{expected:?} is missing in:\n{told}"
        );
    }
    Ok(())
}

/// Container id and restart count of every container.
fn containers(cluster: &Cluster) -> Result<BTreeSet<(String, u64)>> {
    let pods = cluster.kubectl().json(&["get", "pods", "-A"])?;
    let statuses = pods["items"].as_array().into_iter().flatten();
    let statuses = statuses
        .flat_map(|pod| pod["status"]["containerStatuses"].as_array())
        .flatten();
    let identity = |status: &Value| {
        Some((
            status["containerID"].as_str()?.to_owned(),
            status["restartCount"].as_u64()?,
        ))
    };
    statuses
        .map(|status| identity(status).context("a container without an id"))
        .collect()
}

fn the_page_outlives_the_daemon(cluster: &mut Cluster) -> Result<()> {
    let before = containers(cluster)?;
    ensure!(
        before.len() == 8 && before.iter().all(|(_, restarts)| *restarts == 0),
        "{before:?}"
    );
    let url = format!("http://{}/", service_ip(cluster, "prod")?);
    let command = cluster.kill_daemon()?;
    for _ in 0..20 {
        let answer = page(cluster, &url, &[])?;
        ensure!(answer.contains("Cats - 3"), "{answer}");
    }
    cluster.start_daemon(&command)?;
    let ready = || cluster.kubectl().json(&["get", "pods", "-A"]);
    let all_ready = |pods: &Value| {
        let conditions = pods["items"].as_array().into_iter().flatten();
        let conditions = conditions
            .flat_map(|pod| pod["status"]["conditions"].as_array())
            .flatten();
        let ready: Vec<_> = conditions
            .filter(|condition| condition["type"] == "Ready")
            .collect();
        ready.len() == 8 && ready.iter().all(|condition| condition["status"] == "True")
    };
    eventually("eight ready pods", PATIENCE, ready, all_ready)?;
    ensure!(
        containers(cluster)? == before,
        "containers were not adopted: {:?}",
        containers(cluster)?
    );
    ensure!(page(cluster, &url, &[])?.contains("Cats - 3"));
    Ok(())
}

fn pod_names(cluster: &Cluster, namespace: &str, app: &str) -> Result<BTreeSet<String>> {
    let selector = format!("app={app}");
    let names = cluster.kubectl().run(&[
        "get", "pods", "-n", namespace, "-l", &selector, "-o", "name",
    ])?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn a_deleted_pod_is_replaced(cluster: &Cluster) -> Result<()> {
    let before = pod_names(cluster, "dev", "azure-vote-front")?;
    let victim = before.first().context("no pod")?;
    cluster.kubectl().run(&["delete", "-n", "dev", victim])?;
    rollout(cluster, "dev", "azure-vote-front")?;
    let after = pod_names(cluster, "dev", "azure-vote-front")?;
    ensure!(
        after.len() == 1 && !after.contains(victim),
        "{before:?} became {after:?}"
    );
    let url = format!("http://{}/", service_ip(cluster, "dev")?);
    let answer = || page(cluster, &url, &[]);
    eventually("the page of the new pod", PATIENCE, answer, |page| {
        page.contains("Cats - 2")
    })?;
    Ok(())
}

fn a_deleted_namespace_leaves_nothing(cluster: &Cluster) -> Result<()> {
    let pods = cluster.kubectl().json(&["get", "pods", "-n", "dev"])?;
    let uids: Vec<_> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["uid"].as_str())
        .collect();
    ensure!(uids.len() == 2, "{pods}");
    cluster
        .kubectl()
        .run(&["delete", "namespace", "dev", "--timeout=90s"])?;
    cluster.kubectl().fails(&["get", "namespace", "dev"])?;
    for uid in uids {
        let left = || skiff_test_harness::leftovers(uid);
        eventually("the pod's traces to be gone", PATIENCE, left, Vec::is_empty)?;
    }
    Ok(())
}
