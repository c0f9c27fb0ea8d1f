//! host-local on a range that is nearly full.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    super::{Better, Figure},
    Bench,
    call::Cost,
    middle,
    network::{Network, attachment, host_local},
    rotate,
};

/// 90 % of a /16.
const LEASES: u32 = 58_982;
/// The first one that a container can have.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// The reference plugin reads all leases at each call; a few times tell enough.
const REFERENCE_RUNS: usize = 5;

/// Addresses are given round and round: the worst case is that the search has just come to the block of those that are
/// taken. Each run begins there.
pub(super) fn full(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let side = |name: &str, plugins: &Path, leases| {
        let dir = bench
            .site
            .dir()
            .join(format!("{name}-leases"))
            .join("bench");
        write_leases(&dir, leases)?;
        let conf = json!({"type": "host-local", "ipam": host_local()});
        let side = Side {
            network: Network::new(bench, name, plugins, [conf])?,
            pod: bench.site.netns(&format!("{name}-pod"))?,
            last: dir.join("last_reserved_ip.0"),
        };
        Ok::<_, anyhow::Error>(side)
    };
    let full = side("full-ours", &bench.ours, LEASES)?;
    let empty = side("empty-ours", &bench.ours, 0)?;
    // The leases were made by the reference plugin, for all that ours knows.
    let first = full.run(0)?.wall;
    empty.run(0)?;
    let samples: [_; 2] = rotate(bench.runs, |side, turn| [&full, &empty][side].run(turn))?;
    let [ours, on_empty] = samples.map(|costs| middle(&costs, |cost| cost.wall));
    let other = side("full-reference", &bench.reference, LEASES)?;
    let other: [_; 1] = rotate(REFERENCE_RUNS, |_side, turn| other.run(turn))?;
    let [reference] = other.map(|costs| middle(&costs, |cost| cost.wall));
    let figure = |id, value: f64, reference: (&'static str, f64)| {
        Figure::new(id, (value, "ms"), reference, Better::Lower)
    };
    Ok(vec![
        figure("ipam-full", ours, ("an empty range", on_empty)).with_limit(Some(2.0)),
        figure("ipam-full/reference", ours, ("reference plugin", reference)),
        figure("ipam-full-first", first, ("reference plugin", reference)),
    ])
}

struct Side {
    network: Network,
    pod: PathBuf,
    last: PathBuf,
}

impl Side {
    /// One ADD; what it took is given back.
    fn run(&self, turn: usize) -> Result<Cost> {
        fs::write(&self.last, FIRST.to_string())?;
        let pod = attachment(&format!("bench-container-{turn}"), &self.pod);
        let (cost, result) = self.network.add(&pod)?;
        self.network.del(&pod, &result)?;
        Ok(cost)
    }
}

/// As the reference plugin writes them.
fn write_leases(dir: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    for number in 0..count {
        let address = Ipv4Addr::from_bits(FIRST.to_bits() + number);
        let owner = format!("bench-resident-{number}\r\neth0");
        fs::write(dir.join(address.to_string()), owner)?;
    }
    Ok(())
}
