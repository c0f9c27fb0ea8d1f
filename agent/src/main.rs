//! `skiff`: the one binary of a machine. Only wiring: reads the command line, puts the parts together, ends them.

mod addons;
mod cidrs;
mod cli;
mod cni;
mod compose;
mod config;
mod dataplane;
mod down;
mod in_process;
mod lock;
mod look;
mod memory;
mod metrics;
mod namespaces;
mod paths;
mod pki;
mod preflight;
mod proxy;
mod publish;
mod shutdown;
mod uplinks;

use std::{io::IsTerminal, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use cli::{Cli, LogFormat, Verb};
use config::UpSettings;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    memory::bound_arenas();
    let cli = Cli::parse();
    let format = match &cli.verb {
        Verb::Up(args) => args.node.place.log_format,
        Verb::Down(args) => args.place.log_format,
        Verb::Proxy(args) => args.place.log_format,
        Verb::Cni(_) | Verb::Service(_) | Verb::Policy(_) | Verb::Trace(_) => LogFormat::Text,
    };
    start_log(format);
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    if let Verb::Cni(args) = cli.verb {
        return cni::run(&args);
    }
    match cli.verb {
        Verb::Proxy(_) => preflight::check_privileges()?,
        _ => preflight::check()?,
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Namespace and image work blocks; a handful at a time is what one machine can do.
        .max_blocking_threads(64)
        .build()
        .context("starting the async runtime")?;
    match cli.verb {
        Verb::Up(args) => runtime.block_on(compose::up(UpSettings::try_from(*args)?))?,
        Verb::Down(args) => runtime.block_on(down::run(args))?,
        Verb::Proxy(args) if args.cleanup => runtime.block_on(proxy::cleanup(args.place))?,
        Verb::Proxy(args) => runtime.block_on(proxy::run(args.try_into()?))?,
        Verb::Service(args) => runtime.block_on(look::service(&args))?,
        Verb::Policy(args) => runtime.block_on(look::policy(&args))?,
        Verb::Trace(args) => runtime.block_on(look::trace(&args))?,
        Verb::Cni(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs go to stderr, filtered by `SKIFF_LOG`.
fn start_log(format: LogFormat) {
    let filter =
        EnvFilter::try_from_env("SKIFF_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

#[expect(clippy::print_stderr, reason = "the last word to whoever started it")]
fn complain(error: &anyhow::Error) {
    eprintln!("skiff: {error:#}");
}
