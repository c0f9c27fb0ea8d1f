//! Packets from outside for endpoints on other nodes: what the program in the uplink's driver takes for one, in a driver's own
//! loop (`BPF_PROG_TEST_RUN`), over what a program takes that sends every frame back.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{
    super::{Better, Figure},
    Bench, Show,
};
use crate::command;

/// Among so many Services.
const COUNTS: [u32; 2] = [1, 50_000];
const ROUNDS: u32 = 31;
/// What is measured, and how many nanoseconds it may take: of one flow, of 4,096 in turn, of one that is new.
const KINDS: [(&str, Option<f64>); 3] = [
    ("ns-known", Some(60.0)),
    ("ns-known-many", None),
    ("ns-new", Some(150.0)),
];

const BOUNCE: &str = "plain XDP_TX";
const BUDGET: &str = "budget over plain XDP_TX";
const FLOOR: &str = "two insertions into such a table";

/// TCP and UDP, IPv4 and IPv6: the worst of the four.
pub(super) fn measure(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    for count in COUNTS {
        let mut example = Command::new(bench.examples.join("packet_cost"));
        example.args([count, ROUNDS].map(|number| number.to_string()));
        let printed = command::output(&mut example)?;
        let lines: Vec<Vec<f64>> = printed
            .lines()
            .map(|line| {
                line.split(' ')
                    .skip(1)
                    .map(|number| Ok(number.parse()?))
                    .collect()
            })
            .collect::<Result<_>>()?;
        let worst = |column: usize| {
            let column = lines.iter().filter_map(|line| line.get(column).copied());
            column
                .max_by(f64::total_cmp)
                .context("nothing was measured")
        };
        let (bounce, floor) = (worst(0)?, worst(4)?);
        for ((name, budget), column) in KINDS.into_iter().zip(1..) {
            let id = format!("{name}@{count}");
            let (value, reference) = match budget {
                Some(budget) => (worst(column)? - bounce, (BUDGET, budget)),
                None => (worst(column)?, (BOUNCE, bounce)),
            };
            let figure = Figure::new(id, (value, "ns"), reference, Better::Lower);
            show(figure.with_limit(budget.map(|_| 1.0)))?;
        }
        let new = (worst(3)? - bounce, "ns");
        let id = format!("ns-new/floor@{count}");
        show(Figure::new(id, new, (FLOOR, floor - bounce), Better::Lower))?;
    }
    Ok(())
}
