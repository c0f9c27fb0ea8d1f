//! What a Service is, as its clients see it: cases played with real sockets against a real proxy process, which sees
//! nothing but an API server and its node.
//!
//! ```text
//! Api (in this process) <─ kubeconfig ─ the proxy under test, in the node's namespace and cgroup
//!   ▲ objects                                │ makes the node's kernel translate
//! a case ── commands ─> probes in pods, on the node, in the world ─ sockets ─> servers in pods
//! ```
//!
//! Each case has addresses, ports and an API namespace of its own, so that many share one node and one proxy.
//! After it has written its objects it waits until a later change of both kinds of object is in effect
//! ([`Stage::settle`](stage::Stage::settle)), which works with any proxy, and from then on nothing may be wrong even once.
//!
//! Run by nextest: one test for each mode. `cargo xtask test semantics --proxy CMD` plays the cases with another proxy;
//! one that upstream's fails is a wrong case.
#![expect(clippy::print_stdout, reason = "what a test says is its result")]

mod api;
mod cases;
mod expect;
mod proxy;
mod run;
mod site;
mod stage;
mod who;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// Becomes a probe instead of a test.
const PROBE: &str = "--probe";

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The part of a test binary's command line that nextest uses: `--list`, and the name of one test.
fn start() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((PROBE, rest)) = arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        skiff_test_harness::probe::main(rest.iter().cloned())?;
        return Ok(true);
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let modes = proxy::modes();
    if has("--list") {
        for mode in modes.iter().filter(|_| !has("--ignored")) {
            println!("{}: test", mode.name);
        }
        return Ok(true);
    }
    let named = arguments.iter().find(|argument| !argument.starts_with('-'));
    let mut passed = true;
    for mode in &modes {
        if named.is_none_or(|named| *named == mode.name) {
            passed &= run::play_all(mode).with_context(|| format!("mode {}", mode.name))?;
        }
    }
    Ok(passed)
}
