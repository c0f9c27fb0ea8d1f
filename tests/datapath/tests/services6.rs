//! What clients of IPv6 Services see.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use anyhow::Result;
use skiff_ebpf_loader::{Backend, DesiredTables, Frontend, IpFamily, Protocol};
use skiff_tests_datapath::{
    EMPTY6, NODE, NODE6, PODS6, TARGET, TestNode, VIP, VIP6, names, only, program,
    protocol::Command, servers, spec, tables, tables6, web,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

#[test]
fn tcp_is_spread_over_all_backends_and_keeps_the_vip_as_its_peer() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables6(3))?;
    let _servers = servers(&node)?;
    for mut client in [node.pod()?, node.host()?] {
        let answer = client.tell(&Command::Tcp {
            addr: VIP6.into(),
            times: 150,
        })?;
        assert_eq!(answer.errors, BTreeMap::new());
        assert_eq!(names(&answer), ["fd88::2", "fd88::3", "fd88::4"]);
        // A fair choice misses 20 of 150 with a probability of less than 1e-9.
        let fair = answer.names.values().all(|count| *count >= 20);
        assert!(fair, "{:?}", answer.names);
        assert_eq!(answer.peers, only(VIP6, 150));
    }
    assert_eq!(datapath.counters()?.connects, 300);
    Ok(())
}

#[test]
fn udp_is_answered_by_the_vip_connected_or_not() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables6(2))?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let (addr, times) = (VIP6.into(), 40);
    let answer = client.tell(&Command::UdpConnected { addr, times })?;
    assert_eq!(answer.errors, BTreeMap::new());
    assert_eq!(names(&answer), ["fd88::2", "fd88::3"]);
    // Both by getpeername and by recvfrom.
    assert_eq!(answer.peers, only(VIP6, 80));

    let direct = SocketAddr::from((PODS6[3], TARGET));
    let answer = client.tell(&Command::UdpUnconnected {
        addrs: vec![addr, direct],
        times: 10,
    })?;
    assert_eq!(answer.errors, BTreeMap::new());
    assert_eq!(
        answer.peers,
        [(VIP6.to_string(), 10), (direct.to_string(), 10)].into()
    );
    // The datagrams of one socket to one Service are one flow: one backend, beside the pod asked directly.
    assert_eq!(answer.names.len(), 2, "{:?}", answer.names);
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables6(1))?;
    let mut pod = servers(&node)?;
    let answer = pod.tell(&Command::Tcp {
        addr: VIP6.into(),
        times: 1,
    })?;
    assert_eq!(answer.names, only(PODS6[0], 1));
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_and_an_unknown_address_goes_nowhere() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables6(1))?;
    let mut client = node.pod()?;
    let addr = SocketAddr::from(EMPTY6);
    let asked = [
        Command::Tcp { addr, times: 5 },
        Command::UdpConnected { addr, times: 5 },
        Command::UdpUnconnected {
            addrs: vec![addr],
            times: 5,
        },
    ];
    for command in asked {
        let errors = client.tell(&command)?.errors;
        assert_eq!(errors, [(ECONNREFUSED, 5)].into(), "{command:?}");
    }
    assert_eq!(datapath.counters()?.refused, 15);
    let nobody = SocketAddr::new(EMPTY6.ip().to_owned().into(), 81);
    let errors = client.tell(&Command::Tcp {
        addr: nobody,
        times: 1,
    })?;
    assert_eq!(errors.errors, [(EHOSTUNREACH, 1)].into());
    Ok(())
}

/// NodePorts of both families, whose backends are of their family.
fn node_ports() -> DesiredTables {
    let mut wanted = tables6(2);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frontend = Frontend::NodePort {
            family: IpFamily::V6,
            port: 30_080,
            protocol,
        };
        wanted.frontends.insert(frontend, spec(web()));
    }
    wanted
}

#[test]
fn a_node_port_answers_on_the_nodes_address_and_on_its_loopback() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &node_ports())?;
    let mut server = servers(&node)?;
    let on = |ip: Ipv6Addr| SocketAddr::new(ip.into(), 30_080);
    let (mut host, mut pod) = (node.host()?, node.pod()?);
    for (from_pod, addr) in [
        (false, on(NODE6)),
        (false, on(Ipv6Addr::LOCALHOST)),
        (true, on(NODE6)),
    ] {
        let client = if from_pod { &mut pod } else { &mut host };
        let answer = client.tell(&Command::Tcp { addr, times: 40 })?;
        assert_eq!(
            (names(&answer), answer.total()),
            (vec!["fd88::2", "fd88::3"], 40),
            "{addr}"
        );
        assert_eq!(answer.peers, only(addr, 40));
        let answer = client.tell(&Command::UdpUnconnected {
            addrs: vec![addr],
            times: 2,
        })?;
        assert_eq!((answer.total(), &answer.peers), (2, &only(addr, 2)));
    }
    // A pod's loopback is the pod's.
    server.tell(&Command::TcpServe {
        addr: on(Ipv6Addr::LOCALHOST),
        name: "mine".into(),
    })?;
    let answer = pod.tell(&Command::Tcp {
        addr: on(Ipv6Addr::LOCALHOST),
        times: 3,
    })?;
    assert_eq!(answer.names, only("mine", 3));
    // The IPv4 port of that number is nobody's.
    let answer = host.tell(&Command::Tcp {
        addr: (NODE, 30_080).into(),
        times: 1,
    })?;
    assert_eq!(answer.errors, [(ECONNREFUSED, 1)].into());
    Ok(())
}

#[test]
fn a_process_of_the_node_does_not_get_a_node_port_and_gets_it_when_the_service_is_gone()
-> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    let mut wanted = node_ports();
    wanted.frontends.insert(
        Frontend::NodePort {
            family: IpFamily::V4,
            port: 30_081,
            protocol: Protocol::Tcp,
        },
        spec(web()),
    );
    program(&mut datapath, &wanted)?;
    let (mut host, mut pod) = (node.host()?, node.pod()?);
    let tcp = |ip: IpAddr, port| Command::TcpServe {
        addr: (ip, port).into(),
        name: String::new(),
    };
    let udp = |ip: IpAddr, port| Command::UdpServe {
        addr: (ip, port).into(),
        name: String::new(),
    };
    let any6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let any4 = IpAddr::from([0, 0, 0, 0]);
    let taken = [
        tcp(any6, 30_080),
        udp(any6, 30_080),
        tcp(NODE6.into(), 30_080),
        tcp(any4, 30_081),
        tcp(NODE.into(), 30_081),
        // A socket on `::` would take IPv4 too.
        tcp(any6, 30_081),
    ];
    for command in &taken {
        let error = host.tell(command).map_err(|error| format!("{error:#}"));
        let refused = error.as_ref().is_err_and(|e| e.contains("in use"));
        assert!(refused, "{command:?}: {error:?}");
    }
    // Another protocol, a port without a Service, a pod.
    host.tell(&udp(NODE.into(), 30_081))?;
    host.tell(&tcp(any6, 30_090))?;
    pod.tell(&tcp(any6, 30_080))?;
    program(&mut datapath, &tables6(1))?;
    host.tell(&tcp(any6, 30_080))?;
    host.tell(&tcp(any4, 30_081))?;
    Ok(())
}

#[test]
fn the_two_families_of_a_service_do_not_mix() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut wanted = tables(2);
    let other = skiff_ebpf_loader::SetId::of(&["test", "web", "v6"]);
    let members = PODS6.iter().take(2);
    let members = members.map(|addr| Backend::new((*addr).into(), TARGET));
    wanted.sets.insert(other, members.collect());
    for (frontend, _) in tables6(0).frontends {
        wanted.frontends.insert(frontend, spec(other));
    }
    program(&mut node.open()?, &wanted)?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let six = SocketAddr::from(VIP6);
    let mapped = SocketAddrV6::new(VIP.ip().to_ipv6_mapped(), VIP.port(), 0, 0);
    for (addr, expected) in [
        (six, ["fd88::2", "fd88::3"]),
        (VIP.into(), ["10.88.0.2", "10.88.0.3"]),
        (mapped.into(), ["10.88.0.2", "10.88.0.3"]),
    ] {
        let answer = client.tell(&Command::Tcp { addr, times: 60 })?;
        assert_eq!(names(&answer), expected, "{addr}");
        assert_eq!(answer.peers, only(addr, 60));
    }
    Ok(())
}
