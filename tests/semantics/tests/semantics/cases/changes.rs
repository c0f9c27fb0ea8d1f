//! Endpoints and frontends that come, go and are replaced, with connections open.

use anyhow::{Result, ensure};
use serde_json::json;
use skiff_test_harness::probe::protocol::Command;

use crate::{
    api::Kind,
    expect::Expect::{Refused, To, Unanswered},
    run::{
        Case,
        Play::{Each, Once},
    },
    stage::{
        Front::{External, NodePort, Vip},
        PORT, Stage,
    },
    who::{
        Client::{Host, Pod},
        Who::{B0, B1, B2, B3, R0},
        at,
    },
};

const fn each(name: &'static str, play: fn(&mut Stage<'_, '_>) -> Result<()>) -> Case {
    Case {
        name,
        needs: &[],
        play: Each(play),
    }
}

const fn once(name: &'static str, play: fn(&mut Stage<'_, '_>) -> Result<()>) -> Case {
    Case {
        name,
        needs: &[],
        play: Once(play),
    }
}

pub(crate) const CASES: &[Case] = &[
    each("the first endpoint ends the refusal", first_endpoint),
    each("the last endpoint's end begins it", last_endpoint),
    each("endpoints come one after the other", grow),
    each("endpoints go one after the other", shrink),
    each("all endpoints are replaced at once", replaced),
    each("a Service's port changes", port_changes),
    each("a Service's target changes", target_changes),
    each("a NodePort changes", node_port_changes),
    each("an external IP changes", external_changes),
    each("a port is added and removed", port_added),
    each("ports exchange their targets", ports_exchanged),
    each(
        "a change back and forth ends where it should",
        back_and_forth,
    ),
    once(
        "a connection stays while other endpoints come and go",
        connection_stays,
    ),
    once(
        "a connection stays while its endpoint drains",
        connection_drains,
    ),
    once(
        "a connection stays when its endpoint is removed",
        connection_of_removed,
    ),
    once(
        "a connection stays when its Service is deleted",
        connection_of_deleted,
    ),
    once(
        "a connection through a NodePort stays",
        connection_by_node_port,
    ),
    once(
        "no connection fails while endpoints are exchanged",
        load_during_exchange,
    ),
    once(
        "no connection fails while other Services come and go",
        load_beside_others,
    ),
];

fn first_endpoint(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[])?;
    for front in [Vip, NodePort] {
        stage.check(Pod, front, Refused)?;
    }
    stage.endpoints("web-1", "web", &[at(R0)])?;
    stage.settle()?;
    for front in [Vip, NodePort] {
        stage.check(Pod, front, To(&[R0]))?;
    }
    Ok(())
}

fn last_endpoint(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.endpoints("web-1", "web", &[])?;
    stage.settle()?;
    for front in [Vip, NodePort] {
        stage.check(Pod, front, Refused)?;
        stage.check(Host, front, Refused)?;
    }
    Ok(())
}

fn grow(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [at(B0), at(B1), at(B2), at(B3)];
    stage.web(json!({}), &all[..1])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    for (count, seen) in [
        (2, To(&[B0, B1])),
        (3, To(&[B0, B1, B2])),
        (4, To(&[B0, B1, B2, B3])),
    ] {
        stage.endpoints("web-1", "web", &all[..count])?;
        stage.settle()?;
        stage.check(Pod, Vip, seen)?;
    }
    Ok(())
}

fn shrink(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [at(B0), at(B1), at(B2), at(B3)];
    stage.web(json!({}), &all)?;
    stage.check(Pod, Vip, To(&[B0, B1, B2, B3]))?;
    for (first, seen) in [(1, To(&[B1, B2, B3])), (2, To(&[B2, B3])), (3, To(&[B3]))] {
        stage.endpoints("web-1", "web", &all[first..])?;
        stage.settle()?;
        stage.check(Pod, Vip, seen)?;
    }
    Ok(())
}

fn replaced(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0), at(B1)])?;
    stage.check(Pod, Vip, To(&[B0, B1]))?;
    stage.endpoints("web-1", "web", &[at(B2), at(R0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B2, R0]))?;
    stage.check(Host, NodePort, To(&[B2, R0]))
}

fn port_changes(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    let port = stage.port("", 443);
    stage.change("web", json!({"ports": [port]}))?;
    stage.settle()?;
    stage.expect(Pod, (stage.vip(0), 443).into(), To(&[B0]))?;
    stage.check(Pod, Vip, Unanswered)
}

fn target_changes(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    let addr = stage.front(Vip);
    stage.reaches_names(Pod, addr, &["b0:8080"])?;
    let targets = json!([{"port": 8081, "protocol": stage.protocol()}]);
    stage.slice("web-1", "web", targets, &[at(B0)])?;
    stage.settle()?;
    stage.reaches_names(Pod, addr, &["b0:8081"])?;
    Ok(())
}

fn node_port_changes(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    stage.check(Pod, NodePort, To(&[B0]))?;
    let mut port = stage.port("", PORT);
    port["nodePort"] = json!(stage.node_port(1));
    stage.change("web", json!({"ports": [port]}))?;
    stage.settle()?;
    let node = crate::who::node_address(stage.family);
    stage.expect(Pod, (node, stage.node_port(1)).into(), To(&[B0]))?;
    stage.check(Pod, NodePort, Unanswered)
}

fn external_changes(stage: &mut Stage<'_, '_>) -> Result<()> {
    let texts = [stage.external(0), stage.external(1)].map(|address| address.to_string());
    stage.web(json!({"externalIPs": [texts[0]]}), &[at(B0)])?;
    stage.check(Pod, External, To(&[B0]))?;
    stage.change("web", json!({"externalIPs": [texts[1]]}))?;
    stage.settle()?;
    stage.expect(Pod, (stage.external(1), PORT).into(), To(&[B0]))?;
    stage.check(Pod, External, Unanswered)?;
    stage.change("web", json!({"externalIPs": null}))?;
    stage.settle()?;
    stage.expect(Pod, (stage.external(1), PORT).into(), Unanswered)
}

fn port_added(stage: &mut Stage<'_, '_>) -> Result<()> {
    let (one, two) = (stage.port("one", PORT), stage.port("two", PORT + 1));
    stage.service("web", json!({"ports": [one]}))?;
    let protocol = stage.protocol();
    let targets = json!([
        {"name": "one", "port": 8080, "protocol": protocol},
        {"name": "two", "port": 8080, "protocol": protocol},
    ]);
    stage.slice("web-1", "web", targets, &[at(B0)])?;
    stage.settle()?;
    let second = (stage.vip(0), PORT + 1).into();
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.expect(Pod, second, Unanswered)?;
    stage.change("web", json!({"ports": [one, two]}))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.expect(Pod, second, To(&[B0]))?;
    stage.change("web", json!({"ports": [two]}))?;
    stage.settle()?;
    stage.check(Pod, Vip, Unanswered)?;
    stage.expect(Pod, second, To(&[B0]))
}

fn ports_exchanged(stage: &mut Stage<'_, '_>) -> Result<()> {
    let protocol = stage.protocol();
    let targets = |one: u16, two: u16| {
        json!([
            {"name": "one", "port": one, "protocol": protocol},
            {"name": "two", "port": two, "protocol": protocol},
        ])
    };
    let all = [stage.port("one", PORT), stage.port("two", PORT + 1)];
    stage.service("web", json!({"ports": all}))?;
    let vip = stage.vip(0);
    for (one, two) in [(8080, 8081), (8081, 8080)] {
        stage.slice("web-1", "web", targets(one, two), &[at(B0)])?;
        stage.settle()?;
        stage.reaches_names(Pod, (vip, PORT).into(), &[&B0.on(one)])?;
        stage.reaches_names(Pod, (vip, PORT + 1).into(), &[&B0.on(two)])?;
    }
    Ok(())
}

fn back_and_forth(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    for _ in 0..5 {
        stage.endpoints("web-1", "web", &[at(B1)])?;
        stage.endpoints("web-1", "web", &[])?;
        stage.endpoints("web-1", "web", &[at(B0), at(B2)])?;
    }
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, B2]))
}

/// Opens a connection and says to whom.
fn open(stage: &mut Stage<'_, '_>, addr: std::net::SocketAddr) -> Result<String> {
    let opened = stage.dial(Pod, 1, addr)?;
    ensure!(opened.errors.is_empty(), "{opened:?}");
    stage.hears(Pod, 1)
}

fn still(stage: &mut Stage<'_, '_>, name: &str) -> Result<()> {
    let now = stage.hears(Pod, 1)?;
    ensure!(now == name, "{now} answers on {name}'s connection");
    Ok(())
}

fn close(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.tell(Pod, &Command::Close { id: 1 }).map(drop)
}

fn connection_stays(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    let addr = stage.front(Vip);
    let name = open(stage, addr)?;
    for others in [&[at(B0), at(B1), at(B2)][..], &[at(R0), at(B0)], &[at(B0)]] {
        stage.endpoints("web-1", "web", others)?;
        stage.settle()?;
        still(stage, &name)?;
    }
    close(stage)
}

fn connection_drains(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    let addr = stage.front(Vip);
    let name = open(stage, addr)?;
    stage.endpoints("web-1", "web", &[at(B0).draining(), at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))?;
    still(stage, &name)?;
    close(stage)
}

fn connection_of_removed(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    let addr = stage.front(Vip);
    let name = open(stage, addr)?;
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))?;
    still(stage, &name)?;
    close(stage)
}

fn connection_of_deleted(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    let addr = stage.front(Vip);
    let name = open(stage, addr)?;
    stage.delete(Kind::Service, "web")?;
    stage.settle()?;
    stage.check(Pod, Vip, Unanswered)?;
    still(stage, &name)?;
    close(stage)
}

fn connection_by_node_port(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    let addr = stage.front(NodePort);
    let name = open(stage, addr)?;
    stage.endpoints("web-1", "web", &[at(B0), at(R0)])?;
    stage.settle()?;
    still(stage, &name)?;
    close(stage)
}

fn load_during_exchange(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let addr = stage.front(Vip);
    stage.tell(Pod, &Command::StartLoad { addr })?;
    for _ in 0..6 {
        for endpoints in [[at(B2), at(B3)], [at(B0), at(B1)], [at(B1), at(R0)]] {
            stage.endpoints("web-1", "web", &endpoints)?;
            stage.settle()?;
        }
    }
    let answer = stage.tell(Pod, &Command::StopLoad)?;
    ensure!(answer.errors.is_empty() && answer.total() > 0, "{answer:?}");
    Ok(())
}

fn load_beside_others(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let addr = stage.front(Vip);
    stage.tell(Pod, &Command::StartLoad { addr })?;
    for n in 1..9 {
        let name = format!("other-{n}");
        stage.service(&name, json!({"clusterIP": stage.vip(n).to_string()}))?;
        stage.endpoints(&name, &name, &[at(B2)])?;
        stage.settle()?;
        stage.delete(Kind::Service, &name)?;
    }
    stage.settle()?;
    let answer = stage.tell(Pod, &Command::StopLoad)?;
    let names: Vec<&str> = answer.names.keys().map(String::as_str).collect();
    ensure!(
        answer.errors.is_empty() && names == ["b0:8080", "b1:8080"],
        "{answer:?}"
    );
    Ok(())
}
