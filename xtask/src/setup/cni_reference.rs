//! The reference CNI plugins, newer than those of Debian 12, for the comparison in `tests/cni` and for the bench.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::apt::PrivateApt;
use crate::{command, paths};

/// Debian's testing suite by its own name, so that it stays the same one when it becomes stable.
const SUITE: &str = "forky";
const PACKAGE: &str = "containernetworking-plugins";

/// Makes sure that [`paths::cni_reference`] holds plugins that run.
pub(crate) fn ensure() -> Result<()> {
    let into = paths::cni_reference();
    if command::succeeds(&mut version()) {
        return Ok(());
    }
    eprintln!("setup: fetching the reference CNI plugins");
    let scratch = paths::tools().join("apt-cni-reference");
    let deb = PrivateApt::open(&scratch, SUITE)?.download(PACKAGE)?;
    let tree = scratch.join("tree");
    command::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&tree))?;
    if into.exists() {
        fs::remove_dir_all(&into)?;
    }
    // They need nothing but the kernel and glibc, so they run from where they are.
    fs::rename(tree.join("usr/lib/cni"), &into)?;
    fs::remove_dir_all(&scratch)?;
    command::output(&mut version()).map(drop)
}

/// Asks one of them for the versions it knows.
fn version() -> Command {
    let mut call = Command::new(paths::cni_reference().join("bridge"));
    call.env("CNI_COMMAND", "VERSION").stdin(Stdio::null());
    call
}
