//! `cargo xtask node-exec`: a command as a process of the node.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Instance, InstanceArgs};

#[derive(Debug, Args)]
pub(crate) struct NodeExecArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Becomes the command, in the node's cgroup (so that Services work for it) and network namespace.
pub(crate) fn run(args: &NodeExecArgs) -> Result<()> {
    let instance = Instance::new(&args.instance)?;
    if !instance.netns().exists() {
        bail!("cluster {} is not up", instance.name);
    }
    // A leaf beside the pods: in cgroup v2 only leaves hold processes.
    let cgroup = cgroup(&instance)?;
    fs::create_dir_all(&cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
    fs::write(cgroup.join("cgroup.procs"), "0").context("joining the node's cgroup")?;
    Err(enter(&instance).args(&args.command).exec()).context("running nsenter")
}

/// A command to be run in the node's network namespace, by a process that is in its cgroup already.
fn enter(instance: &Instance) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", instance.netns().display()))
        .arg("--");
    command
}

/// [`run`] as a child: the arguments that are added are the command.
pub(crate) fn command(instance: &Instance) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["node-exec", "--name", &instance.name, "--"]);
    Ok(command)
}

fn cgroup(instance: &Instance) -> Result<PathBuf> {
    Ok(cgroup2_mount()?.join(&instance.name).join("node-exec"))
}

/// Removes the cgroup of the commands that have ended.
pub(super) fn clean_up(instance: &Instance) -> Result<()> {
    let cgroup = cgroup(instance)?;
    match fs::remove_dir(&cgroup) {
        Err(err) if err.kind() == std::io::ErrorKind::ResourceBusy => {
            bail!("a command of `cargo xtask node-exec` still runs")
        }
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("removing {}", cgroup.display()))
        }
        _ => Ok(()),
    }
}

/// Where cgroup v2 is mounted: /sys/fs/cgroup, or beside the v1 hierarchies on a hybrid machine.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .find(|(_, _, kind)| *kind == "cgroup2")
        .map(|(_, path, _)| Path::new(path).to_owned())
        .context("no cgroup2 is mounted")
}
