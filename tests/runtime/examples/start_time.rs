//! Time from the request to a running container, beside `runc` on the same spec in rotated runs. Medians.
//!
//! `cargo run -p skiff-tests-runtime --example start_time [RUNS]`

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use skiff_runtime::{ContainerConfig, Runtime};
use skiff_tests_runtime::Node;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "this is what it is for")]
async fn main() -> Result<()> {
    let runs = std::env::args()
        .nth(1)
        .map_or(Ok(50), |text| text.parse())?;
    let node = Node::new("bench").await?;
    let (mut alone, mut whole, mut runc, mut removal) = (vec![], vec![], vec![], vec![]);
    for run in 0..runs {
        let uid = format!("u{run}");
        let begin = Instant::now();
        node.sandbox(&uid).await?;
        let sandboxed = Instant::now();
        let config = node.container(&uid, "a", &["sleep", "1000"]);
        let spec = bundle_spec(&config, run)?;
        let started = Instant::now();
        let id = node.runtime().start_container(config).await?;
        alone.push(started.elapsed());
        whole.push(started.elapsed() + (sandboxed - begin));
        let begin = Instant::now();
        node.runtime()
            .stop_container(&id, 9, Duration::ZERO)
            .await?;
        node.runtime().remove_container(&id).await?;
        node.runtime().remove_sandbox(&uid).await?;
        removal.push(begin.elapsed());
        runc.push(run_runc(&node.dir().join("bundle"), &spec, run)?);
    }
    for (what, times) in [
        ("start container in a sandbox", &mut alone),
        ("make sandbox and start container", &mut whole),
        ("runc run --detach, same spec", &mut runc),
        ("stop and remove container and sandbox", &mut removal),
    ] {
        times.sort();
        let median = times.get(times.len() / 2).context("no runs")?;
        println!("{what}: {:.1} ms", median.as_secs_f64() * 1000.0);
    }
    println!("memory of a shim: {}", shims_memory(&node, 1).await?);
    println!(
        "memory of each of ten shims: {}",
        shims_memory(&node, 10).await?
    );
    Ok(())
}

/// What runc gets: the container's spec with namespaces and a cgroup of its own.
fn bundle_spec(config: &ContainerConfig, run: usize) -> Result<Spec> {
    let mut spec = config.spec.clone();
    let root = spec.root_mut().as_mut().context("no root")?;
    root.set_path(config.rootfs.clone());
    let mut linux = spec.linux().clone().unwrap_or_default();
    let kinds = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ];
    let namespaces = kinds.map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    linux.set_namespaces(Some(namespaces.into_iter().collect::<Result<_, _>>()?));
    linux.set_cgroups_path(Some(format!("/skiff-bench/runc{run}").into()));
    spec.set_linux(Some(linux));
    spec.process_mut()
        .as_mut()
        .context("no process")?
        .set_terminal(Some(false));
    Ok(spec)
}

fn run_runc(bundle: &Path, spec: &Spec, run: usize) -> Result<Duration> {
    fs::create_dir_all(bundle)?;
    spec.save(bundle.join("config.json"))?;
    let id = format!("skiff-bench-{run}");
    let root = bundle.join("state");
    let runc = |arguments: &[&str]| {
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(&root)
            .args(arguments)
            .current_dir(bundle);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()
    };
    let begin = Instant::now();
    let status = runc(&["run", "--detach", &id])?;
    let time = begin.elapsed();
    ensure!(status.success(), "runc failed");
    ensure!(
        runc(&["delete", "--force", &id])?.success(),
        "runc does not delete"
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        if let Some(mount) = line.split(' ').nth(4) {
            fs::remove_dir(Path::new(mount).join("skiff-bench")).ok();
        }
    }
    Ok(time)
}

/// Proportional memory per shim while `count` pods run one container each.
async fn shims_memory(node: &Node, count: u64) -> Result<String> {
    let (mut pss, mut anonymous) = (0, 0);
    for number in 0..count {
        let uid = format!("m{number}");
        node.sandbox(&uid).await?;
        node.runtime()
            .start_container(node.container(&uid, "a", &["sleep", "1000"]))
            .await?;
    }
    for number in 0..count {
        let uid = format!("m{number}");
        let pid = fs::read_to_string(node.run_dir().join("pods").join(&uid).join("shim.pid"))?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.trim()))?;
        let value = |name: &str| -> Result<u64> {
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .context("no value")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        pss += value("Pss:")?;
        anonymous += value("Pss_Anon:")?;
    }
    for number in 0..count {
        node.runtime().remove_sandbox(&format!("m{number}")).await?;
    }
    Ok(format!(
        "PSS {} KiB, anonymous {} KiB",
        pss / count,
        anonymous / count
    ))
}
