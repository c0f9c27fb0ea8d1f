//! Kinds of Service that have frontends, or none, and changes from one to another.

use anyhow::Result;
use serde_json::json;

use crate::{
    api::Kind,
    expect::Expect::{To, Unanswered},
    proxy::Need,
    run::{
        Case,
        Play::{Each, Once},
    },
    stage::{
        Front::{Balancer, External, NodePort, Vip},
        PORT, Stage,
    },
    who::{
        Client::{Host, Outside, Pod},
        Who::{B0, B1, R0},
        at, node_address,
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
    case(
        "a headless Service has no frontend and disturbs nobody",
        headless,
    ),
    case(
        "an ExternalName Service has no frontend and disturbs nobody",
        external_name,
    ),
    case("a Service of another proxy is left alone", other_proxy),
    case("a Service is handed to another proxy and back", handed_over),
    case(
        "a ClusterIP Service becomes a NodePort one and back",
        to_node_port,
    ),
    case(
        "a NodePort Service becomes a LoadBalancer one and back",
        to_balancer,
    ),
    case(
        "a ClusterIP Service becomes an ExternalName and comes back elsewhere",
        to_external_name,
    ),
    case("a deleted Service's addresses lead to nobody", deleted),
    case(
        "a Service is deleted and made anew with other endpoints",
        made_anew,
    ),
    case(
        "two Services of one name in two namespaces are two",
        two_namespaces,
    ),
    Case {
        name: "the health check of a load balancer tells whether the node has endpoints",
        needs: &[Need::HealthCheck, Need::Outside],
        play: Once(health_check),
    },
];

fn headless(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("headless", json!({"clusterIP": "None"}))?;
    stage.endpoints("headless-1", "headless", &[at(B1)])?;
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn external_name(stage: &mut Stage<'_, '_>) -> Result<()> {
    let spec = json!({"type": "ExternalName", "externalName": "example.org"});
    stage.service("elsewhere", spec)?;
    stage.endpoints("elsewhere-1", "elsewhere", &[at(B1)])?;
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn other_proxy(stage: &mut Stage<'_, '_>) -> Result<()> {
    let labels = json!({"service.kubernetes.io/service-proxy-name": "another"});
    stage.labelled("web", labels, json!({"type": "NodePort"}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, Unanswered)?;
    stage.check(Host, NodePort, Unanswered)
}

fn handed_over(stage: &mut Stage<'_, '_>) -> Result<()> {
    const LABEL: &str = "service.kubernetes.io/service-proxy-name";
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.relabel("web", json!({LABEL: "another"}))?;
    stage.settle()?;
    stage.check(Pod, Vip, Unanswered)?;
    stage.relabel("web", json!({LABEL: null}))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn to_node_port(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Host, NodePort, Unanswered)?;
    let mut port = stage.port("", PORT);
    port["nodePort"] = json!(stage.node_port(0));
    stage.change("web", json!({"type": "NodePort", "ports": [port]}))?;
    stage.settle()?;
    stage.check(Host, NodePort, To(&[B0]))?;
    stage.check(Pod, Vip, To(&[B0]))?;
    let port = stage.port("", PORT);
    stage.change("web", json!({"type": "ClusterIP", "ports": [port]}))?;
    stage.settle()?;
    stage.check(Host, NodePort, Unanswered)?;
    stage.check(Pod, Vip, To(&[B0]))
}

fn to_balancer(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0), at(R0)])?;
    stage.check(Pod, Balancer, Unanswered)?;
    stage.change("web", json!({"type": "LoadBalancer"}))?;
    let address = stage.balancer(0).to_string();
    stage.ingress("web", json!([{"ip": address}]))?;
    stage.settle()?;
    stage.check(Pod, Balancer, To(&[B0, R0]))?;
    stage.check(Pod, NodePort, To(&[B0, R0]))?;
    stage.ingress("web", json!(null))?;
    stage.change("web", json!({"type": "NodePort"}))?;
    stage.settle()?;
    stage.check(Pod, Balancer, Unanswered)?;
    stage.check(Pod, NodePort, To(&[B0, R0]))
}

fn to_external_name(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    let gone = json!({
        "type": "ExternalName", "externalName": "example.org",
        "clusterIP": null, "clusterIPs": null, "internalTrafficPolicy": null,
        "ipFamilies": null, "ipFamilyPolicy": null,
    });
    stage.change("web", gone)?;
    stage.settle()?;
    stage.check(Pod, Vip, Unanswered)?;
    let address = stage.vip(1);
    let back = json!({
        "type": "ClusterIP", "externalName": null,
        "clusterIP": address.to_string(), "clusterIPs": [address.to_string()],
    });
    stage.change("web", back)?;
    stage.settle()?;
    stage.expect(Pod, (address, PORT).into(), To(&[B0]))?;
    stage.check(Pod, Vip, Unanswered)
}

fn deleted(stage: &mut Stage<'_, '_>) -> Result<()> {
    let external = stage.external(0).to_string();
    let spec = json!({"type": "LoadBalancer", "externalIPs": [external]});
    stage.web(spec, &[at(B0)])?;
    let all = [Vip, NodePort, External, Balancer];
    for front in all {
        stage.check(Pod, front, To(&[B0]))?;
    }
    stage.delete(Kind::Service, "web")?;
    stage.settle()?;
    for front in all {
        stage.check(Pod, front, Unanswered)?;
        stage.check(Host, front, Unanswered)?;
    }
    Ok(())
}

fn made_anew(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.delete(Kind::Service, "web")?;
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.service("web", json!({}))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))
}

fn two_namespaces(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    let address = stage.vip(1);
    let other = stage.in_another_namespace("web", address, &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.expect(Pod, (address, PORT).into(), To(&[B1]))?;
    other.remove(stage)
}

fn health_check(stage: &mut Stage<'_, '_>) -> Result<()> {
    let port = stage.node_port(5);
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
    });
    stage.web(spec, &[at(B0), at(R0)])?;
    let addr = (node_address(stage.family), port).into();
    stage.http_status(Outside, addr, 200)?;
    stage.endpoints("web-1", "web", &[at(R0)])?;
    stage.settle()?;
    stage.http_status(Outside, addr, 503)
}
