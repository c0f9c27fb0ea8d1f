//! Getting Services into the tables: all of them, and one change among many. And what remembering them takes.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{
    super::{Better, Figure},
    Bench, Show, median,
};
use crate::command;

/// Services with five endpoints each, and the seconds there are for them.
const FULL: [(u32, f64); 2] = [(10_000, 0.3), (50_000, 1.5)];
/// Runs of each of these.
const RUNS: u32 = 5;
/// Resident memory with so many Services, MiB.
const MEMORY: (u32, f64) = (50_000, 120.0);
/// Milliseconds from the watch event to the map with so many Services, for all but one change in a hundred.
const UPDATE: (u32, f64) = (10_000, 2.0);
const CHANGES: u32 = 1_000;

const BUDGET: &str = "budget";
const FLOOR: &str = "bare maps, entry by entry";

/// The numbers that `tests/datapath/examples/service_sync` prints.
fn numbers(bench: &Bench<'_>, what: &str, amounts: &[u32]) -> Result<Vec<f64>> {
    let mut example = Command::new(bench.examples.join("service_sync"));
    example.arg(what).args(amounts.iter().map(u32::to_string));
    let printed = command::output(&mut example)?;
    printed.lines().map(|line| Ok(line.parse()?)).collect()
}

/// All from empty: from objects to the first connection.
pub(super) fn full(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    for (count, budget) in FULL {
        let of =
            |what| Ok::<_, anyhow::Error>(median(&numbers(bench, what, &[count, RUNS])?) * 1e3);
        let (ours, through_the_api, floor) = (of("sync")?, of("api")?, of("floor")?);
        let figure = |id: &str, value, reference| {
            Figure::new(
                format!("{id}@{count}"),
                (value, "ms"),
                reference,
                Better::Lower,
            )
        };
        let budget = (BUDGET, budget * 1e3);
        show(figure("svc-sync", ours, budget).with_limit(Some(1.0)))?;
        show(figure("svc-sync/floor", ours, (FLOOR, floor)))?;
        // The same from a list of the API, in JSON.
        show(figure("svc-sync/api", through_the_api, (FLOOR, floor)))?;
    }
    Ok(())
}

/// A process that does nothing else.
pub(super) fn memory(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    let (count, budget) = MEMORY;
    let resident = numbers(bench, "rss", &[count])?;
    let resident = *resident.first().context("nothing was measured")?;
    let id = format!("svc-rss@{count}");
    let figure = Figure::new(id, (resident, "MiB"), (BUDGET, budget), Better::Lower);
    show(figure.with_limit(Some(1.0)))
}

/// One endpoint of one Service.
pub(super) fn update(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    let (count, budget) = UPDATE;
    let mut seconds = numbers(bench, "update", &[count, CHANGES])?;
    seconds.sort_by(f64::total_cmp);
    let p99 = seconds.get(seconds.len() * 99 / 100);
    let p99 = p99.context("nothing was measured")? * 1e3;
    let id = format!("svc-update@{count}");
    let figure = Figure::new(id, (p99, "ms"), (BUDGET, budget), Better::Lower);
    show(figure.with_limit(Some(1.0)))
}
