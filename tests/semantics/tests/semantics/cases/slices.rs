//! EndpointSlices: several of them, their ports, what does not count.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    api::Kind,
    expect::Expect::{Refused, To, Unanswered},
    run::{
        Case,
        Play::{Each, Once},
    },
    stage::{
        Front::{External, Vip},
        PATIENCE, PORT, Stage,
    },
    who::{
        Client::{Host, Pod},
        Family,
        Who::{B0, B1, B2, R0},
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
    case("endpoints of several slices are one set", several),
    case("a slice goes and the others stay", one_goes),
    case("an endpoint that is in two slices counts once", twice),
    case("an endpoint moves from one slice to another", moves),
    case("ports are found by their names", named_ports),
    case(
        "a named target port may differ between slices",
        named_target,
    ),
    case("a slice of another port's name does not count", other_name),
    case("a port of another protocol does not count", other_protocol),
    case("a slice without ports has no endpoints", without_ports),
    case("a port without a number has no endpoints", without_number),
    case("only an endpoint's first address is used", first_address),
    case("a slice of names does not count", names),
    case("a slice of the other family does not count", other_family),
    case(
        "a slice without its Service's label does not count",
        unlabelled,
    ),
    case("a slice of another Service does not count", of_another),
    case(
        "a Service without a selector has the endpoints that somebody writes",
        no_selector,
    ),
    case("a slice may come before its Service", before),
    case("a slice without endpoints counts as none", empty),
    case("several ports lead to several targets", several_ports),
    case("several ports may lead to one target", ports_to_one_target),
    case(
        "a port without endpoints refuses beside one with",
        one_port_refuses,
    ),
    case("endpoints may use ports of their own", different_ports),
    case("two Services may share their endpoints", shared_endpoints),
    case(
        "two Services claim one external IP: one has it, then the other",
        claimed_twice,
    ),
    Case {
        name: "one port for TCP and UDP at once",
        needs: &[],
        play: Once(both_protocols),
    },
];

fn several(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.endpoints("web-2", "web", &[at(B1), at(R0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, B1, R0]))
}

fn one_goes(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.endpoints("web-2", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, B1]))?;
    stage.delete(Kind::Slice, "web-1")?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))?;
    stage.delete(Kind::Slice, "web-2")?;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)
}

fn twice(stage: &mut Stage<'_, '_>) -> Result<()> {
    const TIMES: u32 = 900;
    stage.service("web", json!({}))?;
    stage.endpoints("web-1", "web", &[at(B0), at(B1)])?;
    stage.endpoints("web-2", "web", &[at(B0)])?;
    stage.settle()?;
    let addr = stage.front(Vip);
    let answer = stage.ask(Pod, addr, TIMES, PATIENCE)?;
    // Half of them, where twice as likely would be 600: each bound is five standard deviations away from either.
    let first = answer.names.get("b0:8080").copied().unwrap_or_default();
    ensure!(
        answer.total() == TIMES && (370..=525).contains(&first),
        "{answer:?}"
    );
    Ok(())
}

fn moves(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    stage.endpoints("web-1", "web", &[at(B0), at(B1)])?;
    stage.settle()?;
    stage.endpoints("web-2", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, B1]))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, B1]))
}

/// `[{"name": NAME, "port": NUMBER, "protocol": the case's}, ...]`
fn ports(stage: &Stage<'_, '_>, all: &[(&str, u16)]) -> serde_json::Value {
    let port = |(name, port): &(&str, u16)| {
        let protocol = stage.protocol();
        json!({"name": name, "port": port, "protocol": protocol})
    };
    all.iter().map(port).collect()
}

fn named_ports(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [stage.port("one", PORT), stage.port("two", PORT + 1)];
    stage.service("web", json!({"ports": all}))?;
    // In another order than the Service's.
    let targets = ports(stage, &[("two", 8081), ("one", 8080)]);
    stage.slice("web-1", "web", targets, &[at(B0), at(B1)])?;
    stage.settle()?;
    let vip = stage.vip(0);
    stage.reaches_names(Pod, (vip, PORT).into(), &["b0:8080", "b1:8080"])?;
    stage.reaches_names(Pod, (vip, PORT + 1).into(), &["b0:8081", "b1:8081"])?;
    Ok(())
}

fn named_target(stage: &mut Stage<'_, '_>) -> Result<()> {
    let mut port = stage.port("web", PORT);
    port["targetPort"] = json!("http");
    stage.service("web", json!({"ports": [port]}))?;
    let (old, new) = (
        ports(stage, &[("web", 8080)]),
        ports(stage, &[("web", 8081)]),
    );
    stage.slice("web-1", "web", old, &[at(B0)])?;
    stage.slice("web-2", "web", new, &[at(B1)])?;
    stage.settle()?;
    let addr = stage.front(Vip);
    stage
        .reaches_names(Pod, addr, &["b0:8080", "b1:8081"])
        .map(drop)
}

fn other_name(stage: &mut Stage<'_, '_>) -> Result<()> {
    let port = stage.port("one", PORT);
    stage.service("web", json!({"ports": [port]}))?;
    let (right, wrong) = (
        ports(stage, &[("one", 8080)]),
        ports(stage, &[("two", 8081)]),
    );
    stage.slice("web-1", "web", right, &[at(B0)])?;
    stage.slice("web-2", "web", wrong, &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn other_protocol(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let other = if stage.protocol() == "TCP" {
        "UDP"
    } else {
        "TCP"
    };
    let targets = json!([{"port": 8080, "protocol": other}]);
    stage.slice("web-1", "web", targets, &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)
}

fn without_ports(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    stage.slice("web-1", "web", json!([]), &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)
}

fn without_number(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let targets = json!([{"name": "", "protocol": stage.protocol()}]);
    stage.slice("web-1", "web", targets, &[at(B0)])?;
    stage.endpoints("web-2", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))
}

fn first_address(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let mut slice = stage.slice_of("web-1", "web", &[at(B0)]);
    let all = [B0, B1].map(|who| who.address(stage.family).to_string());
    slice["endpoints"][0]["addresses"] = json!(all);
    stage.put_slice("web-1", slice)?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn names(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let mut slice = stage.slice_of("web-1", "web", &[at(B0)]);
    slice["addressType"] = json!("FQDN");
    slice["endpoints"][0]["addresses"] = json!(["web.example.org"]);
    stage.put_slice("web-1", slice)?;
    stage.endpoints("web-2", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))
}

fn other_family(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    stage.family = Family::V6;
    stage.endpoints("web-6", "web", &[at(B0)])?;
    stage.family = Family::V4;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)?;
    stage.endpoints("web-4", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))
}

fn unlabelled(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let mut slice = stage.slice_of("web-1", "web", &[at(B0)]);
    slice["metadata"]["labels"] = json!({});
    stage.put_slice("web-1", slice)?;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)
}

fn of_another(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    stage.endpoints("web-1", "other", &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)
}

fn no_selector(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({"selector": null}))?;
    let mut slice = stage.slice_of("by-hand", "web", &[at(R0).nowhere()]);
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "web"});
    stage.put_slice("by-hand", slice)?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[R0]))?;
    stage.check(Host, Vip, To(&[R0]))
}

fn before(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, Unanswered)?;
    stage.service("web", json!({}))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn empty(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[])?;
    stage.check(Pod, Vip, Refused)?;
    stage.endpoints("web-2", "web", &[at(B2)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B2]))
}

fn several_ports(stage: &mut Stage<'_, '_>) -> Result<()> {
    let names = ["one", "two", "three"];
    let all: Vec<_> = names
        .iter()
        .zip(PORT..)
        .map(|(name, port)| stage.port(name, port))
        .collect();
    stage.service("web", json!({"ports": all}))?;
    let targets = ports(stage, &[("one", 8080), ("two", 8081), ("three", 9090)]);
    stage.slice("web-1", "web", targets, &[at(B0)])?;
    stage.settle()?;
    for (port, target) in (PORT..).zip([8080, 8081, 9090]) {
        let addr = (stage.vip(0), port).into();
        stage.reaches_names(Pod, addr, &[&B0.on(target)])?;
    }
    Ok(())
}

fn ports_to_one_target(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [stage.port("one", PORT), stage.port("two", 443)];
    stage.service("web", json!({"ports": all}))?;
    let targets = ports(stage, &[("one", 8080), ("two", 8080)]);
    stage.slice("web-1", "web", targets, &[at(B0), at(B1)])?;
    stage.settle()?;
    for port in [PORT, 443] {
        stage.expect(Pod, (stage.vip(0), port).into(), To(&[B0, B1]))?;
    }
    Ok(())
}

fn one_port_refuses(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [stage.port("one", PORT), stage.port("two", PORT + 1)];
    stage.service("web", json!({"ports": all}))?;
    let targets = ports(stage, &[("one", 8080)]);
    stage.slice("web-1", "web", targets, &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.expect(Pod, (stage.vip(0), PORT + 1).into(), Refused)
}

fn different_ports(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let protocol = stage.protocol();
    for (name, port, who) in [
        ("web-1", 8080, B0),
        ("web-2", 8081, B0),
        ("web-3", 9090, R0),
    ] {
        let targets = json!([{"port": port, "protocol": protocol}]);
        stage.slice(name, "web", targets, &[at(who)])?;
    }
    stage.settle()?;
    let addr = stage.front(Vip);
    stage
        .reaches_names(Pod, addr, &["b0:8080", "b0:8081", "r0:9090"])
        .map(drop)
}

fn shared_endpoints(stage: &mut Stage<'_, '_>) -> Result<()> {
    let second = (stage.vip(1), PORT).into();
    stage.service("other", json!({"clusterIP": stage.vip(1).to_string()}))?;
    stage.endpoints("other-1", "other", &[at(B0)])?;
    stage.web(json!({}), &[at(B0), at(B1)])?;
    stage.check(Pod, Vip, To(&[B0, B1]))?;
    stage.expect(Pod, second, To(&[B0]))?;
    stage.delete(Kind::Service, "web")?;
    stage.settle()?;
    stage.expect(Pod, second, To(&[B0]))
}

/// Which one has it is not documented; that it is one of them, and afterwards the other, is.
fn claimed_twice(stage: &mut Stage<'_, '_>) -> Result<()> {
    let external = stage.external(0).to_string();
    stage.service("web", json!({"externalIPs": [external]}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    let spec = json!({"externalIPs": [external], "clusterIP": stage.vip(1).to_string()});
    stage.service("other", spec)?;
    stage.endpoints("other-1", "other", &[at(B1)])?;
    stage.settle()?;
    let addr = stage.front(External);
    let has = stage.sticks(Pod, addr)?;
    let (goes, stays) = if has == "b0:8080" {
        ("web", [B1])
    } else {
        ("other", [B0])
    };
    stage.delete(Kind::Service, goes)?;
    stage.settle()?;
    let left = stage.sticks(Pod, addr)?;
    ensure!(
        left == stays[0].on(8080),
        "{left} answers instead of {stays:?}"
    );
    Ok(())
}

fn both_protocols(stage: &mut Stage<'_, '_>) -> Result<()> {
    use skiff_test_harness::probe::protocol::How;
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol});
    let all = [port("dns", "UDP"), port("dns-tcp", "TCP")];
    stage.service("dns", json!({"ports": all}))?;
    let targets = json!([
        {"name": "dns", "port": 8080, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 8081, "protocol": "TCP"},
    ]);
    stage.slice("dns-1", "dns", targets, &[at(B0), at(B1)])?;
    stage.settle()?;
    let addr = (stage.vip(0), 53).into();
    stage.reaches_names(Pod, addr, &["b0:8081", "b1:8081"])?;
    stage.how = How::Udp;
    stage.reaches_names(Pod, addr, &["b0:8080", "b1:8080"])?;
    Ok(())
}
