//! Building the binaries.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{command, paths};

/// The binaries that make a node.
const PACKAGES: &[&str] = &["skiff", "skiff-shim", "skiff-cni-plugins"];

/// Builds them and returns the folder that they are in.
pub(crate) fn run(release: bool) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(paths::root()).args(["build", "--locked"]);
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    Ok(paths::binaries(release))
}
