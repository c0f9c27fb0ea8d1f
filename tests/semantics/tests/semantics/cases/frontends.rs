//! Where a Service answers, whom, and what both sides see.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    expect::{
        Expect::{Itself, Refused, To, Unanswered},
        node_addresses,
    },
    proxy::Need,
    run::{
        Case,
        Play::{Each, Look, Once},
    },
    site::outside_balancer,
    stage::{
        Front::{Balancer, Bridge, External, Loopback, NodePort, Vip},
        PORT, Stage,
    },
    who::{
        Client::{Backend, Host, OtherOutside, Outside, Pod},
        TARGET,
        Who::{B0, B1, B2, B3, Node, R0},
        at,
    },
};

const NODE_PORT: &str = r#"{"type": "NodePort"}"#;
const BALANCER: &str = r#"{"type": "LoadBalancer"}"#;
const EXTERNAL: &str = r#"{"externalIPs": ["EXTERNAL"]}"#;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a ClusterIP leads pods and the node to all endpoints",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0), at(B1), at(R0)],
            checks: &[
                (Pod, Vip, Itself(&[B0, B1, R0])),
                (Host, Vip, To(&[B0, B1, R0])),
            ],
        },
    },
    Case {
        name: "a pod reaches itself through its Service",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0)],
            checks: &[(Backend, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "a backend reaches itself and its siblings through their Service",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0), at(B1)],
            checks: &[(Backend, Vip, To(&[B0, B1]))],
        },
    },
    Case {
        name: "a Service without endpoints refuses at once",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[],
            checks: &[(Pod, Vip, Refused), (Host, Vip, Refused)],
        },
    },
    Case {
        name: "a NodePort answers pods and the node at the node's addresses",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, NodePort, To(&[B0, R0])),
                (Host, NodePort, To(&[B0, R0])),
                (Pod, Bridge, To(&[B0, R0])),
                (Host, Bridge, To(&[B0, R0])),
                (Pod, Vip, Itself(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "a pod reaches itself through its NodePort",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(B0)],
            checks: &[(Backend, NodePort, To(&[B0]))],
        },
    },
    Case {
        name: "a NodePort without endpoints refuses at once",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[],
            checks: &[(Pod, NodePort, Refused), (Host, NodePort, Refused)],
        },
    },
    Case {
        name: "a NodePort answers clients outside",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Outside, NodePort, To(&[B0, R0])),
                (OtherOutside, NodePort, To(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "a NodePort without endpoints refuses clients outside",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[],
            checks: &[(Outside, NodePort, Refused)],
        },
    },
    Case {
        name: "external IPs answer pods and the node",
        needs: &[],
        play: Look {
            spec: EXTERNAL,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, External, To(&[B0, R0])),
                (Host, External, To(&[B0, R0])),
                (Pod, Vip, Itself(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "external IPs answer clients outside",
        needs: &[],
        play: Look {
            spec: EXTERNAL,
            endpoints: &[at(B0), at(R0)],
            checks: &[(Outside, External, To(&[B0, R0]))],
        },
    },
    Case {
        name: "external IPs without endpoints refuse",
        needs: &[],
        play: Look {
            spec: EXTERNAL,
            endpoints: &[],
            checks: &[(Pod, External, Refused), (Host, External, Refused)],
        },
    },
    Case {
        name: "external IPs without endpoints refuse clients outside",
        needs: &[Need::RefusalOutside],
        play: Look {
            spec: EXTERNAL,
            endpoints: &[],
            checks: &[(Outside, External, Refused)],
        },
    },
    Case {
        name: "a load balancer's address answers pods and the node",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, Balancer, To(&[B0, R0])),
                (Host, Balancer, To(&[B0, R0])),
                (Pod, NodePort, To(&[B0, R0])),
                (Pod, Vip, Itself(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "a load balancer's address answers clients outside",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Outside, Balancer, To(&[B0, R0])),
                (Outside, NodePort, To(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "a load balancer's address without endpoints refuses",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[],
            checks: &[(Pod, Balancer, Refused), (Host, Balancer, Refused)],
        },
    },
    Case {
        name: "a pod reaches itself through its load balancer",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[at(B0)],
            checks: &[(Backend, Balancer, To(&[B0]))],
        },
    },
    Case {
        name: "the node's loopback address has its NodePorts",
        needs: &[],
        play: Each(node_port_on_loopback),
    },
    Case {
        name: "a pod's loopback address has no NodePorts",
        needs: &[],
        play: Each(node_port_on_a_pods_loopback),
    },
    Case {
        name: "a NodePort is a port of the node's addresses only",
        needs: &[],
        play: Each(node_port_elsewhere),
    },
    Case {
        name: "other ports of a ClusterIP do not answer",
        needs: &[],
        play: Each(other_ports),
    },
    Case {
        name: "the choice among endpoints is even",
        needs: &[],
        play: Each(even_choice),
    },
    Case {
        name: "a Service leads to pods in the node's own network",
        needs: &[],
        play: Each(host_network),
    },
    Case {
        name: "allocateLoadBalancerNodePorts false leaves the balancer's address",
        needs: &[],
        play: Each(balancer_without_node_port),
    },
    Case {
        name: "ipMode Proxy leaves the load balancer's address to the load balancer",
        needs: &[],
        play: Each(ip_mode_proxy),
    },
    Case {
        name: "several addresses of load balancers all answer",
        needs: &[],
        play: Each(several_balancers),
    },
    Case {
        name: "several external IPs all answer",
        needs: &[],
        play: Each(several_external_ips),
    },
    Case {
        name: "a load balancer that has only a host name has no address",
        needs: &[],
        play: Once(host_name_of_a_balancer),
    },
    Case {
        name: "an IPv6 socket reaches a Service by its mapped IPv4 address",
        needs: &[],
        play: Each(mapped_address),
    },
    Case {
        name: "one Service has IPv4 and IPv6 addresses",
        needs: &[Need::Ipv6],
        play: Each(dual_stack),
    },
];

fn node_port_on_loopback(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0), at(R0)])?;
    stage.check(Host, Loopback, To(&[B0, R0]))
}

fn node_port_on_a_pods_loopback(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    stage.check(Pod, NodePort, To(&[B0]))?;
    stage.check(Pod, Loopback, Unanswered)
}

fn node_port_elsewhere(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({"type": "NodePort"}), &[at(B0)])?;
    let port = stage.node_port(0);
    for address in node_addresses(stage) {
        stage.expect(Host, (address, port).into(), To(&[B0]))?;
    }
    for address in [
        stage.vip(0),
        B1.address(stage.family),
        R0.address(stage.family),
    ] {
        stage.expect(Pod, (address, port).into(), Unanswered)?;
    }
    Ok(())
}

fn other_ports(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    for port in [PORT + 1, TARGET] {
        stage.expect(Pod, (stage.vip(0), port).into(), Unanswered)?;
    }
    Ok(())
}

fn even_choice(stage: &mut Stage<'_, '_>) -> Result<()> {
    const TIMES: u32 = 400;
    stage.web(json!({}), &[at(B0), at(B1), at(B2), at(B3)])?;
    let addr = stage.front(Vip);
    let answer = stage.ask(Pod, addr, TIMES, crate::stage::PATIENCE)?;
    // 100 each, give or take nearly six standard deviations.
    let even = answer
        .names
        .values()
        .all(|count| (50..=150).contains(count));
    ensure!(
        answer.total() == TIMES && answer.names.len() == 4 && even,
        "{answer:?}"
    );
    Ok(())
}

fn host_network(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({}))?;
    let ports = json!([{"port": 9090, "protocol": stage.protocol()}]);
    stage.slice("web-1", "web", ports, &[at(Node), at(B0)])?;
    stage.settle()?;
    let (addr, names) = (stage.front(Vip), ["node:9090", "b0:9090"]);
    stage.reaches_names(Pod, addr, &names)?;
    stage.reaches_names(Host, addr, &names)?;
    Ok(())
}

fn balancer_without_node_port(stage: &mut Stage<'_, '_>) -> Result<()> {
    let port = stage.port("", PORT);
    let spec =
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [port]});
    stage.web(spec, &[at(B0)])?;
    stage.check(Pod, Balancer, To(&[B0]))?;
    stage.check(Pod, NodePort, Unanswered)
}

fn ip_mode_proxy(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({"type": "LoadBalancer"}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    let balancer = outside_balancer(stage.family);
    stage.ingress(
        "web",
        json!([{"ip": balancer.to_string(), "ipMode": "Proxy"}]),
    )?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    for client in [Pod, Host] {
        stage.reaches_names(client, (balancer, PORT).into(), &["balancer"])?;
    }
    Ok(())
}

fn several_balancers(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({"type": "LoadBalancer"}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    let all = [stage.balancer(0), stage.balancer(1)];
    stage.ingress(
        "web",
        json!([{"ip": all[0].to_string()}, {"ip": all[1].to_string()}]),
    )?;
    stage.settle()?;
    for address in all {
        stage.expect(Pod, (address, PORT).into(), To(&[B0]))?;
    }
    Ok(())
}

fn several_external_ips(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = [stage.external(0), stage.external(1)];
    let texts = all.map(|address| address.to_string());
    stage.web(json!({"externalIPs": texts}), &[at(B0)])?;
    for address in all {
        stage.expect(Host, (address, PORT).into(), To(&[B0]))?;
    }
    stage.expect(Host, (stage.external(2), PORT).into(), Unanswered)
}

fn host_name_of_a_balancer(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.service("web", json!({"type": "LoadBalancer"}))?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.ingress("web", json!([{"hostname": "balancer.example.org"}]))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.check(Pod, Balancer, Unanswered)
}

fn mapped_address(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(B1)])?;
    let std::net::IpAddr::V4(vip) = stage.vip(0) else {
        return Ok(());
    };
    let addr = (vip.to_ipv6_mapped(), PORT).into();
    stage.reaches(Pod, addr, &[B0, B1])?;
    stage.reaches(Host, addr, &[B0, B1]).map(drop)
}

fn dual_stack(stage: &mut Stage<'_, '_>) -> Result<()> {
    use crate::who::Family::{V4, V6};
    let v4 = stage.vip(0).to_string();
    stage.family = V6;
    let v6 = stage.vip(0).to_string();
    stage.family = V4;
    let spec = json!({
        "type": "NodePort", "clusterIP": v4, "clusterIPs": [v4, v6],
        "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
    });
    stage.service("web", spec)?;
    stage.endpoints("web-v4", "web", &[at(B0)])?;
    stage.family = V6;
    stage.endpoints("web-v6", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))?;
    stage.check(Pod, NodePort, To(&[B1]))?;
    stage.family = V4;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.check(Pod, NodePort, To(&[B0]))?;
    Ok(())
}
