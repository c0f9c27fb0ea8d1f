//! Time from the request to a running container, beside `runc` and `crun` on the same bundle in rotated runs.
//! One `name median` a line, milliseconds; memory in KiB. `cargo xtask bench first-light` reads it.
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
    let (mut alone, mut whole, mut removal) = (vec![], vec![], vec![]);
    let (mut runc, mut crun) = (vec![], vec![]);
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
        let bundle = node.dir().join("bundle");
        spec_on_disk(&bundle, &spec)?;
        runc.push(run_peer("runc", &bundle, run)?);
        crun.push(run_peer("crun", &bundle, run)?);
        remove_peer_cgroups()?;
    }
    for (what, times) in [
        ("start-in-sandbox", &mut alone),
        ("sandbox-and-start", &mut whole),
        ("runc", &mut runc),
        ("crun", &mut crun),
        ("remove-all", &mut removal),
    ] {
        times.sort();
        let median = times.get(times.len() / 2).context("no runs")?;
        println!("{what} {:.2}", median.as_secs_f64() * 1000.0);
    }
    println!("shim-pss {}", shims_memory(&node, 1).await?);
    println!("shim-pss-of-ten {}", shims_memory(&node, 10).await?);
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

fn spec_on_disk(bundle: &Path, spec: &Spec) -> Result<()> {
    fs::create_dir_all(bundle)?;
    Ok(spec.save(bundle.join("config.json"))?)
}

/// A command that runs a runtime where no second cgroup hierarchy is seen: crun refuses hybrid cgroups. Both peers run
/// so.
fn peer(name: &str, bundle: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg("umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"");
    command
        .arg("sh")
        .arg(name)
        .arg("--root")
        .arg(bundle.join(name))
        .current_dir(bundle);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

/// What a peer's wrapper takes by itself, to be subtracted.
fn wrapper_time(bundle: &Path) -> Result<Duration> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command
        .arg("umount /sys/fs/cgroup/unified 2>/dev/null; exec true")
        .current_dir(bundle);
    let begin = Instant::now();
    ensure!(command.status()?.success(), "unshare failed");
    Ok(begin.elapsed())
}

fn run_peer(name: &str, bundle: &Path, run: usize) -> Result<Duration> {
    let wrapper = wrapper_time(bundle)?;
    let id = format!("skiff-bench-{run}");
    let begin = Instant::now();
    let status = peer(name, bundle).args(["run", "--detach", &id]).status()?;
    let time = begin.elapsed();
    ensure!(status.success(), "{name} failed");
    let deleted = peer(name, bundle)
        .args(["delete", "--force", &id])
        .status()?;
    ensure!(deleted.success(), "{name} does not delete");
    Ok(time.saturating_sub(wrapper))
}

fn remove_peer_cgroups() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        if let Some(mount) = line.split(' ').nth(4) {
            fs::remove_dir(Path::new(mount).join("skiff-bench")).ok();
        }
    }
    Ok(())
}

/// Proportional memory per shim, KiB, while `count` pods run one container each.
async fn shims_memory(node: &Node, count: u64) -> Result<u64> {
    let mut pss = 0;
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
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .context("no Pss")?;
        pss += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    for number in 0..count {
        node.runtime().remove_sandbox(&format!("m{number}")).await?;
    }
    Ok(pss / count)
}
