//! Many containers at once.

use std::{collections::HashSet, path::Path, time::Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    super::{Better, Figure, median, millis, wait_until},
    Bench,
    bare::{self, Bare},
    call::{self, Attachment, Prepared, Started},
    middle,
    network::{self, Network, attachment},
    parse, rotate, site,
};

/// Containers that come and go at once.
const CROWD: usize = 50;
/// Ports that the bridge has beside theirs.
const PORTS: usize = 500;
/// Each is a crowd: fewer are needed for a steady median.
const ROUNDS: usize = 9;
/// Containers that go at once with their node.
const MASS: usize = 100;
const MASS_ROUNDS: usize = 5;

/// What a crowd came to.
struct Outcome {
    /// From the first start to the last end, ms.
    total: f64,
    /// Until the end of whatever they had started, ms.
    done: f64,
    failed: usize,
    answers: Vec<Vec<u8>>,
}

/// Starts them all and then waits for all.
fn at_once(node: &Path, calls: Vec<Prepared>) -> Result<Outcome> {
    site::inside(node, || {
        let clock = Instant::now();
        let mut started = calls
            .into_iter()
            .map(Prepared::start)
            .collect::<Result<Vec<Started>>>()?;
        let mut failed = 0;
        for process in &mut started {
            failed += usize::from(!process.wait()?);
        }
        let total = millis(clock.elapsed());
        call::reap_rest()?;
        let done = millis(clock.elapsed());
        let answers = started.into_iter().map(Started::read);
        Ok(Outcome {
            total,
            done,
            failed,
            answers: answers.collect::<Result<_>>()?,
        })
    })
}

/// ADDs and then DELs of a crowd on a full bridge.
pub(super) fn parallel(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let ours = full_bridge(bench, "parallel-ours", &bench.ours)?;
    let reference = full_bridge(bench, "parallel-reference", &bench.reference)?;
    let bare = Bare::new(bench, "parallel-bare")?;
    fill(bench, "parallel-bare", &bare.node)?;
    let pods = [
        crowd(bench, "parallel-ours", CROWD)?,
        crowd(bench, "parallel-reference", CROWD)?,
        crowd(bench, "parallel-bare", CROWD)?,
    ];
    let samples: [_; 3] = rotate(ROUNDS, |side, _turn| match side {
        0 => round(&ours, &pods[0], true),
        1 => round(&reference, &pods[1], false),
        _ => bare_round(&bare, &pods[2]),
    })?;
    let adds = [0, 1, 2].map(|side: usize| middle(&samples[side], |round| round.add));
    let dels = [0, 1].map(|side: usize| middle(&samples[side], |round| round.del));
    let done = middle(&samples[0], |round| round.del_done);
    let figure = |id, ours, reference, limit| {
        Figure::new(id, (ours, "ms"), reference, Better::Lower).with_limit(limit)
    };
    let reference = |value| ("reference plugins", value);
    Ok(vec![
        figure("cni-parallel", adds[0], reference(adds[1]), Some(0.5)),
        figure(
            "cni-parallel/floor",
            adds[0],
            ("bare netlink calls", adds[2]),
            None,
        ),
        figure("cni-parallel-del", dels[0], reference(dels[1]), Some(0.15)),
        figure("cni-parallel-del/done", done, reference(dels[1]), None),
    ])
}

/// All ADDs and then all DELs, ms from the first start to the last end.
struct Round {
    add: f64,
    del: f64,
    /// Until nothing runs any more that a DEL has left behind.
    del_done: f64,
}

/// Ours may not fail and may not give an address twice; of the others it is said.
fn round(network: &Network, pods: &[Attachment], strict: bool) -> Result<Round> {
    let before = network.links()?;
    let (adds, results) = add_all(network, pods)?;
    let addresses: HashSet<_> = results.iter().filter_map(address).collect();
    let given = results.iter().filter_map(address).count();
    let twice = given - addresses.len();
    let dels = del_all(network, pods, &results)?;
    let failed = adds.failed + dels.failed;
    let left = network.links()?.saturating_sub(before);
    if failed + twice + left > 0 {
        let what =
            format!("{failed} calls failed, {twice} addresses given twice, {left} links left");
        ensure!(!strict, "{what}");
        eprintln!("reference plugins: {what}");
    }
    Ok(Round {
        add: adds.total,
        del: dels.total,
        del_done: dels.done,
    })
}

fn bare_round(bare: &Bare, pods: &[Attachment]) -> Result<Round> {
    let calls = pods.iter().enumerate();
    let adds = calls.map(|(number, pod)| bare.prepare_add(pod, number));
    let adds = at_once(&bare.node, adds.collect::<Result<_>>()?)?;
    let dels = (0..pods.len()).map(|number| bare.prepare_del(number));
    let dels = at_once(&bare.node, dels.collect::<Result<_>>()?)?;
    ensure!(adds.failed + dels.failed == 0, "a bare call failed");
    Ok(Round {
        add: adds.total,
        del: dels.total,
        del_done: dels.done,
    })
}

fn add_all(network: &Network, pods: &[Attachment]) -> Result<(Outcome, Vec<Value>)> {
    let calls = pods
        .iter()
        .map(|pod| network.prepare_first("ADD", pod, &Value::Null));
    let outcome = at_once(&network.node, calls.collect::<Result<_>>()?)?;
    let results = outcome.answers.iter().map(|answer| parse(answer));
    let results = results.collect::<Result<_>>()?;
    Ok((outcome, results))
}

fn del_all(network: &Network, pods: &[Attachment], results: &[Value]) -> Result<Outcome> {
    let calls = pods
        .iter()
        .zip(results)
        .map(|(pod, result)| network.prepare_first("DEL", pod, result));
    at_once(&network.node, calls.collect::<Result<_>>()?)
}

fn address(result: &Value) -> Option<&str> {
    result["ips"][0]["address"].as_str()
}

/// Everything of a node goes at once, against one container after the other.
pub(super) fn mass_delete(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let list = [network::bridge()];
    let network = Network::with_bridge(bench, "mass", &bench.ours, list)?;
    let pods = crowd(bench, "mass", MASS)?;
    let samples: [_; 2] = rotate(MASS_ROUNDS, |side, _turn| {
        let (adds, results) = add_all(&network, &pods)?;
        ensure!(adds.failed == 0, "{} ADDs failed", adds.failed);
        if side == 0 {
            let dels = del_all(&network, &pods, &results)?;
            ensure!(dels.failed == 0, "{} DELs failed", dels.failed);
            return Ok(dels.total);
        }
        let costs = pods
            .iter()
            .zip(&results)
            .map(|(pod, result)| Ok(network.del(pod, result)?.wall));
        Ok(costs.collect::<Result<Vec<_>>>()?.iter().sum())
    })?;
    let [at_once, in_a_row] = samples.map(|totals: Vec<f64>| median(&totals));
    Ok(vec![
        Figure::new(
            "cni-mass-del",
            (at_once, "ms"),
            ("one after the other", in_a_row),
            Better::Lower,
        )
        .with_limit(Some(0.1)),
    ])
}

fn crowd(bench: &Bench<'_>, name: &str, count: usize) -> Result<Vec<Attachment>> {
    let netns = bench.site.netns_many(&format!("{name}-pod"), count)?;
    let pods = netns
        .iter()
        .enumerate()
        .map(|(number, netns)| attachment(&format!("bench-container-{number}"), netns));
    Ok(pods.collect())
}

/// A node whose bridge has many ports.
fn full_bridge(bench: &Bench<'_>, name: &str, plugins: &Path) -> Result<Network> {
    let network = Network::with_bridge(bench, name, plugins, [network::bridge()])?;
    fill(bench, name, &network.node)?;
    Ok(network)
}

fn fill(bench: &Bench<'_>, name: &str, node: &Path) -> Result<()> {
    bare::add_ports(bench, name, node, PORTS)?;
    // Links look for others with their IPv6 address, for a second or two.
    wait_until("IPv6 addresses of the ports", || {
        Ok(site::ip(node, "-6 -oneline address show tentative")?.is_empty())
    })
    .map(drop)
}
