//! From "create" to "running": our shim against runc and crun, on one bundle.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Better, Figure, median, millis};
use crate::command;

/// Runs of each kind, taken in turns.
const RUNS: usize = 30;

/// Median time to a running container for ours, runc and crun.
pub(super) fn start(binaries: &Path) -> Result<Vec<Figure>> {
    let scratch = Scratch::new()?;
    let bundle = scratch.0.join("bundle");
    make_bundle(&bundle)?;
    let ours = ours_start(binaries, &bundle)?;
    let mut figures = Vec::new();
    for (id, peer) in [("ctr-start/runc", "runc"), ("ctr-start/crun", "crun")] {
        let peer_median = median(&peer_starts(peer, &scratch.0, &bundle)?);
        figures.push(Figure::new(
            id,
            (ours, "ms"),
            (peer, peer_median),
            Better::Lower,
        ));
    }
    Ok(figures)
}

/// runc alone, for figures that contain a container's start.
pub(super) fn runc_start() -> Result<f64> {
    let scratch = Scratch::new()?;
    let bundle = scratch.0.join("bundle");
    make_bundle(&bundle)?;
    Ok(median(&peer_starts("runc", &scratch.0, &bundle)?))
}

/// Ours has no command line of its own: an example beside the tests of the runtime prints one time a line.
fn ours_start(binaries: &Path, bundle: &Path) -> Result<f64> {
    command::output(
        Command::new("cargo")
            .current_dir(crate::paths::root())
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "--package",
                "skiff-tests-runtime",
                "--example",
                "start_time",
            ]),
    )?;
    let samples = command::output(
        Command::new(binaries.join("examples/start_time"))
            .arg(binaries.join("skiff-shim"))
            .arg(bundle)
            .arg(RUNS.to_string()),
    )?;
    let times: Vec<f64> = samples
        .lines()
        .map(|line| Ok(line.parse()?))
        .collect::<Result<_>>()?;
    Ok(median(&times))
}

fn peer_starts(peer: &str, scratch: &Path, bundle: &Path) -> Result<Vec<f64>> {
    (0..RUNS)
        .map(|run| peer_start(peer, scratch, bundle, &format!("bench-{run}")))
        .collect()
}

/// A folder that goes with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("skiff-bench-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

/// busybox alone, with runc's own default spec.
fn make_bundle(bundle: &Path) -> Result<()> {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    for dir in ["proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(bundle.join("rootfs").join(dir))?;
    }
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    std::os::unix::fs::symlink("busybox", bin.join("sleep"))?;
    command::output(Command::new("runc").arg("spec").arg("--bundle").arg(bundle))?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    fs::write(&path, spec.to_string()).context("writing config.json")
}

/// One container from nothing to running, milliseconds; removed again.
fn peer_start(peer: &str, scratch: &Path, bundle: &Path, id: &str) -> Result<f64> {
    let peer_command = || {
        // crun refuses hybrid cgroups where it can see the second hierarchy: both run where neither does.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command
            .arg("umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"")
            .arg("sh");
        command.arg(peer).arg("--root").arg(scratch.join(peer));
        command
    };
    let mut run = peer_command();
    run.args(["run", "--detach", "--bundle"])
        .arg(bundle)
        .arg(id);
    // The container keeps these open: pipes would never end.
    run.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    command::run(&mut run)?;
    let took = millis(start.elapsed());
    command::output(peer_command().args(["delete", "--force", id]))?;
    Ok(took)
}
