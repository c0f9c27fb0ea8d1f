//! What another process sees of the policies in force: the same as the packets do.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skiff_ebpf_loader::{
    AllowedPorts, PolicyDirection, PolicyInspector, PolicyTables, PolicyVerdict, TraceHook,
    TraceVerdict, Traced, Tracer, Want,
};

use crate::cluster::{Cluster, tcp, udp, v6};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn passes(tables: &PolicyTables, from: IpAddr, to: IpAddr, at: (u8, u16)) -> bool {
    let out = tables.judge(PolicyDirection::Egress, from, to, at);
    let into = tables.judge(PolicyDirection::Ingress, to, from, at);
    [out, into].iter().all(|v| *v != PolicyVerdict::Denied)
}

#[test]
fn what_is_judged_by_the_tables_is_what_becomes_of_packets() -> Result<()> {
    let mut c = Cluster::new(3, true)?;
    let inspector = PolicyInspector::open(&c.node.bpffs)?;
    ensure!(inspector.tables()? == PolicyTables::default());
    c.policy("in", &json!({
        "podSelector": {"matchLabels": {"app": "0"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "1"}}}], "ports": [{"port": 70, "endPort": 90}]}],
    }))?;
    c.policy(
        "out",
        &json!({
            "podSelector": {"matchLabels": {"app": "2"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.77.0.3/32"}}], "ports": [{"protocol": "UDP"}]}],
        }),
    )?;
    let tables = inspector.tables()?;
    ensure!(tables == *c.daemon()?.policies.tables(), "{tables:#?}");
    let addrs: Vec<IpAddr> = c.pods.iter().map(|pod| pod.addr.into()).collect();
    for (from, to) in [(0, 1), (1, 0), (2, 0), (2, 1)] {
        for (at, code) in [
            (tcp(80), (TCP, 80)),
            (tcp(8080), (TCP, 8080)),
            (udp(80), (UDP, 80)),
        ] {
            let expected = passes(&tables, addrs[from], addrs[to], code);
            c.expect(from, to, at, expected)?;
        }
    }
    // The block is of IPv4 only.
    c.expect(2, 1, v6(udp(80)), false)?;
    ensure!(!tables.identities().is_empty());
    let links = inspector.links()?;
    let asking: Vec<IpAddr> = links
        .iter()
        .filter(|link| link.asks)
        .flat_map(|link| link.addrs.iter().copied())
        .filter(IpAddr::is_ipv4)
        .collect();
    ensure!(asking == [addrs[0], addrs[2]], "{links:#?}");
    Ok(())
}

#[test]
fn the_rule_that_allows_is_told() -> Result<()> {
    let mut c = Cluster::new(2, true)?;
    c.policy("in", &json!({
        "podSelector": {"matchLabels": {"app": "0"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "1"}}}], "ports": [{"port": 80, "endPort": 87}]}],
    }))?;
    let tables = PolicyInspector::open(&c.node.bpffs)?.tables()?;
    let (subject, peer) = (c.pods[0].addr.into(), c.pods[1].addr.into());
    let verdict = tables.judge(PolicyDirection::Ingress, subject, peer, (TCP, 85));
    let PolicyVerdict::Allowed(rule) = verdict else {
        anyhow::bail!("{verdict:?}");
    };
    let range = AllowedPorts::Range {
        protocol: TCP,
        first: 80,
        last: 87,
    };
    ensure!(rule.ports == range, "{rule:?}");
    ensure!(rule.subject == tables.id(subject) && rule.peer == Some(tables.id(peer)));
    let who = tables.ids.get(&peer).context("it has an identity")?;
    ensure!(!PolicyDirection::Ingress.isolates(*who));
    Ok(())
}

/// What is told of the packets of one knock, to or from that port.
fn heard(tracer: &mut Tracer, port: u16) -> Result<Traced> {
    for _ in 0..10 {
        let events = tracer.next_events()?;
        let found = events.into_iter().find(|event| event.asked.port() == port);
        if let Some(found) = found {
            return Ok(found);
        }
    }
    anyhow::bail!("nothing was told of port {port}")
}

#[test]
fn a_tracer_hears_of_denied_packets() -> Result<()> {
    for direct in [true, false] {
        let mut c = Cluster::new(2, direct)?;
        let about = json!({"matchLabels": {"app": "0"}});
        c.policy(
            "none",
            &json!({"podSelector": about, "policyTypes": ["Ingress", "Egress"]}),
        )?;
        let tables = PolicyInspector::open(&c.node.bpffs)?.tables()?;
        let [own, other]: [IpAddr; 2] = [c.pods[0].addr.into(), c.pods[1].addr.into()];
        let ids = Some((tables.id(own), tables.id(other)));
        let links = [c.pods[0].port.ifindex, c.pods[1].port.ifindex];
        let want = Want {
            addr: Some(own),
            ..Want::default()
        };
        let mut tracer = Tracer::start(&c.node.bpffs, want)?;
        c.expect(1, 0, tcp(80), false)?;
        let event = heard(&mut tracer, 80)?;
        ensure!(event.verdict == TraceVerdict::DeniedIngress, "{event:?}");
        let hook = if direct {
            TraceHook::PodEgress
        } else {
            TraceHook::PodIngress
        };
        ensure!(event.hook == hook, "{event:?}");
        ensure!(event.ip_protocol == TCP && event.identities == ids);
        ensure!(event.client.ip() == other && event.asked.ip() == own);
        ensure!(event.ifindex == Some(links[0]), "{event:?}");
        c.expect(0, 1, udp(8080), false)?;
        let event = heard(&mut tracer, 8080)?;
        ensure!(event.verdict == TraceVerdict::DeniedEgress, "{event:?}");
        ensure!(event.ip_protocol == UDP && event.identities == ids);
        ensure!(event.client.ip() == own && event.asked.ip() == other);
        // What has another address is not asked for.
        c.pods[1].pings("eth0", c.pods[1].addr)?;
        drop(tracer);
        let mut tracer = Tracer::start(&c.node.bpffs, want)?;
        ensure!(tracer.next_events()?.is_empty());
    }
    Ok(())
}
