//! `cargo xtask test`.

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{check, command, paths, setup};

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Classes to run; all of them by default.
    classes: Vec<Class>,
    /// With `semantics`: plays the cases with another proxy than ours. For `sh`, in the node's network namespace and
    /// cgroup, with KUBECONFIG, NODE_NAME, NODE_IPS, POD_CIDRS, CGROUP_ROOT and RUN_DIR in its environment.
    #[arg(long, value_name = "CMD")]
    proxy: Option<String>,
}

/// What a test needs, and so where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    /// Format, lints, direction of dependencies.
    Check,
    /// Beside the code: no namespaces, cgroups or kernel programs. Some mount overlays.
    Unit,
    /// Network namespaces, cgroups, real kernel programs, containers: the crates under tests/.
    System,
    /// What a Service is: the cases of tests/semantics, a part of `system`.
    Semantics,
    /// The whole cluster with upstream's kubectl and a real registry.
    E2e,
}

/// Sets up, builds and runs them; ends with the runner's own summary.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    if args.proxy.is_some() && args.classes != [Class::Semantics] {
        bail!("--proxy goes with the class `semantics` and no other");
    }
    setup::run()?;
    let wanted = |class| args.classes.is_empty() || args.classes.contains(&class);
    if wanted(Class::Check) {
        check::fmt(true)?;
        check::deps::run()?;
        check::lint()?;
    }
    let filter = filter(&args.classes);
    if filter.is_empty() {
        return Ok(());
    }
    // The tests under tests/ drive the binaries. All targets at once: features are then the same in both steps, and
    // nothing is compiled twice.
    command::run(Command::new("cargo").current_dir(paths::root()).args([
        "build",
        "--locked",
        "--workspace",
        "--all-targets",
    ]))?;
    if wanted(Class::System) {
        build_fuzz_targets()?;
    }
    let proxy = args
        .proxy
        .iter()
        .map(|proxy| ("SKIFF_SEMANTICS_PROXY", proxy));
    command::run(
        Command::new("cargo")
            .current_dir(paths::root())
            .envs(proxy)
            .args([
                "nextest",
                "run",
                "--locked",
                "--workspace",
                "--no-fail-fast",
            ])
            .args(["--filterset", &filter]),
    )
}

/// libFuzzer needs the compiler to count edges; tests/cni runs what comes out for a bounded time.
fn build_fuzz_targets() -> Result<()> {
    // The environment's flags replace those of `.cargo/config.toml`: with static linking libFuzzer does not start.
    const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares";
    command::run(
        Command::new("cargo")
            .current_dir(paths::root())
            .env("RUSTFLAGS", COVERAGE)
            .args([
                "build",
                "--locked",
                "--manifest-path",
                "tests/fuzz/Cargo.toml",
            ])
            .arg("--target-dir")
            .arg(paths::target().join("fuzz")),
    )
}

/// The classes in nextest's filter language; empty if no test is meant.
fn filter(classes: &[Class]) -> String {
    if classes.is_empty() {
        return "all()".to_owned();
    }
    let system = "package(/^skiff-tests-/)";
    let e2e = "package(skiff-tests-e2e)";
    let mut parts = Vec::new();
    for class in classes {
        match class {
            Class::Check => {}
            Class::Unit => parts.push(format!("not {system}")),
            Class::System => parts.push(format!("({system} and not {e2e})")),
            Class::Semantics => parts.push("package(skiff-tests-semantics)".to_owned()),
            Class::E2e => parts.push(e2e.to_owned()),
        }
    }
    parts.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_become_a_filter() {
        assert_eq!(filter(&[]), "all()");
        assert_eq!(filter(&[Class::Check]), "");
        assert_eq!(
            filter(&[Class::Unit, Class::E2e]),
            "not package(/^skiff-tests-/) or package(skiff-tests-e2e)"
        );
    }
}
