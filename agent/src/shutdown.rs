//! When to end.

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// Resolves at SIGTERM or SIGINT, or with an error when one of `tasks` ends before.
pub(crate) async fn requested(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Some(ended) = tasks.join_next() => {
                ended.context("a part of the daemon panicked")??;
            }
        }
    }
}
