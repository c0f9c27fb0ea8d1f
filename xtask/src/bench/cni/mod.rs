//! `cargo xtask bench cni`: the plugins beside the reference ones and beside the bare netlink calls, in the same run.
//!
//! Every node and every container is a network namespace of its own ([`site`]). Each side has its own node, bridge and
//! leases; both are called the same way ([`call`]), in pairs whose order rotates.

mod attach;
mod bare;
mod call;
mod crowd;
mod leases;
mod network;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use super::{
    Figure, median, rotate,
    site::{self, Site},
};
use crate::{command, paths};

#[derive(Debug, Args)]
pub(super) struct CniArgs {
    /// Fail if a figure is over its limit.
    #[arg(long)]
    check: bool,
    /// How many times each call is measured, on each side.
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// The plugins to compare with.
    #[arg(long, default_value = "/usr/lib/cni")]
    reference: PathBuf,
    /// The `skiff-cni` to measure, if not the one that was just built.
    #[arg(long)]
    executable: Option<PathBuf>,
    /// Only the figures whose identifier begins so.
    #[arg(long, default_value = "")]
    only: String,
}

/// What takes part in every comparison.
struct Bench<'a> {
    site: &'a Site,
    /// A folder of our plugins.
    ours: PathBuf,
    /// A folder of the reference plugins.
    reference: PathBuf,
    /// The process that makes the bare netlink calls.
    bare: PathBuf,
    runs: usize,
}

/// Builds what is measured, and only that.
pub(super) fn build() -> Result<()> {
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(paths::root())
            .args(["build", "--release", "--locked"])
            .args(arguments);
        command::run(&mut cargo)
    };
    cargo(&["--package", "skiff-cni-plugins"])?;
    // The floor's own process lies beside the plugins' tests, for it must be as small as they are.
    cargo(&["--package", "skiff-tests-cni", "--example", "bare_netlink"])
}

pub(super) fn run(args: &CniArgs, binaries: &Path, json: bool) -> Result<()> {
    call::adopt_rest()?;
    let site = Site::new()?;
    let ours = site.dir().join("bin");
    let built = binaries.join("skiff-cni");
    let executable = args.executable.as_deref().unwrap_or(&built);
    command::output(Command::new(executable).arg("--install").arg(&ours))?;
    let bench = Bench {
        site: &site,
        ours,
        reference: args.reference.clone(),
        bare: binaries.join("examples/bare_netlink"),
        runs: args.runs,
    };
    let (mut over, mut failed) = (Vec::new(), Vec::new());
    for (prefixes, measure) in PARTS {
        let wanted = |id: &str| id.starts_with(&args.only) || args.only.starts_with(id);
        if !prefixes.iter().any(|prefix| wanted(prefix)) {
            continue;
        }
        // The others are worth having all the same.
        match measure(&bench) {
            Ok(figures) => {
                for figure in figures {
                    figure.print(json)?;
                    over.extend(figure.is_over_limit().then_some(figure.id.into_owned()));
                }
            }
            Err(error) => {
                eprintln!("{}: {error:#}", prefixes.join(", "));
                failed.push(prefixes.join(", "));
            }
        }
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    if args.check && !over.is_empty() {
        bail!("over the limit: {}", over.join(", "));
    }
    Ok(())
}

type Measure = fn(&Bench<'_>) -> Result<Vec<Figure>>;

/// What is measured together, by the identifiers of its figures.
const PARTS: &[(&[&str], Measure)] = &[
    (&["cni-version"], attach::version),
    (&["cni-loopback"], attach::loopback),
    (&["cni-add", "cni-del", "cni-cpu"], attach::bridge),
    (&["cni-masq"], attach::masquerade),
    (&["cni-portmap"], attach::portmap),
    (&["cni-parallel"], crowd::parallel),
    (&["cni-mass-del"], crowd::mass_delete),
    (&["ipam-full"], leases::full),
];

/// The median of what `of` takes from each sample.
fn middle<T>(samples: &[T], of: impl Fn(&T) -> f64) -> f64 {
    median(&samples.iter().map(of).collect::<Vec<_>>())
}

fn parse(answer: &[u8]) -> Result<Value> {
    serde_json::from_slice(answer)
        .with_context(|| format!("reading {:?}", String::from_utf8_lossy(answer)))
}
