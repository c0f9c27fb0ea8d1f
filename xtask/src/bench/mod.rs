//! `cargo xtask bench`: figures, each beside its reference in the same run. Pairs and rotates runs, takes medians.

mod api;
mod cni;
mod container;
mod control_plane;
mod cpu;
pub(crate) mod load;
mod service;
mod site;

use std::{
    borrow::Cow,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{
    build,
    cluster::{self, Instance, InstanceArgs},
    paths, setup,
};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    suite: Suite,
    /// One JSON object a line.
    #[arg(long, global = true)]
    json: bool,
    /// Expect set-up and an optimised build to have been done.
    #[arg(long, global = true)]
    no_build: bool,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// A whole node: container start, control plane start, memory, pod start.
    FirstLight,
    /// Services: connections and requests through them, and what it takes to program them.
    Service(service::ServiceArgs),
    /// The CNI plugins: ADD and DEL, alone and many at once, and a range that is nearly full.
    Cni(cni::CniArgs),
}

/// One measured figure. Identifiers are stable.
#[derive(Debug, Serialize)]
struct Figure {
    id: Cow<'static, str>,
    value: f64,
    unit: &'static str,
    reference: &'static str,
    reference_value: f64,
    ratio: f64,
    /// What the ratio should not be worse than.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<f64>,
    better: Better,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Better {
    Lower,
    Higher,
}

impl Figure {
    fn new(
        id: impl Into<Cow<'static, str>>,
        (value, unit): (f64, &'static str),
        (reference, reference_value): (&'static str, f64),
        better: Better,
    ) -> Self {
        Self {
            id: id.into(),
            value,
            unit,
            reference,
            reference_value,
            ratio: value / reference_value,
            limit: None,
            better,
        }
    }

    fn with_limit(self, limit: Option<f64>) -> Self {
        Self { limit, ..self }
    }

    fn is_over_limit(&self) -> bool {
        self.limit.is_some_and(|limit| match self.better {
            Better::Lower => self.ratio > limit,
            Better::Higher => self.ratio < limit,
        })
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!(
                "{:<24} {:>10.2} {:<6} {:>10.2} {:>6.2}x  {} ({} is better{})",
                self.id,
                self.value,
                self.unit,
                self.reference_value,
                self.ratio,
                self.reference,
                serde_json::to_string(&self.better)?.trim_matches('"'),
                self.limit
                    .map(|limit| format!(", limit {limit:.2}x"))
                    .unwrap_or_default(),
            );
        }
        Ok(())
    }
}

/// Runs every side once a turn, each turn beginning with another one.
fn rotate<T, const SIDES: usize>(
    turns: usize,
    mut run: impl FnMut(usize, usize) -> Result<T>,
) -> Result<[Vec<T>; SIDES]> {
    let mut samples = std::array::from_fn(|_side| Vec::with_capacity(turns));
    for turn in 0..turns {
        for place in 0..SIDES {
            let side = (turn + place) % SIDES;
            let sample = run(side, turn)?;
            if let Some(samples) = samples.get_mut(side) {
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

/// The middle one; the mean of the two middle ones of an even number.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(below), Some(above)) if sorted.len().is_multiple_of(2) => {
            f64::midpoint(*below, *above)
        }
        (_, Some(middle)) => *middle,
        _ => f64::NAN,
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Resident memory of a process, MiB.
fn rss_mib(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|l| l.split_whitespace().next())
        .context("no VmRSS")?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Polls, for what has no event to wait for, as finely as the figure needs.
fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > Duration::from_secs(120) {
            anyhow::bail!("{what}: not within 120 s");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(start.elapsed())
}

/// A cluster for one bench, taken down when it is dropped.
struct BenchCluster {
    instance: Instance,
    args: InstanceArgs,
}

impl BenchCluster {
    fn up() -> Result<Self> {
        let args = InstanceArgs {
            name: "skiff-bench".to_owned(),
            release: true,
        };
        cluster::down::run(&args)?;
        let cluster = Self {
            instance: Instance::new(&args)?,
            args,
        };
        cluster::up::start_bare(&cluster.instance)?;
        Ok(cluster)
    }

    fn daemon_pid(&self) -> Result<i32> {
        let lock = self.instance.run_dir().join("lock");
        let text = fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for BenchCluster {
    fn drop(&mut self) {
        if let Err(error) = cluster::down::run(&self.args) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if !args.no_build {
        setup::run()?;
    }
    let binaries = paths::binaries(true);
    match &args.suite {
        Suite::FirstLight => {
            if !args.no_build {
                build::run(true)?;
                container::Starts::build()?;
            }
            first_light(&binaries, args.json)
        }
        Suite::Service(service) => {
            if !args.no_build {
                service::build()?;
            }
            service::run(service, &binaries, args.json)
        }
        Suite::Cni(cni) => {
            if !args.no_build {
                cni::build()?;
            }
            cni::run(cni, &binaries, args.json)
        }
    }
}

fn first_light(binaries: &Path, json: bool) -> Result<()> {
    let show = |figures: Vec<Figure>| figures.iter().try_for_each(|figure| figure.print(json));
    let starts = container::Starts::measure(binaries)?;
    show(starts.figures()?)?;
    show(control_plane::ready()?)?;
    let cluster = BenchCluster::up()?;
    show(control_plane::memory_idle(&cluster)?)?;
    show(control_plane::pods(&cluster, starts.runc()?)?)?;
    show(control_plane::application(&cluster)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn every_side_has_its_turn_at_each_place() {
        let mut order = Vec::new();
        let samples: [_; 3] = rotate(3, |side, turn| {
            order.push(side);
            Ok((side, turn))
        })
        .unwrap();
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(samples[1], [(1, 0), (1, 1), (1, 2)]);
    }
}
