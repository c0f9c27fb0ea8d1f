//! Flows without connections: they follow their Service.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use skiff_test_harness::probe::protocol::{Command, How};

use crate::{
    api::Kind,
    proxy::Need,
    run::{Case, Play::Once},
    stage::{
        Front::{NodePort, Vip},
        PATIENCE, PORT, SILENCE, Stage,
    },
    who::{
        Client::{Host, Pod},
        Who::{B0, B1, R0},
        at,
    },
};

const fn case(
    name: &'static str,
    needs: &'static [Need],
    play: fn(&mut Stage<'_, '_>) -> Result<()>,
) -> Case {
    Case {
        name,
        needs,
        play: Once(play),
    }
}

pub(crate) const CASES: &[Case] = &[
    case("a UDP flow stays with its endpoint", &[], stays),
    case(
        "a UDP flow stays when other endpoints come",
        &[],
        stays_beside,
    ),
    case("a UDP flow leaves a removed endpoint", &[], leaves),
    case(
        "a UDP flow leaves a removed endpoint at a NodePort",
        &[],
        leaves_at_node_port,
    ),
    case(
        "a UDP flow finds the endpoint that comes after none",
        &[],
        after_none,
    ),
    case(
        "a UDP flow that began before its Service finds it",
        &[],
        early,
    ),
    case(
        "a UDP flow of the node that began before its Service finds it",
        &[],
        early_of_host,
    ),
    case("a deleted Service's UDP flow does not go on", &[], deleted),
    case("a UDP flow follows its Service to a new one", &[], anew),
    case("one UDP socket talks to several Services", &[], several),
    case(
        "one UDP socket talks to a Service and to a pod",
        &[],
        beside_direct,
    ),
    case(
        "a connected UDP socket stays with its endpoint",
        &[],
        connected_stays,
    ),
    case(
        "a connected UDP socket leaves a removed endpoint",
        &[],
        connected_leaves,
    ),
    case(
        "a connected UDP socket of a deleted Service does not go on",
        &[],
        connected_deleted,
    ),
    case(
        "a connected UDP socket that was before its Service finds it",
        &[Need::EarlyUdp],
        connected_early,
    ),
];

/// Opens socket 1 of `client` and says who answers.
fn open(stage: &mut Stage<'_, '_>, client: crate::who::Client) -> Result<String> {
    let addr = stage.front(Vip);
    stage.dial(client, 1, addr)?;
    stage.hears(client, 1)
}

/// Asks again and again on socket 1 until somebody answers; what was open is closed and opened again after an error, as
/// programs do.
fn finds(stage: &mut Stage<'_, '_>, client: crate::who::Client) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = stage.say(client, 1, SILENCE)?;
        if let Some(name) = answer.names.into_keys().next() {
            return Ok(name);
        }
        ensure!(Instant::now() < deadline, "nobody: {:?}", answer.errors);
        let silent = answer.errors.keys().all(|errno| *errno == 110);
        if !silent {
            let addr = stage.front(Vip);
            stage.dial(client, 1, addr)?;
        }
    }
}

fn unconnected(stage: &mut Stage<'_, '_>) {
    stage.how = How::UdpUnconnected;
}

fn stays(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let name = open(stage, Pod)?;
    for _ in 0..20 {
        ensure!(stage.hears(Pod, 1)? == name, "moved from {name}");
    }
    Ok(())
}

fn stays_beside(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[at(B0)])?;
    let name = open(stage, Pod)?;
    stage.endpoints("web-1", "web", &[at(B0), at(B1), at(R0)])?;
    stage.settle()?;
    for _ in 0..20 {
        ensure!(stage.hears(Pod, 1)? == name, "moved from {name}");
    }
    Ok(())
}

fn leaves(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[at(B0)])?;
    ensure!(open(stage, Pod)? == "b0:8080");
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.settle()?;
    moved_on(stage)
}

/// The proxy may forget flows a moment after its rules have changed.
fn moved_on(stage: &mut Stage<'_, '_>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while finds(stage, Pod)? != "b1:8080" {
        ensure!(Instant::now() < deadline, "the old endpoint answers");
    }
    for _ in 0..5 {
        let name = finds(stage, Pod)?;
        ensure!(name == "b1:8080", "{name} answers again");
    }
    Ok(())
}

fn leaves_at_node_port(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    let addr = stage.front(NodePort);
    stage.dial(Pod, 1, addr)?;
    ensure!(stage.hears(Pod, 1)? == "b0:8080");
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.settle()?;
    moved_on(stage)
}

fn after_none(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[])?;
    let addr = stage.front(Vip);
    stage.dial(Pod, 1, addr)?;
    let answer = stage.say(Pod, 1, SILENCE)?;
    ensure!(answer.names.is_empty(), "{answer:?}");
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.settle()?;
    finds(stage, Pod).map(drop)
}

fn begins_early(stage: &mut Stage<'_, '_>, client: crate::who::Client) -> Result<()> {
    let addr = stage.front(Vip);
    stage.dial(client, 1, addr)?;
    for _ in 0..2 {
        let answer = stage.say(client, 1, SILENCE)?;
        ensure!(answer.names.is_empty(), "{answer:?}");
    }
    stage.web(json!({}), &[at(B0)])?;
    finds(stage, client).map(drop)
}

fn early(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    begins_early(stage, Pod)
}

fn early_of_host(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    begins_early(stage, Host)
}

/// Asks until nobody answers.
fn falls_silent(stage: &mut Stage<'_, '_>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = stage.say(Pod, 1, SILENCE)?;
        if answer.names.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "goes on: {answer:?}");
    }
    let answer = stage.say(Pod, 1, SILENCE)?;
    ensure!(answer.names.is_empty(), "again: {answer:?}");
    Ok(())
}

fn deleted(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[at(B0)])?;
    open(stage, Pod)?;
    stage.delete(Kind::Service, "web")?;
    stage.settle()?;
    falls_silent(stage)
}

fn anew(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[at(B0)])?;
    open(stage, Pod)?;
    stage.delete(Kind::Service, "web")?;
    stage.settle()?;
    falls_silent(stage)?;
    stage.service("other", json!({}))?;
    stage.endpoints("other-1", "other", &[at(B1)])?;
    stage.settle()?;
    moved_on(stage)
}

fn several(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    let second = stage.vip(1);
    stage.service("other", json!({"clusterIP": second.to_string()}))?;
    stage.endpoints("other-1", "other", &[at(B1)])?;
    stage.web(json!({}), &[at(B0)])?;
    talks_to(stage, vec![stage.front(Vip), (second, PORT).into()])
}

fn beside_direct(stage: &mut Stage<'_, '_>) -> Result<()> {
    unconnected(stage);
    stage.web(json!({}), &[at(B0)])?;
    let direct = (B1.address(stage.family), 8080).into();
    talks_to(stage, vec![stage.front(Vip), direct])
}

/// From one socket to both of these, the first of which is b0 and the second b1.
fn talks_to(stage: &mut Stage<'_, '_>, addrs: Vec<std::net::SocketAddr>) -> Result<()> {
    let peers: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let answer = stage.tell(Pod, &Command::UdpUnconnected { addrs, times: 10 })?;
    let ten = |name: &str| answer.names.get(name) == Some(&10);
    ensure!(ten("b0:8080") && ten("b1:8080"), "{answer:?}");
    ensure!(
        peers.iter().all(|peer| answer.peers.get(peer) == Some(&10)),
        "{answer:?}"
    );
    Ok(())
}

fn connected_stays(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.how = How::Udp;
    stage.web(json!({}), &[at(B0)])?;
    let name = open(stage, Pod)?;
    stage.endpoints("web-1", "web", &[at(B0), at(B1)])?;
    stage.settle()?;
    for _ in 0..10 {
        ensure!(stage.hears(Pod, 1)? == name, "moved from {name}");
    }
    Ok(())
}

fn connected_leaves(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.how = How::Udp;
    stage.web(json!({}), &[at(B0)])?;
    ensure!(open(stage, Pod)? == "b0:8080");
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.settle()?;
    moved_on(stage)
}

fn connected_deleted(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.how = How::Udp;
    stage.web(json!({}), &[at(B0)])?;
    open(stage, Pod)?;
    stage.delete(Kind::Service, "web")?;
    stage.settle()?;
    falls_silent(stage)
}

fn connected_early(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.how = How::Udp;
    begins_early(stage, Pod)
}
