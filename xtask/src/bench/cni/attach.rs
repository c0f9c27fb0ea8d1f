//! One container at a time: start-up, ADD, DEL.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    super::{Better, Figure},
    Bench,
    bare::Bare,
    call::{self, Attachment, Cost},
    middle,
    network::{self, Network, attachment, links},
    rotate, site,
};

const OURS: usize = 0;
const REFERENCE: usize = 1;
const BARE: usize = 2;
const REFERENCE_NAME: &str = "reference plugins";
const BARE_NAME: &str = "bare netlink calls";

fn ratio(
    id: &'static str,
    ours: f64,
    reference: (&'static str, f64),
    limit: Option<f64>,
) -> Figure {
    Figure::new(id, (ours, "ms"), reference, Better::Lower).with_limit(limit)
}

/// What a process costs before it does anything.
pub(super) fn version(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let node = bench.site.netns("version-node")?;
    let nobody = attachment("nobody", &node);
    let sides = [&bench.ours, &bench.reference];
    let samples: [_; 2] = rotate(bench.runs, |side, _turn| {
        let config = r#"{"cniVersion":"1.0.0"}"#;
        let call = call::prepare(sides[side], "bridge", "VERSION", &nobody, config)?;
        site::inside(&node, || call.run()).map(|(cost, _)| cost)
    })?;
    let [ours, reference] = samples.map(|costs| middle(&costs, |cost| cost.wall));
    Ok(vec![ratio(
        "cni-version",
        ours,
        (REFERENCE_NAME, reference),
        None,
    )])
}

/// The plugin with the least to do.
pub(super) fn loopback(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let list = || [json!({"type": "loopback"})];
    let sides = [
        Network::new(bench, "loopback-ours", &bench.ours, list())?,
        Network::new(bench, "loopback-reference", &bench.reference, list())?,
    ];
    let pods = bench.site.netns_many("loopback-pod", 2 * bench.runs)?;
    let samples: [_; 2] = rotate(bench.runs, |side, turn| {
        let pod = Attachment {
            ifname: "lo",
            ..attachment("loopback", &pods[2 * turn + side])
        };
        sides[side].add(&pod).map(|(cost, _)| cost)
    })?;
    let [ours, reference] = samples.map(|costs| middle(&costs, |cost| cost.wall));
    Ok(vec![ratio(
        "cni-loopback",
        ours,
        (REFERENCE_NAME, reference),
        None,
    )])
}

/// An ADD and the DEL after it.
struct Pair {
    add: Cost,
    del: Cost,
}

impl Pair {
    fn both(&self) -> Cost {
        self.add + self.del
    }
}

/// Bridge and host-local.
pub(super) fn bridge(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let networks = pair_of(bench, "bridge", || vec![network::bridge()])?;
    let bare = Bare::new(bench, "bare")?;
    let pods = bench.site.netns_many("bridge-pod", 3 * bench.runs)?;
    let before = [
        networks[0].links()?,
        networks[1].links()?,
        links(&bare.node)?,
    ];
    let samples: [_; 3] = rotate(bench.runs, |side, turn| {
        let pod = attachment(&format!("bench-container-{turn}"), &pods[3 * turn + side]);
        if side == BARE {
            let (add, del) = (bare.add(&pod, turn % 250)?, bare.del(turn % 250)?);
            Ok(Pair { add, del })
        } else {
            run(&networks[side], &pod)
        }
    })?;
    let after = [
        networks[0].links()?,
        networks[1].links()?,
        links(&bare.node)?,
    ];
    ensure!(
        before == after,
        "links are left: {before:?}, then {after:?}"
    );
    let [add, del] = [|pair: &Pair| pair.add.wall, |pair: &Pair| pair.del.wall]
        .map(|of| [OURS, REFERENCE, BARE].map(|side| middle(&samples[side], of)));
    let done = middle(&samples[OURS], |pair| pair.del.done);
    let cpu = [OURS, REFERENCE, BARE].map(|side| middle(&samples[side], |pair| pair.both().cpu));
    Ok(vec![
        ratio("cni-add", add[0], (REFERENCE_NAME, add[1]), Some(0.5)),
        ratio("cni-add/floor", add[0], (BARE_NAME, add[2]), Some(1.3)),
        ratio("cni-del", del[0], (REFERENCE_NAME, del[1]), Some(1.0)),
        ratio("cni-del/done", done, (REFERENCE_NAME, del[1]), None),
        ratio("cni-del/floor", del[0], (BARE_NAME, del[2]), Some(1.1)),
        ratio("cni-cpu", cpu[0], (REFERENCE_NAME, cpu[1]), Some(0.25)),
        ratio("cni-cpu/floor", cpu[0], (BARE_NAME, cpu[2]), None),
    ])
}

/// Bridge with masquerading.
pub(super) fn masquerade(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let ids = ["cni-masq", "cni-masq-add", "cni-masq-del"];
    chain(bench, "masq", ids, 0.45, || {
        vec![network::bridge_with_masquerade()]
    })
}

/// Bridge with masquerading, then a forwarded port.
pub(super) fn portmap(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let ids = ["cni-portmap", "cni-portmap-add", "cni-portmap-del"];
    chain(bench, "portmap", ids, 0.3, || {
        vec![network::bridge_with_masquerade(), network::portmap()]
    })
}

/// ADD and DEL together, which have the limit, and each alone, to see where it goes.
fn chain(
    bench: &Bench<'_>,
    name: &str,
    [both, add, del]: [&'static str; 3],
    limit: f64,
    list: impl Fn() -> Vec<Value>,
) -> Result<Vec<Figure>> {
    let networks = pair_of(bench, name, list)?;
    let pods = bench
        .site
        .netns_many(&format!("{name}-pod"), 2 * bench.runs)?;
    let before = [networks[0].links()?, networks[1].links()?];
    let samples: [_; 2] = rotate(bench.runs, |side, turn| {
        let pod = attachment(&format!("bench-container-{turn}"), &pods[2 * turn + side]);
        run(&networks[side], &pod)
    })?;
    let after = [networks[0].links()?, networks[1].links()?];
    ensure!(
        before == after,
        "links are left: {before:?}, then {after:?}"
    );
    let figure = |id, of: fn(&Pair) -> f64, limit| {
        let [ours, reference] = [OURS, REFERENCE].map(|side| middle(&samples[side], of));
        ratio(id, ours, (REFERENCE_NAME, reference), limit)
    };
    Ok(vec![
        figure(both, |pair| pair.both().wall, Some(limit)),
        figure(add, |pair| pair.add.wall, None),
        figure(del, |pair| pair.del.wall, None),
    ])
}

fn pair_of(bench: &Bench<'_>, name: &str, list: impl Fn() -> Vec<Value>) -> Result<[Network; 2]> {
    let ours = format!("{name}-ours");
    let reference = format!("{name}-reference");
    Ok([
        Network::with_bridge(bench, &ours, &bench.ours, list())?,
        Network::with_bridge(bench, &reference, &bench.reference, list())?,
    ])
}

fn run(network: &Network, pod: &Attachment) -> Result<Pair> {
    let (add, result) = network.add(pod)?;
    let del = network.del(pod, &result)?;
    Ok(Pair { add, del })
}
