//! Checks of the code as text: format, lints, direction of dependencies.

pub(crate) mod deps;

use std::process::Command;

use anyhow::Result;

use crate::{command, paths};

/// Formats, or checks the format of, both workspaces.
pub(crate) fn fmt(check: bool) -> Result<()> {
    for dir in [paths::root(), paths::root().join("ebpf/programs")] {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(dir).args(["fmt", "--all"]);
        if check {
            cargo.arg("--check");
        }
        command::run(&mut cargo)?;
    }
    Ok(())
}

/// Clippy over everything, tests too.
pub(crate) fn lint() -> Result<()> {
    command::run(Command::new("cargo").current_dir(paths::root()).args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}
