//! `cargo xtask`: everything that is done with this repository, from setting a machine up to tests.
//!
//! Knows nothing of skiff's crates: it drives their binaries, as a user would.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command for people"
)]

mod bench;
mod build;
mod check;
mod cluster;
mod command;
mod images;
mod paths;
mod setup;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures skiff.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Installs what this machine lacks: Debian and cargo packages, and the eBPF toolchain in `.tools/`.
    Setup,
    /// Builds every binary.
    Build {
        /// Optimised, as for a release.
        #[arg(long)]
        release: bool,
    },
    /// Sets up, builds, starts a one-node cluster in a network namespace of its own and applies the example.
    Up(cluster::up::UpArgs),
    /// Undoes all that `up` did.
    Down(cluster::InstanceArgs),
    /// Runs a command as a process of the node that `up` started: its network namespace and cgroup.
    NodeExec(cluster::node_exec::NodeExecArgs),
    /// Builds the example's two images and pushes them to a registry that runs at this address.
    PushImages {
        /// `host:port` of the registry, on loopback.
        registry: String,
    },
    /// Sets up and runs the tests: all classes, or those named.
    Test(test::TestArgs),
    /// Formats the code.
    Fmt {
        /// Changes nothing, fails if something is not formatted.
        #[arg(long)]
        check: bool,
    },
    /// Clippy with warnings as errors, kernel programs included.
    Lint,
    /// Checks that crates depend on each other only in the allowed direction.
    CheckDeps,
    /// The load generator of `bench`, run inside pods.
    #[command(hide = true, subcommand)]
    Load(bench::load::Load),
    /// Measures; prints a table, or one JSON object a line.
    Bench(bench::BenchArgs),
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build { release } => build::run(release).map(drop),
        Verb::Up(args) => cluster::up::run(&args),
        Verb::Down(args) => {
            cluster::down::run(&args)?;
            println!("cluster {} is gone", args.name);
            Ok(())
        }
        Verb::NodeExec(args) => cluster::node_exec::run(&args),
        Verb::PushImages { registry } => images::build_and_push(&registry),
        Verb::Test(args) => test::run(&args),
        Verb::Fmt { check } => check::fmt(check),
        Verb::Lint => check::lint(),
        Verb::CheckDeps => check::deps::run(),
        Verb::Load(load) => bench::load::run(&load),
        Verb::Bench(args) => bench::run(&args),
    }
}
