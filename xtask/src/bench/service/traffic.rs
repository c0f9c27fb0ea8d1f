//! Connections, requests and streams: through a Service, direct, on a plain bridge, and translated packet by packet.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{Better, Figure, cpu},
    Bench, Show, median, rotate,
    scene::{Kind, SERVER, Scene, VIP, WAYS},
};

/// Connections in one run: more than half a second, for the kernel counts the machine's time in hundredths.
const CONNECTIONS: u64 = 10_000;
/// Requests in one run.
const REQUESTS: u64 = 30_000;
/// Length of a run that sends a stream, milliseconds.
const STREAM: u64 = 500;
/// How long the machine's own work is watched beforehand.
const IDLE: Duration = Duration::from_secs(2);
/// Among so many Services.
const COUNTS: [usize; 4] = [1, 1_000, 10_000, 50_000];
/// Among so many, we are compared with those who know no Service.
const COMPARED: usize = 10_000;

const DIRECT: &str = "direct to the pod";
const BARE: &str = "plain bridge, no Service";
const DNAT: &str = "one iptables DNAT rule";
const IPTABLES: &str = "our --proxy-mode=iptables";
/// Our iptables mode is compared among so many at most: more rules take minutes to write.
const RULES: usize = 10_000;

/// What one run cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Seconds.
    wall: f64,
    /// Seconds.
    busy: f64,
    /// Connections, requests or bytes.
    done: f64,
}

impl Cost {
    fn rate(&self) -> f64 {
        self.done / self.wall
    }

    /// Microseconds for each.
    fn cpu(&self) -> f64 {
        self.busy * 1e6 / self.done
    }
}

/// Who connects, and to which address.
#[derive(Clone, Copy)]
enum Side {
    Service,
    Direct,
    Bare,
    Dnat,
    Iptables,
}

struct Traffic {
    ours: Scene,
    bare: Scene,
    dnat: Scene,
    iptables: Scene,
    /// What the machine does anyway, seconds of CPU time in a second; none if only our processes' time counts.
    idle: Option<f64>,
    runs: usize,
}

pub(super) fn measure(bench: &Bench<'_>, show: Show<'_>) -> Result<()> {
    let mut traffic = Traffic {
        ours: Scene::new(bench, Kind::Ours)?,
        bare: Scene::new(bench, Kind::Bare)?,
        dnat: Scene::new(bench, Kind::Dnat)?,
        iptables: Scene::new(bench, Kind::Iptables)?,
        idle: None,
        runs: bench.runs,
    };
    if !bench.own_time {
        let before = cpu::busy_seconds()?;
        thread::sleep(IDLE);
        traffic.idle = Some((cpu::busy_seconds()? - before) / IDLE.as_secs_f64());
    }
    for count in COUNTS {
        traffic.ours.set_services(count)?;
        if count <= RULES {
            traffic.iptables.set_services(count)?;
        }
        connections(&mut traffic, count, show)?;
        if count == COMPARED {
            requests(&mut traffic, show)?;
            streams(&mut traffic, show)?;
        }
    }
    Ok(())
}

impl Traffic {
    fn run(&mut self, side: Side, verb: &str, amount: u64) -> Result<Cost> {
        let way = match verb {
            "connect" => 0,
            "ask" => 1,
            _ => 2,
        };
        let (scene, addr) = match side {
            Side::Service => (&mut self.ours, VIP),
            Side::Direct => (&mut self.ours, SERVER),
            Side::Bare => (&mut self.bare, SERVER),
            Side::Dnat => (&mut self.dnat, VIP),
            Side::Iptables => (&mut self.iptables, VIP),
        };
        let before = busy(scene, self.idle)?;
        let order = format!("{verb} {addr}:{} {amount}", WAYS[way].1);
        let answer = scene.client.tell(&order)?;
        let after = busy(scene, self.idle)?;
        let (wall, done) = answer.split_once(' ').context("half an answer")?;
        let (wall, done) = (wall.parse::<f64>()?, done.parse()?);
        let busy = after - before - self.idle.unwrap_or(0.0) * wall;
        Ok(Cost { wall, busy, done })
    }

    /// Rotated runs of each side, after one that is not counted.
    fn rotate<const SIDES: usize>(
        &mut self,
        sides: [Side; SIDES],
        verb: &str,
        amount: u64,
    ) -> Result<[Vec<Cost>; SIDES]> {
        for side in sides {
            self.run(side, verb, amount / 4)?;
        }
        rotate(self.runs, |side, _turn| self.run(sides[side], verb, amount))
    }
}

fn busy(scene: &Scene, idle: Option<f64>) -> Result<f64> {
    match idle {
        Some(_) => cpu::busy_seconds(),
        None => scene.busy_seconds(),
    }
}

fn middle(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    median(&costs.iter().map(of).collect::<Vec<_>>())
}

const PER_SECOND: (&str, f64) = ("1/s", 1.0);
const GIGABITS: (&str, f64) = ("Gbit/s", 8e-9);

fn rate(
    id: String,
    ours: &[Cost],
    (name, reference): (&'static str, &[Cost]),
    (unit, scale): (&'static str, f64),
) -> Figure {
    let [ours, reference] = [ours, reference].map(|costs| middle(costs, Cost::rate) * scale);
    Figure::new(id, (ours, unit), (name, reference), Better::Higher)
}

fn cpu_each(id: String, ours: &[Cost], (name, reference): (&'static str, &[Cost])) -> Figure {
    let reference = (name, middle(reference, Cost::cpu));
    let ours = (middle(ours, Cost::cpu), "us");
    Figure::new(id, ours, reference, Better::Lower)
}

fn connections(traffic: &mut Traffic, count: usize, show: Show<'_>) -> Result<()> {
    use Side::{Bare, Direct, Dnat, Iptables, Service};
    let id = |name: &str| format!("{name}@{count}");
    let (service, direct, rules) = if count == COMPARED {
        let sides = [Service, Direct, Iptables, Bare, Dnat];
        let [service, direct, rules, bare, dnat] = traffic.rotate(sides, "connect", CONNECTIONS)?;
        let bare = cpu_each(id("svc-conn-cpu/bare"), &service, (BARE, &bare));
        show(bare.with_limit(Some(0.97)))?;
        let dnat = cpu_each(id("svc-conn-cpu/dnat"), &service, (DNAT, &dnat));
        show(dnat.with_limit(Some(0.8)))?;
        (service, direct, Some(rules))
    } else if count <= RULES {
        let sides = [Service, Direct, Iptables];
        let [service, direct, rules] = traffic.rotate(sides, "connect", CONNECTIONS)?;
        (service, direct, Some(rules))
    } else {
        let sides = [Service, Direct];
        let [service, direct] = traffic.rotate(sides, "connect", CONNECTIONS)?;
        (service, direct, None)
    };
    let cps = rate(id("svc-cps"), &service, (DIRECT, &direct), PER_SECOND);
    show(cps.with_limit(Some(0.97)))?;
    let cpu = cpu_each(id("svc-conn-cpu"), &service, (DIRECT, &direct));
    show(cpu.with_limit(Some(1.03)))?;
    if let Some(rules) = rules {
        let rules = (IPTABLES, &*rules);
        show(rate(id("svc-cps/iptables"), &service, rules, PER_SECOND))?;
        show(cpu_each(id("svc-conn-cpu/iptables"), &service, rules))?;
    }
    Ok(())
}

fn requests(traffic: &mut Traffic, show: Show<'_>) -> Result<()> {
    let before = traffic.ours.direct_packets()?;
    let sides = [Side::Service, Side::Direct, Side::Bare, Side::Iptables];
    let [service, direct, bare, rules] = traffic.rotate(sides, "ask", REQUESTS)?;
    // What is said of the bridge holds only for packets that went around it.
    let around = traffic.ours.direct_packets()? - before;
    ensure!(around > REQUESTS, "only {around} packets went directly");
    let id = str::to_owned;
    let (direct, bare, rules) = ((DIRECT, &*direct), (BARE, &*bare), (IPTABLES, &*rules));
    show(rate(id("svc-rr"), &service, direct, PER_SECOND).with_limit(Some(0.99)))?;
    show(cpu_each(id("svc-rr-cpu"), &service, direct).with_limit(Some(1.02)))?;
    show(cpu_each(id("svc-rr-cpu/bare"), &service, bare).with_limit(Some(0.92)))?;
    show(rate(id("svc-rr/iptables"), &service, rules, PER_SECOND))?;
    show(cpu_each(id("svc-rr-cpu/iptables"), &service, rules))
}

fn streams(traffic: &mut Traffic, show: Show<'_>) -> Result<()> {
    let sides = [Side::Service, Side::Direct, Side::Iptables];
    let [service, direct, rules] = traffic.rotate(sides, "send", STREAM)?;
    let id = str::to_owned;
    let stream = rate(id("svc-stream"), &service, (DIRECT, &direct), GIGABITS);
    show(stream.with_limit(Some(0.99)))?;
    let rules = (IPTABLES, &*rules);
    show(rate(id("svc-stream/iptables"), &service, rules, GIGABITS))
}
