//! `cargo xtask bench service`: what Services cost and how quickly they are programmed, beside the same without them.
//!
//! Clients and servers are processes in network namespaces ([`scene`]); the kernel programs are put there by an example of
//! `tests/datapath`, for this crate knows none of ours.

mod packets;
mod scene;
mod sync;
mod traffic;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use clap::Args;

use super::{Figure, median, rotate, site::Site};
use crate::{command, paths};

#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// Fail if a figure is over its limit.
    #[arg(long)]
    check: bool,
    /// Runs of each kind, taken in turns.
    #[arg(long, default_value_t = 11)]
    runs: usize,
    /// Count the CPU time of client and server only (with the softirqs that run in them), not the whole machine's: for
    /// one that does other things meanwhile.
    #[arg(long)]
    own_time: bool,
    /// Only the figures whose identifier begins so.
    #[arg(long, default_value = "")]
    only: String,
}

/// What every part needs.
struct Bench<'a> {
    site: &'a Site,
    /// The examples that use our crates.
    examples: PathBuf,
    runs: usize,
    own_time: bool,
}

/// Builds what is measured, and only that.
pub(super) fn build() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(paths::root()).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "skiff-tests-datapath",
        "--bins",
        "--examples",
    ]);
    command::run(&mut cargo)
}

pub(super) fn run(args: &ServiceArgs, binaries: &Path, json: bool) -> Result<()> {
    let site = Site::new()?;
    let bench = Bench {
        site: &site,
        examples: binaries.join("examples"),
        runs: args.runs,
        own_time: args.own_time,
    };
    let (mut over, mut failed) = (Vec::new(), Vec::new());
    for (prefixes, measure) in PARTS {
        let wanted = |id: &str| id.starts_with(&args.only) || args.only.starts_with(id);
        if !prefixes.iter().any(|prefix| wanted(prefix)) {
            continue;
        }
        // Each is printed when it is had, and one that fails keeps no other back.
        let result = measure(&bench, &mut |figure| {
            if figure.id.starts_with(&args.only) {
                figure.print(json)?;
                over.extend(figure.is_over_limit().then(|| figure.id.into_owned()));
            }
            Ok(())
        });
        if let Err(error) = result {
            eprintln!("{}: {error:#}", prefixes.join(", "));
            failed.push(prefixes.join(", "));
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

/// Takes a figure as soon as it is known.
type Show<'a> = &'a mut dyn FnMut(Figure) -> Result<()>;
type Measure = fn(&Bench<'_>, Show<'_>) -> Result<()>;

/// What is measured together, by the identifiers of its figures.
const PARTS: &[(&[&str], Measure)] = &[
    (
        &["svc-cps", "svc-conn-cpu", "svc-rr", "svc-stream"],
        traffic::measure,
    ),
    (&["ns-"], packets::measure),
    (&["svc-sync"], sync::full),
    (&["svc-update"], sync::update),
    (&["svc-rss"], sync::memory),
];
