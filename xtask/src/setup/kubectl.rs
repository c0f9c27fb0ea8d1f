//! Upstream's kubectl, newer than the one of Debian 12, unpacked into the tools folder.

use std::{fs, process::Command};

use anyhow::Result;

use super::apt::PrivateApt;
use crate::{command, paths};

/// Its stable suite keeps its files.
const SUITE: &str = "trixie";

/// Makes sure that [`paths::kubectl`] runs.
pub(crate) fn ensure() -> Result<()> {
    if command::succeeds(Command::new(paths::kubectl()).args(["version", "--client"])) {
        return Ok(());
    }
    eprintln!("setup: fetching kubectl");
    let scratch = paths::tools().join("apt-kubectl");
    let deb = PrivateApt::open(&scratch, SUITE)?.download("kubectl")?;
    let into = paths::tools().join("kubectl");
    fs::create_dir_all(&into)?;
    command::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&into))?;
    fs::remove_dir_all(&scratch)?;
    command::output(Command::new(paths::kubectl()).args(["version", "--client"])).map(drop)
}
