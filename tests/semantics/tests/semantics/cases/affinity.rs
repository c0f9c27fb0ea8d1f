//! `sessionAffinity: ClientIP`.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    proxy::Need,
    run::{Case, Play::Each},
    stage::{
        Front::{Balancer, External, NodePort, Vip},
        PATIENCE, PORT, Stage,
    },
    who::{
        Client::{self, Host, OtherOutside, OtherPod, Outside, Pod},
        Who::{self, B0, B1, B2, B3, R0},
        at,
    },
};

const fn case(name: &'static str, play: fn(&mut Stage<'_, '_>) -> Result<()>) -> Case {
    Case {
        name,
        needs: &[],
        play: Each(play),
    }
}

pub(crate) const CASES: &[Case] = &[
    case("a client sticks to its endpoint", sticks),
    case("affinity is each client's own", each_client),
    case(
        "affinity survives other endpoints' coming and going",
        survives,
    ),
    case("affinity lets go of an endpoint that is gone", lets_go),
    case("affinity lets go of an endpoint that gets unready", unready),
    case("affinity ends after its timeout", ends),
    case("affinity is renewed by use", renewed),
    case("affinity is switched on and off", switched),
    case("affinity holds for each port by itself", each_port),
    case("affinity holds at a NodePort", at_node_port),
    case("affinity holds at external addresses", at_external),
    case("affinity without endpoints refuses", without_endpoints),
    Case {
        name: "affinity of clients outside is each one's own",
        needs: &[Need::Outside],
        play: Each(outside),
    },
];

fn affinity(seconds: u32) -> Value {
    json!({
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    })
}

const FOUR: [crate::who::Ep; 4] = [at(B0), at(B1), at(B2), at(R0)];

fn pod_of(name: &str) -> Who {
    let all = [B0, B1, B2, B3];
    let found = all.into_iter().find(|who| name.starts_with(who.name()));
    found.unwrap_or(R0)
}

fn without(who: Who) -> Vec<crate::who::Ep> {
    let all = FOUR.into_iter();
    all.filter(|endpoint| endpoint.who != who).collect()
}

fn sticks(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"sessionAffinity": "ClientIP"}), &FOUR)?;
    let addr = stage.front(Vip);
    let first = stage.sticks(Pod, addr)?;
    ensure!(
        stage.sticks(Pod, addr)? == first,
        "another one the second time"
    );
    Ok(())
}

/// Three clients and four endpoints: in some of a few Services two of them have different ones.
fn each_client(stage: &mut Stage<'_, '_>) -> Result<()> {
    let clients = [Pod, OtherPod, Host];
    let mut all_alike = true;
    for n in 0..12 {
        let name = format!("web-{n}");
        let mut spec = affinity(600);
        spec["clusterIP"] = json!(stage.vip(n).to_string());
        stage.service(&name, spec)?;
        stage.endpoints(&name, &name, &FOUR)?;
        stage.settle()?;
        let addr = (stage.vip(n), PORT).into();
        let mut seen = BTreeSet::new();
        for client in clients {
            let first = stage.sticks(client, addr)?;
            ensure!(stage.sticks(client, addr)? == first, "{client:?} moved");
            seen.insert(first);
        }
        all_alike &= seen.len() == 1;
        if !all_alike {
            return Ok(());
        }
    }
    ensure!(!all_alike, "all clients always got the same endpoint");
    Ok(())
}

fn survives(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(affinity(600), &[at(B0), at(B1)])?;
    let addr = stage.front(Vip);
    let first = stage.sticks(Pod, addr)?;
    stage.endpoints("web-1", "web", &[at(B0), at(B1), at(B2), at(B3), at(R0)])?;
    stage.settle()?;
    ensure!(stage.sticks(Pod, addr)? == first, "moved when others came");
    stage.endpoints("web-1", "web", &[at(pod_of(&first)), at(R0)])?;
    stage.settle()?;
    ensure!(stage.sticks(Pod, addr)? == first, "moved when others went");
    Ok(())
}

fn lets_go(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(affinity(600), &FOUR)?;
    let addr = stage.front(Vip);
    let first = stage.sticks(Pod, addr)?;
    stage.endpoints("web-1", "web", &without(pod_of(&first)))?;
    stage.settle()?;
    let next = stage.sticks(Pod, addr)?;
    ensure!(next != first, "{next} is gone and answers");
    Ok(())
}

fn unready(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(affinity(600), &FOUR)?;
    let addr = stage.front(Vip);
    let first = stage.sticks(Pod, addr)?;
    let mut endpoints = without(pod_of(&first));
    endpoints.push(at(pod_of(&first)).unready());
    stage.endpoints("web-1", "web", &endpoints)?;
    stage.settle()?;
    let next = stage.sticks(Pod, addr)?;
    ensure!(next != first, "{next} is not ready and answers");
    Ok(())
}

/// What is tested is the passing of time itself.
fn ends(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(affinity(1), &FOUR)?;
    let addr = stage.front(Vip);
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 2 {
        ensure!(Instant::now() < deadline, "always {seen:?}");
        seen.extend(stage.one(Pod, addr, PATIENCE)?);
        thread::sleep(Duration::from_millis(2100));
    }
    Ok(())
}

/// Ten times within a quarter of the timeout each, for longer than it is.
fn renewed(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(affinity(4), &FOUR)?;
    let addr = stage.front(Vip);
    let first = stage.one(Pod, addr, PATIENCE)?;
    let mut last = Instant::now();
    for _ in 0..8 {
        thread::sleep(Duration::from_millis(700));
        let next = stage.one(Pod, addr, PATIENCE)?;
        // A machine that slept in between has tested nothing.
        if last.elapsed() < Duration::from_secs(3) {
            ensure!(next == first, "{next:?} after {first:?}");
        }
        last = Instant::now();
    }
    Ok(())
}

fn switched(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let addr = stage.front(Vip);
    stage.reaches(Pod, addr, &[B0, B1])?;
    stage.change("web", affinity(600))?;
    stage.settle()?;
    stage.sticks(Pod, addr)?;
    let none = json!({"sessionAffinity": "None", "sessionAffinityConfig": null});
    stage.change("web", none)?;
    stage.settle()?;
    stage.reaches(Pod, addr, &[B0, B1])?;
    Ok(())
}

fn each_port(stage: &mut Stage<'_, '_>) -> Result<()> {
    let mut spec = affinity(600);
    spec["ports"] = json!([stage.port("one", PORT), stage.port("two", PORT + 1)]);
    stage.service("web", spec)?;
    let protocol = stage.protocol();
    let targets = json!([
        {"name": "one", "port": 8080, "protocol": protocol},
        {"name": "two", "port": 8081, "protocol": protocol},
    ]);
    stage.slice("web-1", "web", targets, &FOUR)?;
    stage.settle()?;
    for port in [PORT, PORT + 1] {
        let addr = (stage.vip(0), port).into();
        let first = stage.sticks(Pod, addr)?;
        ensure!(stage.sticks(Pod, addr)? == first, "moved at port {port}");
    }
    Ok(())
}

fn twice(stage: &mut Stage<'_, '_>, client: Client, addr: std::net::SocketAddr) -> Result<()> {
    let first = stage.sticks(client, addr)?;
    ensure!(stage.sticks(client, addr)? == first, "moved at {addr}");
    Ok(())
}

fn at_node_port(stage: &mut Stage<'_, '_>) -> Result<()> {
    let mut spec = affinity(600);
    spec["type"] = json!("NodePort");
    stage.web(spec, &FOUR)?;
    let addr = stage.front(NodePort);
    twice(stage, Pod, addr)?;
    twice(stage, Host, addr)
}

fn at_external(stage: &mut Stage<'_, '_>) -> Result<()> {
    let mut spec = affinity(600);
    spec["type"] = json!("LoadBalancer");
    spec["externalIPs"] = json!([stage.external(0).to_string()]);
    stage.web(spec, &FOUR)?;
    for front in [External, Balancer] {
        let addr = stage.front(front);
        twice(stage, Pod, addr)?;
    }
    Ok(())
}

fn without_endpoints(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(affinity(600), &FOUR)?;
    let addr = stage.front(Vip);
    stage.sticks(Pod, addr)?;
    stage.endpoints("web-1", "web", &[])?;
    stage.settle()?;
    stage.check(Pod, Vip, crate::expect::Expect::Refused)
}

fn outside(stage: &mut Stage<'_, '_>) -> Result<()> {
    let mut spec = affinity(600);
    spec["type"] = json!("NodePort");
    stage.web(spec, &FOUR)?;
    let addr = stage.front(NodePort);
    twice(stage, Outside, addr)?;
    twice(stage, OtherOutside, addr)
}
