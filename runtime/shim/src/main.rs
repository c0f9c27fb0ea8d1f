//! `skiff-shim`: the parent of one pod's containers, which outlives the daemon.
//!
//! One thread, one poll loop ([`shim::Shim`]), next to no memory. Whatever is heavy or may go wrong (the
//! engine, entering a container) happens in a short-lived fork ([`create`], [`exec`]) whose children are
//! the shim's own: so the shim keeps its memory small and its process state clean, goes on copying other
//! containers' output meanwhile, and learns every exit status by itself.
//!
//! Started by the daemon with its pod's directory as working directory, the listening socket as descriptor 3
//! and the pod's UID as its only argument. Ends by the `shutdown` request alone; signals are ignored.

mod attach;
mod container;
mod create;
mod error;
mod exec;
mod executable;
mod log;
mod process;
mod ready;
mod shim;
mod stdio;
mod terminal;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::shim::Shim;

fn main() -> ExitCode {
    match Shim::start().and_then(Shim::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{}", error::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to the shim's own log.
pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    // There is nowhere to complain about a log that cannot be written.
    writeln!(io::stderr(), "{} {line}", jiff::Timestamp::now()).ok();
}
