//! The proxy ends, by whatever means, and comes back: Services go on meanwhile and are right afterwards.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use skiff_test_harness::probe::protocol::Command;

use crate::{
    api::Kind,
    expect::Expect::{Refused, To, Unanswered},
    proxy::Proxy,
    run::{Case, Play::Alone},
    stage::{
        Front::{NodePort, Vip},
        Stage,
    },
    who::{
        Client::{Host, Pod},
        Who::{B0, B1, B2, R0},
        at,
    },
};

const fn case(name: &'static str, play: fn(&mut Stage<'_, '_>) -> Result<()>) -> Case {
    Case {
        name,
        needs: &[],
        play: Alone(play),
    }
}

pub(crate) const CASES: &[Case] = &[
    case("Services go on while the proxy is dead", goes_on),
    case(
        "Services go on after the proxy was told to end",
        told_to_end,
    ),
    case(
        "no connection fails while the proxy is killed and started again",
        load,
    ),
    case("a connection outlives the proxy", connection),
    case("affinity outlives the proxy", affinity),
    case("changes that were missed are made up for", missed),
    case(
        "a Service that was deleted meanwhile is gone afterwards",
        deleted_meanwhile,
    ),
];

fn kill(stage: &mut Stage<'_, '_>, signal: Signal) -> Result<()> {
    proxy(stage)?.end(signal)
}

fn again(stage: &mut Stage<'_, '_>) -> Result<()> {
    proxy(stage)?.again()?;
    stage.settle()
}

fn proxy<'a>(stage: &'a mut Stage<'_, '_>) -> Result<&'a mut Proxy> {
    stage.proxy.as_deref_mut().context("not alone")
}

fn dead_and_back(stage: &mut Stage<'_, '_>, signal: Signal) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0), at(R0)])?;
    stage.check(Pod, Vip, To(&[B0, R0]))?;
    kill(stage, signal)?;
    for client in [Pod, Host] {
        stage.check(client, Vip, To(&[B0, R0]))?;
        stage.check(client, NodePort, To(&[B0, R0]))?;
    }
    again(stage)?;
    stage.check(Pod, Vip, To(&[B0, R0]))
}

fn goes_on(stage: &mut Stage<'_, '_>) -> Result<()> {
    dead_and_back(stage, Signal::SIGKILL)
}

fn told_to_end(stage: &mut Stage<'_, '_>) -> Result<()> {
    dead_and_back(stage, Signal::SIGTERM)
}

fn load(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let addr = stage.front(Vip);
    stage.tell(Pod, &Command::StartLoad { addr })?;
    for _ in 0..3 {
        kill(stage, Signal::SIGKILL)?;
        again(stage)?;
    }
    let answer = stage.tell(Pod, &Command::StopLoad)?;
    let names: Vec<&str> = answer.names.keys().map(String::as_str).collect();
    ensure!(
        answer.errors.is_empty() && names == ["b0:8080", "b1:8080"],
        "{answer:?}"
    );
    Ok(())
}

fn connection(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let addr = stage.front(Vip);
    stage.dial(Pod, 1, addr)?;
    let name = stage.hears(Pod, 1)?;
    kill(stage, Signal::SIGKILL)?;
    ensure!(stage.hears(Pod, 1)? == name);
    again(stage)?;
    ensure!(stage.hears(Pod, 1)? == name);
    stage.tell(Pod, &Command::Close { id: 1 })?;
    Ok(())
}

fn affinity(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [at(B0), at(B1), at(B2), at(R0)];
    stage.web(json!({"sessionAffinity": "ClientIP"}), &all)?;
    let addr = stage.front(Vip);
    let name = stage.sticks(Pod, addr)?;
    kill(stage, Signal::SIGKILL)?;
    ensure!(stage.sticks(Pod, addr)? == name, "moved while it was dead");
    again(stage)?;
    ensure!(stage.sticks(Pod, addr)? == name, "moved after it came back");
    Ok(())
}

fn missed(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    kill(stage, Signal::SIGKILL)?;
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.service("new", json!({"clusterIP": stage.vip(1).to_string()}))?;
    again(stage)?;
    stage.check(Pod, Vip, To(&[B1]))?;
    stage.expect(Pod, (stage.vip(1), 80).into(), Refused)
}

fn deleted_meanwhile(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    kill(stage, Signal::SIGKILL)?;
    stage.delete(Kind::Service, "web")?;
    again(stage)?;
    stage.check(Pod, Vip, Unanswered)?;
    stage.check(Host, NodePort, Unanswered)
}
