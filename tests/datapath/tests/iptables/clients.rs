//! What clients see, wherever they are.

use std::collections::BTreeMap;

use anyhow::Result;
use skiff_ebpf_loader::{Backend, DesiredTables, FrontendSpec, Protocol};
use skiff_tests_datapath::{
    BridgedNode, OUTSIDE, PODS, Probe, TARGET, UPLINK, pod6,
    protocol::{Answer, Command, How},
};

use crate::{
    ECONNREFUSED, EHOSTUNREACH, EPERM, ETIMEDOUT, NODE_PORT, PROGRAM, Rules, address, backends,
    inside, names, node_port, set,
};

const VIP: &str = "10.96.0.80:80";
const VIP6: &str = "[fd96::80]:80";
const EMPTY: &str = "10.96.0.81:80";

fn tcp(client: &mut Probe, addr: &str, times: u32) -> Result<Answer> {
    client.tell(&Command::Tcp {
        addr: addr.parse()?,
        times,
    })
}

fn udp(client: &mut Probe, addr: &str, times: u32) -> Result<Answer> {
    client.tell(&Command::UdpConnected {
        addr: addr.parse()?,
        times,
    })
}

fn answered(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.errors, BTreeMap::new());
    answer.names.keys().cloned().collect()
}

#[expect(clippy::unwrap_used, reason = "the tests' own addresses")]
fn tables() -> DesiredTables {
    let (web, web6, none) = (set("web"), set("web6"), set("none"));
    let mut tables = DesiredTables {
        sets: [
            (web, backends(&[0, 1])),
            (none, Vec::new()),
            (web6, vec![Backend::new(pod6(1).parse().unwrap(), TARGET)]),
        ]
        .into(),
        ..DesiredTables::default()
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (addr, set) in [(VIP, web), (VIP6, web6), (EMPTY, none)] {
            tables
                .frontends
                .insert(address(addr, protocol), inside(set));
        }
    }
    tables
}

#[tokio::test]
async fn pods_and_the_node_reach_all_backends_of_both_families() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    Rules::open(&node).await?.program(&tables())?;
    for mut client in [node.pod(2)?, node.host()?, node.outside()?] {
        let answer = tcp(&mut client, VIP, 60)?;
        assert_eq!(answered(&answer), names(&[0, 1]));
        // A fair choice misses 10 of 60 with a probability of less than 1e-7.
        assert!(
            answer.names.values().all(|count| *count >= 10),
            "{answer:?}"
        );
        assert_eq!(answered(&udp(&mut client, VIP, 60)?), names(&[0, 1]));
        assert_eq!(answered(&tcp(&mut client, VIP6, 3)?), names(&[1]));
        assert_eq!(answered(&udp(&mut client, VIP6, 3)?), names(&[1]));
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let mut servers = node.serving_pods()?;
    let mut tables = tables();
    tables.sets.insert(set("web"), backends(&[0]));
    Rules::open(&node).await?.program(&tables)?;
    assert_eq!(answered(&tcp(&mut servers[0], VIP, 5)?), names(&[0]));
    assert_eq!(answered(&udp(&mut servers[0], VIP, 5)?), names(&[0]));
    assert_eq!(answered(&tcp(&mut servers[1], VIP6, 5)?), names(&[1]));
    Ok(())
}

#[tokio::test]
async fn without_a_backend_connections_are_refused_and_without_a_service_unreachable() -> Result<()>
{
    let node = BridgedNode::new(PROGRAM)?;
    Rules::open(&node).await?.program(&tables())?;
    for (name, mut client, of_udp) in [
        ("pod", node.pod(2)?, ECONNREFUSED),
        // What the kernel says to whoever sends a datagram himself that a rule takes: so it is with upstream's proxy.
        ("node", node.host()?, EPERM),
        ("world", node.outside()?, ECONNREFUSED),
    ] {
        let refused = tcp(&mut client, EMPTY, 2)?;
        assert_eq!(refused.errors, [(ECONNREFUSED, 2)].into(), "{name}");
        let refused = udp(&mut client, EMPTY, 2)?;
        assert_eq!(refused.errors, [(of_udp, 2)].into(), "{name}");
        let nobody = tcp(&mut client, "10.96.0.99:80", 2)?;
        assert_eq!(nobody.errors, [(EHOSTUNREACH, 2)].into(), "{name}");
    }
    Ok(())
}

fn external(local: &[usize]) -> DesiredTables {
    let (all, local_set) = (set("all"), set("local"));
    let mut tables = DesiredTables {
        sets: [(all, backends(&[0, 1])), (local_set, backends(local))].into(),
        ..DesiredTables::default()
    };
    let spec = |outside| FrontendSpec {
        outside: Some(outside),
        local_only: outside != all,
        ..FrontendSpec::to(all)
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        tables
            .frontends
            .insert(node_port(protocol), spec(local_set));
        tables
            .frontends
            .insert(address("203.0.113.7:443", protocol), spec(all));
    }
    tables
}

#[tokio::test]
async fn node_ports_and_external_addresses_answer_everybody() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    Rules::open(&node).await?.program(&external(&[1]))?;
    let on_node = format!("{UPLINK}:{NODE_PORT}");
    let on_bridge = format!("10.88.0.1:{NODE_PORT}");
    let loopback = format!("127.0.0.1:{NODE_PORT}");
    for ask in [tcp, udp] {
        let mut host = node.host()?;
        assert_eq!(answered(&ask(&mut host, &on_node, 40)?), names(&[0, 1]));
        assert_eq!(answered(&ask(&mut host, &loopback, 40)?), names(&[0, 1]));
        let mut pod = node.pod(2)?;
        assert_eq!(answered(&ask(&mut pod, &on_bridge, 40)?), names(&[0, 1]));
        let mut outside = node.outside()?;
        let external = ask(&mut outside, "203.0.113.7:443", 40)?;
        assert_eq!(answered(&external), names(&[0, 1]));
        // `externalTrafficPolicy: Local`.
        assert_eq!(answered(&ask(&mut outside, &on_node, 40)?), names(&[1]));
    }
    Ok(())
}

#[tokio::test]
async fn local_policy_keeps_the_clients_address_and_drops_without_a_local_backend() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    let mut tables = external(&[1]);
    tables.sets.insert(set("all"), backends(&[1]));
    let mut rules = Rules::open(&node).await?;
    rules.program(&tables)?;
    let (on_node, mut outside) = (format!("{UPLINK}:{NODE_PORT}"), node.outside()?);
    let kept = tcp(&mut outside, &on_node, 1)?;
    assert_eq!(kept.sources, [(OUTSIDE.to_string(), 1)].into());
    let masqueraded = tcp(&mut outside, "203.0.113.7:443", 1)?;
    assert_eq!(masqueraded.sources, [("10.88.0.1".to_owned(), 1)].into());

    tables.sets.insert(set("local"), Vec::new());
    rules.program(&tables)?;
    let dropped = outside.tell(&Command::Ask {
        how: How::Tcp,
        addr: on_node.parse()?,
        from: None,
        times: 1,
        patience_ms: 1500,
    })?;
    assert_eq!(dropped.errors, [(ETIMEDOUT, 1)].into());
    let of_node = tcp(&mut node.host()?, &on_node, 1)?;
    assert_eq!(answered(&of_node), names(&[1]));
    Ok(())
}

#[tokio::test]
async fn a_client_with_affinity_keeps_its_backend_until_it_is_gone() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    let mut tables = tables();
    let spec = FrontendSpec {
        affinity_seconds: 60,
        ..inside(set("web"))
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        tables
            .frontends
            .insert(address(VIP, protocol), spec.clone());
    }
    tables.sets.insert(set("web"), backends(&[0, 1, 2]));
    let mut rules = Rules::open(&node).await?;
    rules.program(&tables)?;
    let mut client = node.outside()?;
    let first = answered(&tcp(&mut client, VIP, 30)?);
    assert_eq!(first.len(), 1);

    // Others may come and go.
    let kept = PODS.iter().position(|addr| addr.to_string() == first[0]);
    let kept = kept.unwrap();
    let other = (kept + 1) % 3;
    tables.sets.insert(set("web"), backends(&[kept, other]));
    rules.program(&tables)?;
    assert_eq!(answered(&tcp(&mut client, VIP, 30)?), first);

    tables.sets.insert(set("web"), backends(&[other]));
    rules.program(&tables)?;
    assert_eq!(answered(&tcp(&mut client, VIP, 5)?), names(&[other]));
    Ok(())
}
