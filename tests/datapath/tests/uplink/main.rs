//! Clients outside the node: their packets come in by a link of the node and reach its pods.

mod backends;
mod mtu;
mod site;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::{
    Backend, FlowState, FlowTable, NodeSettings, Protocol, TraceVerdict, Tracer, Want,
};
use skiff_tests_datapath::{POD_PORT, ip, protocol::Command as Say};

use crate::site::{
    BALANCER, CLIENT, ECHO_PORT, ECONNREFUSED, NODE, NODE_PORT, Site, UPLINK, answered, frontends,
    inside, only, open, say,
};

#[test]
fn clients_outside_reach_pods_by_every_frontend_and_keep_their_address() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(2))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let both: BTreeSet<String> = site.pods.iter().map(|pod| pod.addr.to_string()).collect();
    for addr in frontends() {
        let seen = CLIENT[usize::from(addr.is_ipv6())];
        let answer = client.tell(&Say::Tcp { addr, times: 40 })?;
        assert_eq!(answer.errors, BTreeMap::new(), "{addr}");
        assert_eq!(answer.total(), 40);
        assert_eq!(answer.peers, only(addr, 40));
        assert_eq!(answered(&answer, seen), both, "{addr}");
        let answer = client.tell(&Say::UdpConnected { addr, times: 40 })?;
        assert_eq!(answer.errors, BTreeMap::new(), "{addr}");
        assert_eq!(answer.total(), 40);
        assert_eq!(answered(&answer, seen), both, "{addr}");
    }
    let counters = site.datapath.counters()?;
    // A client may be given the same port twice.
    assert!((300..=4 * 80).contains(&counters.nat_flows), "{counters:?}");
    assert!(counters.nat_packets >= 4 * 40 * 5, "{counters:?}");
    assert!(counters.nat_reply_packets >= 4 * 40 * 4, "{counters:?}");
    assert!(counters.nat_reply_bytes > counters.nat_reply_packets * 54);
    Ok(())
}

#[test]
fn full_segments_pass_both_ways_unharmed() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(2))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    for addr in NODE.map(|ip| SocketAddr::new(ip, ECHO_PORT)) {
        let bytes = 8 << 20;
        let answer = client.tell(&Say::Transfer { addr, bytes })?;
        assert_eq!(
            (answer.names, answer.errors),
            (only("same", 1), BTreeMap::new()),
            "{addr}"
        );
    }
    Ok(())
}

#[test]
fn an_open_connection_outlives_the_daemon_its_backend_s_removal_and_its_uplink() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    open(&mut client, (BALANCER[0], POD_PORT).into())?;
    let said = only(site.pods[0].addr, 1);
    assert_eq!(say(&mut client)?, said);
    // The daemon dies.
    site.datapath = site.node.open()?;
    site.datapath.set_node(&NodeSettings {
        addresses: NODE.to_vec(),
        ..site.node.settings()?
    })?;
    assert_eq!(say(&mut client)?, said);
    // The backend is not to be used any more; the next connection goes to the other one.
    let mut moved = site.tables(2);
    for members in moved.sets.values_mut() {
        members.retain(|backend| !site.pods[0].port.addrs.contains(&backend.addr));
    }
    site.apply(&moved)?;
    assert_eq!(say(&mut client)?, said);
    let next = (BALANCER[0], POD_PORT).into();
    let answer = client.tell(&Say::Tcp {
        addr: next,
        times: 5,
    })?;
    assert_eq!(
        answered(&answer, CLIENT[0]),
        [site.pods[1].addr.to_string()].into()
    );
    // The link goes and comes back under another number.
    ip(&site.node.netns, &["link", "delete", "up0"])?;
    site.plug_in(UPLINK + 1)?;
    site.uplinks.retain(&[UPLINK + 1])?;
    assert_eq!(site.uplinks.attached(), [UPLINK + 1]);
    assert_eq!(say(&mut client)?, said);
    Ok(())
}

#[test]
fn datagrams_leave_a_removed_backend_at_once() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    for addr in [
        SocketAddr::from((NODE[0], NODE_PORT)),
        (NODE[1], NODE_PORT).into(),
    ] {
        site.apply(&site.tables(1))?;
        let first = client.tell(&Say::UdpUnconnected {
            addrs: vec![addr],
            times: 3,
        })?;
        assert_eq!(first.total(), 3);
        let mut moved = site.tables(2);
        for members in moved.sets.values_mut() {
            members.retain(|backend| !site.pods[0].port.addrs.contains(&backend.addr));
        }
        site.apply(&moved)?;
        let then = client.tell(&Say::UdpUnconnected {
            addrs: vec![addr],
            times: 3,
        })?;
        assert_eq!(then.peers, only(addr, 3));
        let other = [site.pods[1].addr.to_string()].into();
        assert_eq!(answered(&then, CLIENT[usize::from(addr.is_ipv6())]), other);
    }
    Ok(())
}

#[test]
fn a_service_without_backends_refuses_at_once_or_drops_by_its_policy() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(0))?;
    let mut client = site.client()?;
    for addr in frontends() {
        let refused: BTreeMap<i32, u32> = [(ECONNREFUSED, 2)].into();
        let answer = client.tell(&Say::Tcp { addr, times: 2 })?;
        assert_eq!(answer.errors, refused, "{addr}");
        let answer = client.tell(&Say::UdpConnected { addr, times: 2 })?;
        assert_eq!(answer.errors, refused, "{addr}");
    }
    let mut local = site.tables(0);
    // There are some, on another node.
    let elsewhere = Backend::new(site.pods[0].port.addrs[0], POD_PORT);
    local.sets.insert(inside(), vec![elsewhere]);
    for spec in local.frontends.values_mut() {
        spec.local_only = true;
    }
    site.apply(&local)?;
    let addr = (NODE[0], NODE_PORT).into();
    let mut tracer = Tracer::start(&site.node.bpffs, Want::default())?;
    let answer = client.tell(&Say::UdpConnected { addr, times: 1 })?;
    assert_eq!(answer.total(), 0);
    let told = tracer.next_events()?;
    let told = told.iter().find(|e| e.verdict == TraceVerdict::NoLocal);
    assert_eq!(told.context("nothing was told")?.asked, addr);
    assert!(!answer.errors.contains_key(&ECONNREFUSED), "{answer:?}");
    assert!(site.datapath.counters()?.nat_no_local >= 1);
    // A Service that is open again is served again.
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    for addr in frontends() {
        let answer = client.tell(&Say::Tcp { addr, times: 2 })?;
        assert_eq!(
            (answer.total(), answer.errors),
            (2, BTreeMap::new()),
            "{addr}"
        );
    }
    Ok(())
}

#[test]
fn programs_stay_attached_until_they_are_removed() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let pins = site.node.bpffs.join("uplinks");
    assert_eq!(fs::read_dir(&pins)?.count(), 2);
    site.attach(UPLINK)?;
    assert_eq!(fs::read_dir(&pins)?.count(), 2, "twice is as good as once");
    assert!(site.attach(UPLINK + 7).is_err(), "no such link");
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let addr = (BALANCER[0], POD_PORT).into();
    assert_eq!(client.tell(&Say::Tcp { addr, times: 1 })?.total(), 1);
    site.uplinks.retain(&[])?;
    assert_eq!(fs::read_dir(&pins)?.count(), 0);
    assert_eq!(client.tell(&Say::Tcp { addr, times: 1 })?.total(), 0);
    Ok(())
}

#[test]
fn connections_are_listed_and_removed_when_they_have_been_silent_for_long() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let kept = SocketAddr::from((BALANCER[1], POD_PORT));
    open(&mut client, kept)?;
    say(&mut client)?;
    let ended = SocketAddr::from((NODE[0], NODE_PORT));
    client.tell(&Say::Tcp {
        addr: ended,
        times: 1,
    })?;
    client.tell(&Say::UdpConnected {
        addr: ended,
        times: 1,
    })?;
    let flows = FlowTable::open(&site.node.bpffs)?;
    let states = || {
        let mut all: Vec<_> = flows
            .list()?
            .into_iter()
            .map(|flow| {
                assert_eq!(flow.client.ip(), CLIENT[usize::from(flow.asked.is_ipv6())]);
                assert_eq!(flow.source, None);
                (flow.asked, flow.protocol, flow.state)
            })
            .collect();
        all.sort_unstable();
        Ok::<_, anyhow::Error>(all)
    };
    let tcp = (kept, Protocol::Tcp, FlowState::Open);
    let mut expected = vec![
        (ended, Protocol::Tcp, FlowState::Closing),
        // The client has said one word, and heard one.
        (ended, Protocol::Udp, FlowState::Opening),
        tcp,
    ];
    expected.sort_unstable();
    assert_eq!(states()?, expected);
    assert_eq!(flows.sweep()?.removed, 0);
    let now = Duration::from_millis(uptime_millis()?);
    let swept = flows.sweep_at(now + Duration::from_secs(130))?;
    assert_eq!((swept.removed, swept.kept, swept.evicts), (4, 2, false));
    assert_eq!(states()?, [tcp]);
    assert_eq!(say(&mut client)?, only(site.pods[0].addr, 1));
    assert_eq!(flows.sweep_at(now + Duration::from_secs(9_000))?.kept, 0);
    Ok(())
}

/// The kernel's monotonic clock, as `/proc` has it.
fn uptime_millis() -> Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().context("uptime")?;
    Ok(seconds.replace('.', "").parse::<u64>()? * 10)
}

/// With its table full the oldest connections go; new ones are served.
#[test]
fn a_full_table_serves_new_connections() -> Result<()> {
    let mut site = Site::new()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    let addr = SocketAddr::from((NODE[0], NODE_PORT));
    // Twice as many as the table takes: 1024 directions.
    let answer = client.tell(&Say::UdpConnected { addr, times: 1024 })?;
    assert_eq!((answer.total(), answer.errors), (1024, BTreeMap::new()));
    let swept = FlowTable::open(&site.node.bpffs)?.sweep()?;
    assert!(swept.kept <= swept.limit as usize, "{swept:?}");
    assert!(swept.evicts, "{swept:?}");
    Ok(())
}
