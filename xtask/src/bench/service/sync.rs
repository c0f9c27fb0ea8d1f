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

/// Services by which our iptables mode is compared: it takes seconds for them.
const COMPARED: [u32; 2] = [1_000, 5_000];
/// Its changes take a tenth of a second and more.
const FEW_CHANGES: u32 = 50;

const BUDGET: &str = "budget";
const IPTABLES: &str = "our --proxy-mode=iptables";
const FLOOR: &str = "bare maps, entry by entry";

/// The numbers that `tests/datapath/examples/service_sync` prints.
fn numbers(bench: &Bench<'_>, what: &[&str], amounts: &[u32]) -> Result<Vec<f64>> {
    let mut example = Command::new(bench.examples.join("service_sync"));
    example.args(what).args(amounts.iter().map(u32::to_string));
    let printed = command::output(&mut example)?;
    printed.lines().map(|line| Ok(line.parse()?)).collect()
}

/// All from empty: from objects to the first connection.
pub(super) fn full(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    for (count, budget) in FULL {
        let of = |what: &[&str]| {
            Ok::<_, anyhow::Error>(median(&numbers(bench, what, &[count, RUNS])?) * 1e3)
        };
        let floor = of(&["floor"])?;
        let (ours, through_the_api) = (of(&["sync", "ebpf"])?, of(&["api", "ebpf"])?);
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
    for count in COMPARED {
        let of = |mode| -> Result<f64> {
            let runs = numbers(bench, &["sync", mode], &[count, RUNS])?;
            Ok(median(&runs) * 1e3)
        };
        let (ours, rules) = (of("ebpf")?, of("iptables")?);
        let id = format!("svc-sync/iptables@{count}");
        show(Figure::new(
            id,
            (ours, "ms"),
            (IPTABLES, rules),
            Better::Lower,
        ))?;
    }
    Ok(())
}

/// A process that does nothing else.
pub(super) fn memory(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    let (count, budget) = MEMORY;
    let of = |mode, count| -> Result<f64> {
        let resident = numbers(bench, &["rss", mode], &[count])?;
        Ok(*resident.first().context("nothing was measured")?)
    };
    let id = format!("svc-rss@{count}");
    let resident = (of("ebpf", count)?, "MiB");
    let figure = Figure::new(id, resident, (BUDGET, budget), Better::Lower);
    show(figure.with_limit(Some(1.0)))?;
    let [.., compared] = COMPARED;
    let (ours, rules) = (of("ebpf", compared)?, of("iptables", compared)?);
    let id = format!("svc-rss/iptables@{compared}");
    show(Figure::new(
        id,
        (ours, "MiB"),
        (IPTABLES, rules),
        Better::Lower,
    ))
}

/// One endpoint of one Service.
pub(super) fn update(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    let (count, budget) = UPDATE;
    let sorted = |mode, count, changes| -> Result<Vec<f64>> {
        let mut seconds = numbers(bench, &["update", mode], &[count, changes])?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds)
    };
    let seconds = sorted("ebpf", count, CHANGES)?;
    let p99 = seconds.get(seconds.len() * 99 / 100);
    let p99 = p99.context("nothing was measured")? * 1e3;
    let id = format!("svc-update@{count}");
    let figure = Figure::new(id, (p99, "ms"), (BUDGET, budget), Better::Lower);
    show(figure.with_limit(Some(1.0)))?;
    // So few have no last hundredth: the median.
    for count in COMPARED {
        let of = |mode| Ok::<_, anyhow::Error>(median(&sorted(mode, count, FEW_CHANGES)?) * 1e3);
        let (ours, rules) = (of("ebpf")?, of("iptables")?);
        let id = format!("svc-update/iptables@{count}");
        show(Figure::new(
            id,
            (ours, "ms"),
            (IPTABLES, rules),
            Better::Lower,
        ))?;
    }
    Ok(())
}
