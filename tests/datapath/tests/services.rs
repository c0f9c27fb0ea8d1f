//! What clients of Services see.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use anyhow::Result;
use skiff_ebpf_loader::{Backend, Frontend, FrontendSpec, IpFamily, Protocol, SetId};
use skiff_tests_datapath::{
    EMPTY, NODE, PODS, TARGET, TestNode, VIP, names, only, pod_names, program, protocol::Command,
    servers, spec, tables, tcp, udp, web,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

#[test]
fn tcp_to_the_vip_is_spread_over_all_backends_and_keeps_the_vip_as_its_peer() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(3))?;
    let _servers = servers(&node)?;
    for mut client in [node.pod()?, node.host()?] {
        let answer = client.tell(&Command::Tcp {
            addr: VIP.into(),
            times: 150,
        })?;
        assert_eq!(answer.errors, BTreeMap::new());
        assert_eq!(names(&answer), pod_names(3));
        // A fair choice misses 20 of 150 with a probability of less than 1e-9.
        assert!(
            answer.names.values().all(|count| *count >= 20),
            "{:?}",
            answer.names
        );
        assert_eq!(answer.peers, only(VIP, 150));
    }
    assert_eq!(datapath.counters()?.connects, 300);
    Ok(())
}

#[test]
fn the_local_address_is_not_touched() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables(1))?;
    let _servers = servers(&node)?;
    let answer = node.host()?.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 1,
    })?;
    assert_eq!(answer.locals, only(NODE, 1));
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables(1))?;
    let mut pod = servers(&node)?;
    let answer = pod.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 1,
    })?;
    assert_eq!(answer.names, only(PODS[0], 1));
    Ok(())
}

#[test]
fn connected_udp_is_answered_by_the_vip() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables(2))?;
    let _servers = servers(&node)?;
    let answer = node.pod()?.tell(&Command::UdpConnected {
        addr: VIP.into(),
        times: 60,
    })?;
    assert_eq!(answer.errors, BTreeMap::new());
    assert_eq!(names(&answer), pod_names(2));
    // Both by getpeername and by recvfrom.
    assert_eq!(answer.peers, only(VIP, 120));
    Ok(())
}

/// What a program asks for that opens one IPv6 socket for both families.
fn mapped(addr: SocketAddrV4) -> SocketAddr {
    (addr.ip().to_ipv6_mapped(), addr.port()).into()
}

#[test]
fn an_ipv6_socket_reaches_services_over_ipv4() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(2))?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let (addr, times) = (mapped(VIP), 60);
    for (command, peers) in [
        (Command::Tcp { addr, times }, 60),
        // Both by getpeername and by recvfrom.
        (Command::UdpConnected { addr, times }, 120),
    ] {
        let answer = client.tell(&command)?;
        assert_eq!(answer.errors, BTreeMap::new(), "{command:?}");
        assert_eq!(names(&answer), pod_names(2), "{command:?}");
        assert_eq!(answer.peers, only(mapped(VIP), peers), "{command:?}");
    }
    let asked = client.tell(&Command::UdpUnconnected {
        addrs: vec![addr],
        times: 5,
    })?;
    assert_eq!(asked.peers, only(addr, 5));
    let refused = client.tell(&Command::Tcp {
        addr: mapped(EMPTY),
        times: 2,
    })?;
    assert_eq!(refused.errors, [(ECONNREFUSED, 2)].into());
    Ok(())
}

#[test]
fn unconnected_udp_is_answered_by_the_vip_it_asked() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    let other = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 90), 53);
    let second = SetId::of(&["test", "second", "dns"]);
    let mut wanted = tables(2);
    wanted
        .sets
        .insert(second, vec![Backend::new(PODS[2].into(), TARGET)]);
    wanted.frontends.insert(udp(other), spec(second));
    program(&mut datapath, &wanted)?;
    let _servers = servers(&node)?;
    let direct = SocketAddrV4::new(PODS[3], TARGET);
    let command = Command::UdpUnconnected {
        addrs: vec![VIP.into(), other.into(), direct.into()],
        times: 10,
    };
    let answer = node.pod()?.tell(&command)?;
    assert_eq!(answer.errors, BTreeMap::new());
    let expected: BTreeMap<String, u32> = [VIP, other, direct]
        .iter()
        .map(|addr| (addr.to_string(), 10))
        .collect();
    assert_eq!(answer.peers, expected);
    // The datagrams of one socket to one Service are one flow: one backend, plus the two others.
    assert_eq!(answer.names.len(), 3, "{:?}", answer.names);
    Ok(())
}

#[test]
fn a_udp_flow_leaves_a_removed_backend_and_keeps_one_that_stays() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(1))?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let ask = Command::UdpUnconnected {
        addrs: vec![VIP.into()],
        times: 1,
    };
    assert_eq!(client.tell(&ask)?.names, only(PODS[0], 1));
    let mut moved = tables(1);
    moved
        .sets
        .insert(web(), vec![Backend::new(PODS[4].into(), TARGET)]);
    program(&mut datapath, &moved)?;
    assert_eq!(client.tell(&ask)?.names, only(PODS[4], 1));
    Ok(())
}

#[test]
fn a_process_outside_the_cgroup_is_not_translated() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(2))?;
    let _servers = servers(&node)?;
    // It meets the node's unreachable route.
    let answer = node.outsider()?.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 2,
    })?;
    assert_eq!(answer.total(), 0);
    assert_eq!(answer.errors, [(EHOSTUNREACH, 2)].into());
    assert_eq!(datapath.counters()?.connects, 0);
    Ok(())
}

#[test]
fn an_address_that_is_no_service_is_left_alone() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables(2))?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let direct = SocketAddrV4::new(PODS[4], TARGET);
    let answer = client.tell(&Command::Tcp {
        addr: direct.into(),
        times: 3,
    })?;
    assert_eq!(
        (answer.names, answer.peers),
        (only(PODS[4], 3), only(direct, 3))
    );
    // The VIP's address, but a port that no Service has.
    let unknown = SocketAddrV4::new(*VIP.ip(), 81);
    assert_eq!(
        client
            .tell(&Command::Tcp {
                addr: unknown.into(),
                times: 1
            })?
            .total(),
        0
    );
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(1))?;
    let mut client = node.pod()?;
    let refused: BTreeMap<i32, u32> = [(ECONNREFUSED, 5)].into();
    let before = std::time::Instant::now();
    assert_eq!(
        client
            .tell(&Command::Tcp {
                addr: EMPTY.into(),
                times: 5
            })?
            .errors,
        refused
    );
    assert_eq!(
        client
            .tell(&Command::UdpConnected {
                addr: EMPTY.into(),
                times: 5
            })?
            .errors,
        refused
    );
    let unconnected = Command::UdpUnconnected {
        addrs: vec![EMPTY.into()],
        times: 5,
    };
    assert_eq!(client.tell(&unconnected)?.errors, refused);
    assert!(
        before.elapsed().as_secs() < 2,
        "refused, but only after {:?}",
        before.elapsed()
    );
    assert_eq!(datapath.counters()?.refused, 15);
    Ok(())
}

#[test]
fn a_node_port_answers_on_the_nodes_address_and_on_its_loopback() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    let mut wanted = tables(2);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        wanted.frontends.insert(
            Frontend::NodePort {
                family: IpFamily::V4,
                port: 30_080,
                protocol,
            },
            spec(web()),
        );
    }
    program(&mut datapath, &wanted)?;
    let mut server = servers(&node)?;
    let on = |addr| SocketAddrV4::new(addr, 30_080);
    let (mut host, mut pod) = (node.host()?, node.pod()?);
    for (from_pod, addr) in [
        (false, on(NODE)),
        (false, on(Ipv4Addr::LOCALHOST)),
        (true, on(NODE)),
    ] {
        let client = if from_pod { &mut pod } else { &mut host };
        let answer = client.tell(&Command::Tcp {
            addr: addr.into(),
            times: 40,
        })?;
        assert_eq!(
            (names(&answer), answer.total()),
            (vec!["10.88.0.2", "10.88.0.3"], 40),
            "{addr}"
        );
        assert_eq!(answer.peers, only(addr, 40));
        let answer = client.tell(&Command::UdpUnconnected {
            addrs: vec![addr.into()],
            times: 2,
        })?;
        assert_eq!(
            (answer.total(), &answer.peers),
            (2, &only(addr, 2)),
            "{addr}"
        );
    }
    // A pod's loopback is the pod's.
    server.tell(&Command::TcpServe {
        addr: (on(Ipv4Addr::LOCALHOST)).into(),
        name: "mine".into(),
    })?;
    let answer = pod.tell(&Command::Tcp {
        addr: (on(Ipv4Addr::LOCALHOST)).into(),
        times: 3,
    })?;
    assert_eq!(answer.names, only("mine", 3));
    // Another address with that port is somebody else's.
    let answer = host.tell(&Command::Tcp {
        addr: (on(PODS[0])).into(),
        times: 1,
    })?;
    assert_eq!(answer.errors, [(ECONNREFUSED, 1)].into());
    Ok(())
}

#[test]
fn session_affinity_keeps_a_client_and_lets_go_of_a_removed_backend() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    let mut wanted = tables(4);
    wanted.frontends.insert(
        tcp(VIP),
        FrontendSpec {
            affinity_seconds: 600,
            ..spec(web())
        },
    );
    program(&mut datapath, &wanted)?;
    let _servers = servers(&node)?;
    let command = Command::Tcp {
        addr: VIP.into(),
        times: 40,
    };
    let first = node.pod()?.tell(&command)?.names;
    assert_eq!(first.len(), 1, "{first:?}");
    // Another process of the same pod is the same client; so it is after a change of other members.
    wanted
        .sets
        .entry(web())
        .or_default()
        .push(Backend::new(PODS[4].into(), TARGET));
    program(&mut datapath, &wanted)?;
    assert_eq!(node.pod()?.tell(&command)?.names, first);
    assert_eq!(datapath.counters()?.affinity_hits, 79);
    wanted
        .sets
        .entry(web())
        .or_default()
        .retain(|backend| !first.contains_key(&backend.addr.to_string()));
    program(&mut datapath, &wanted)?;
    let next = node.pod()?.tell(&command)?.names;
    assert_eq!(next.len(), 1);
    assert_ne!(next, first);
    Ok(())
}

#[test]
fn session_affinity_ends_after_its_timeout() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    let mut wanted = tables(5);
    wanted.frontends.insert(
        tcp(VIP),
        FrontendSpec {
            affinity_seconds: 1,
            ..spec(web())
        },
    );
    program(&mut datapath, &wanted)?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let mut seen = std::collections::BTreeSet::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while seen.len() < 2 {
        assert!(std::time::Instant::now() < deadline, "still {seen:?}");
        seen.extend(
            client
                .tell(&Command::Tcp {
                    addr: VIP.into(),
                    times: 1,
                })?
                .names
                .into_keys(),
        );
        // What is tested is the passing of time itself.
        std::thread::sleep(std::time::Duration::from_millis(1200));
    }
    Ok(())
}

#[test]
fn each_frontend_uses_its_own_set() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    let local = SetId::of(&["test", "web", "http", "local"]);
    let mut wanted = tables(4);
    wanted.sets.insert(
        local,
        vec![Backend {
            local: true,
            ..Backend::new(PODS[1].into(), TARGET)
        }],
    );
    let strict = FrontendSpec {
        inside: local,
        ..spec(web())
    };
    wanted.frontends.insert(tcp(VIP), strict);
    program(&mut datapath, &wanted)?;
    let _servers = servers(&node)?;
    let answer = node.pod()?.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 20,
    })?;
    assert_eq!(answer.names, only(PODS[1], 20));
    wanted.sets.insert(local, Vec::new());
    program(&mut datapath, &wanted)?;
    let answer = node.pod()?.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 1,
    })?;
    assert_eq!(answer.errors, [(ECONNREFUSED, 1)].into());
    Ok(())
}

#[test]
fn two_nodes_on_one_machine_do_not_see_each_others_services() -> Result<()> {
    let (one, two) = (TestNode::new(PROGRAM)?, TestNode::new(PROGRAM)?);
    let (mut first, mut second) = (one.open()?, two.open()?);
    program(&mut first, &tables(1))?;
    let mut other = tables(1);
    other
        .sets
        .insert(web(), vec![Backend::new(PODS[3].into(), TARGET)]);
    other.frontends.remove(&udp(VIP));
    program(&mut second, &other)?;
    let (_a, _b) = (servers(&one)?, servers(&two)?);
    let command = Command::Tcp {
        addr: VIP.into(),
        times: 10,
    };
    assert_eq!(one.pod()?.tell(&command)?.names, only(PODS[0], 10));
    assert_eq!(two.pod()?.tell(&command)?.names, only(PODS[3], 10));
    let command = Command::UdpConnected {
        addr: VIP.into(),
        times: 1,
    };
    assert_eq!(one.pod()?.tell(&command)?.total(), 1);
    assert_eq!(two.pod()?.tell(&command)?.total(), 0);
    Ok(())
}
