//! `cargo xtask down`: undoes all that `up` did.

use std::{fs, io, process::Command};

use anyhow::{Context, Result, bail};

use super::{Instance, InstanceArgs, node_exec, registry::Registry};
use crate::command;

/// Removes the cluster; goes on after an error and reports all of them. Nothing there is success.
pub(crate) fn run(args: &InstanceArgs) -> Result<()> {
    let instance = Instance::new(args)?;
    let mut problems = Vec::new();
    let mut attempt = |result: Result<()>| {
        if let Err(err) = result {
            problems.push(format!("{err:#}"));
        }
    };
    attempt(Registry::at(instance.registry_dir()).stop());
    if instance.data_dir().exists() || instance.run_dir().exists() {
        attempt(node_exec::clean_up(&instance));
        attempt(command::run(&mut instance.skiff("down")));
    }
    if instance.netns().exists() {
        attempt(
            command::output(Command::new("ip").args(["netns", "delete", &instance.name])).map(drop),
        );
    }
    for dir in [
        instance.registry_dir(),
        instance.data_dir(),
        instance.run_dir(),
    ] {
        attempt(match fs::remove_dir_all(&dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(err).with_context(|| format!("removing {}", dir.display()))
            }
            _ => Ok(()),
        });
    }
    if !problems.is_empty() {
        bail!(
            "cluster {} is not wholly gone:\n{}",
            instance.name,
            problems.join("\n")
        );
    }
    Ok(())
}
