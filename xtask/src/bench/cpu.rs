//! Whole-machine CPU time, for what is spread over processes and the kernel.

use std::fs;

use anyhow::{Context, Result};

/// Busy time of all cores since boot, seconds: user, system and interrupts, as /proc/stat counts them.
pub(super) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = parse_busy(&stat).context("reading /proc/stat")?;
    // USER_HZ is 100 on every architecture that Linux has now.
    Ok(ticks / 100.0)
}

fn parse_busy(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<f64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq
    match *fields.as_slice() {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] => {
            Some(user + nice + system + irq + softirq)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        assert_eq!(
            parse_busy("cpu  1 2 4 800 1600 8 16 0 0 0\ncpu0 1 1\n"),
            Some(31.0)
        );
        assert_eq!(parse_busy("intr 0\n"), None);
    }
}
