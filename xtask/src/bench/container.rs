//! From "create" to "running": our sandbox, shim and container against runc and crun, on one bundle.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{Better, Figure};
use crate::{command, paths};

/// Runs of each kind, taken in turns.
const RUNS: usize = 30;

/// Medians by name, as the example of the runtime's tests prints them.
pub(super) struct Starts(BTreeMap<String, f64>);

impl Starts {
    /// Ours has no command line of its own, so an example beside the tests of the runtime runs all three in turns.
    pub(super) fn build() -> Result<()> {
        command::run(Command::new("cargo").current_dir(paths::root()).args([
            "build",
            "--release",
            "--locked",
            "--package",
            "skiff-tests-runtime",
            "--example",
            "start_time",
        ]))
    }

    /// Runs it.
    pub(super) fn measure(binaries: &Path) -> Result<Self> {
        let example = binaries.join("examples/start_time");
        let printed = command::output(Command::new(example).arg(RUNS.to_string()))?;
        let medians = printed.lines().filter_map(|line| {
            let (name, median) = line.split_once(' ')?;
            Some((name.to_owned(), median.parse().ok()?))
        });
        Ok(Self(medians.collect()))
    }

    fn get(&self, name: &str) -> Result<f64> {
        self.0
            .get(name)
            .copied()
            .with_context(|| format!("start_time printed no {name}"))
    }

    /// runc alone, for figures that contain a container's start.
    pub(super) fn runc(&self) -> Result<f64> {
        self.get("runc")
    }

    /// Sandbox and container together, for runc and crun make their namespaces too.
    pub(super) fn figures(&self) -> Result<Vec<Figure>> {
        let ours = (self.get("sandbox-and-start")?, "ms");
        let peers = [("ctr-start/runc", "runc"), ("ctr-start/crun", "crun")];
        peers
            .into_iter()
            .map(|(id, peer)| {
                Ok(Figure::new(
                    id,
                    ours,
                    (peer, self.get(peer)?),
                    Better::Lower,
                ))
            })
            .collect()
    }
}
