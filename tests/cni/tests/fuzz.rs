//! The fuzz targets of `tests/fuzz`, each for a bounded time, from the corpus that is kept beside them.
//!
//! By default each goes the same way every time, equally far on a fast machine and a slow one (but for a limit of time), so that a
//! failure is the change's and not luck's. `SKIFF_FUZZ_SECONDS`
//! gives each more or less time, and another way each time: that is how to look for more. `cargo xtask test` builds them.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const DEFAULT_SECONDS: &str = "15";
/// Inputs that each target gets by default.
const DEFAULT_RUNS: &str = "300000";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The executable of a target, in a folder of its own beside the one that this test was built into.
fn executable(target: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let triple = test.ancestors().nth(3).unwrap();
    let of_all = triple.parent().unwrap().join("fuzz");
    let path = of_all
        .join(triple.file_name().unwrap())
        .join("debug")
        .join(target);
    assert!(
        path.exists(),
        "{} is missing: cargo xtask test builds it",
        path.display()
    );
    path
}

fn run(target: &str) {
    let corpus = root().join("tests/fuzz/corpus").join(target);
    let seeds = fs::read_dir(&corpus).unwrap().count();
    assert!(seeds > 0, "{} is empty", corpus.display());
    let scratch = tempfile::tempdir().unwrap();
    // What is found goes into the first folder, and what is there comes from both.
    let found = scratch.path().join("corpus");
    fs::create_dir(&found).unwrap();
    let seconds = std::env::var("SKIFF_FUZZ_SECONDS");
    // 0: libFuzzer takes one by chance.
    let seed = u8::from(seconds.is_err());
    let runs = if seconds.is_err() { DEFAULT_RUNS } else { "-1" };
    let seconds = seconds.as_deref().unwrap_or(DEFAULT_SECONDS);
    let output = Command::new(executable(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-seed={seed}"))
        .arg(format!("-runs={runs}"))
        .arg(format!("-artifact_prefix={}/", scratch.path().display()))
        .args(["-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1"])
        .args([&found, &corpus])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    let inputs = artifacts(scratch.path());
    assert!(
        output.status.success() && inputs.is_empty(),
        "{target}: {}\n{log}\n{inputs}",
        output.status
    );
    // One without counters would go on and find nothing.
    assert!(log.contains("inline 8-bit counters"), "{target}: {log}");
    let units = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|count| count.trim().parse::<u64>().ok());
    assert!(units.is_some_and(|units| units > 50), "{target}: {log}");
}

/// The inputs that broke it, as text and byte by byte.
fn artifacts(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let (shown, name) = (
            String::from_utf8_lossy(&bytes).into_owned(),
            path.file_name().unwrap(),
        );
        writeln!(text, "{}: {shown}\n{bytes:?}", name.display()).unwrap();
    }
    text
}

#[test]
fn stdin() {
    run("stdin");
}

#[test]
fn result() {
    run("result");
}

#[test]
fn conflist() {
    run("conflist");
}

#[test]
fn leases() {
    run("leases");
}
