//! NetworkPolicies, from the API's objects to real packets.

mod cluster;
mod look;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use cluster::{BRIDGE, Cluster, attach, new_pod, node_pings, say, serve, tcp, udp, v6};
use serde_json::json;
use skiff_ebpf_loader::PolicyTables;
use skiff_tests_datapath::{
    NODE,
    protocol::{Command as Say, How},
};

const BOTH_WAYS: [bool; 2] = [true, false];

#[test]
fn ingress_is_denied_by_default_and_allowed_by_labels() -> Result<()> {
    for direct in BOTH_WAYS {
        let mut c = Cluster::new(3, direct)?;
        c.expect(1, 0, tcp(80), true)?;
        c.policy(
            "deny",
            &json!({"podSelector": {"matchLabels": {"app": "0"}}, "policyTypes": ["Ingress"]}),
        )?;
        for at in [tcp(80), udp(80), v6(tcp(80)), v6(udp(80))] {
            c.expect(1, 0, at, false)?;
        }
        ensure!(!c.pods[1].pings("eth0", c.pods[0].addr)?);
        // It is about what comes in to that pod only; answers to what it asks for pass.
        c.expect(0, 1, tcp(80), true)?;
        c.expect(0, 1, udp(80), true)?;
        c.expect(0, 1, v6(tcp(80)), true)?;
        c.expect(1, 2, tcp(80), true)?;
        ensure!(
            c.pods[0].pings("eth0", c.pods[1].addr)?,
            "an echo of its own"
        );
        // Its node always reaches it.
        ensure!(node_pings(&c.node, c.pods[0].addr)?);
        c.policy("allow", &json!({
            "podSelector": {"matchLabels": {"app": "0"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "1"}}}], "ports": [{"port": 80}]}],
        }))?;
        c.expect(1, 0, tcp(80), true)?;
        c.expect(1, 0, v6(tcp(80)), true)?;
        c.expect(1, 0, tcp(8080), false)?;
        c.expect(1, 0, udp(80), false)?;
        c.expect(2, 0, tcp(80), false)?;
        ensure!(
            !c.pods[1].pings("eth0", c.pods[0].addr)?,
            "a rule with ports is not for ICMP"
        );
        c.policy("deny", &json!(null))?;
        c.policy("allow", &json!(null))?;
        c.expect(2, 0, udp(8080), true)?;
    }
    Ok(())
}

#[test]
fn egress_is_denied_by_default_and_allowed_by_rules() -> Result<()> {
    for direct in BOTH_WAYS {
        let mut c = Cluster::new(3, direct)?;
        c.policy(
            "deny",
            &json!({"podSelector": {"matchLabels": {"app": "0"}}, "policyTypes": ["Egress"]}),
        )?;
        c.expect(0, 1, tcp(80), false)?;
        c.expect(0, 1, v6(udp(80)), false)?;
        ensure!(!c.pods[0].pings("eth0", BRIDGE)?, "nor the node");
        // Others reach it, and its answers reach them.
        c.expect(1, 0, tcp(80), true)?;
        c.expect(1, 0, v6(udp(80)), true)?;
        ensure!(c.pods[1].pings("eth0", c.pods[0].addr)?);
        ensure!(node_pings(&c.node, c.pods[0].addr)?, "the node's probes");
        // An error is an answer too: nobody listens there.
        let addr = SocketAddr::new(c.pods[0].addr.into(), 9);
        let knock = Say::Ask {
            how: How::Udp,
            addr,
            from: None,
            times: 1,
            patience_ms: 5_000,
        };
        let answer = say(&mut c.probes[1], &knock)?;
        ensure!(answer.errors.get(&111) == Some(&1), "{answer:?}");
        c.policy("allow", &json!({
            "podSelector": {"matchLabels": {"app": "0"}},
            "policyTypes": ["Egress"],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": "1"}}}], "ports": [{"port": "web"}]},
                {"to": [{"podSelector": {"matchLabels": {"app": "2"}}}], "ports": [{"protocol": "UDP", "port": 70, "endPort": 90}]},
            ],
        }))?;
        // Pod 1 calls its port 8080 so.
        c.expect(0, 1, tcp(8080), true)?;
        c.expect(0, 1, tcp(80), false)?;
        c.expect(0, 2, udp(80), true)?;
        c.expect(0, 2, udp(8080), false)?;
        c.expect(0, 2, tcp(80), false)?;
        c.policy(
            "allow",
            &json!({
                "podSelector": {"matchLabels": {"app": "0"}},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "1"}}}]}],
            }),
        )?;
        ensure!(
            c.pods[0].pings("eth0", c.pods[1].addr)?,
            "a rule without ports is for ICMP too"
        );
        ensure!(!c.pods[0].pings("eth0", c.pods[2].addr)?);
    }
    Ok(())
}

#[test]
fn namespaces_are_told_apart_by_their_labels() -> Result<()> {
    let mut c = Cluster::new(4, true)?;
    c.namespace("other", &json!({"kind": "other"}))?;
    c.place(2, "other", &json!({"app": "2"}))?;
    c.place(3, "other", &json!({"app": "1"}))?;
    let from = |peer: serde_json::Value| {
        json!({
            "podSelector": {"matchLabels": {"app": "0"}},
            "ingress": [{"from": [peer]}],
        })
    };
    let other = json!({"matchLabels": {"kind": "other"}});
    for (peer, reaching) in [
        (json!({"namespaceSelector": other}), [false, true, true]),
        (
            json!({"podSelector": {"matchLabels": {"app": "1"}}}),
            [true, false, false],
        ),
        (
            json!({"namespaceSelector": other, "podSelector": {"matchLabels": {"app": "1"}}}),
            [false, false, true],
        ),
        (json!({"namespaceSelector": {}}), [true, true, true]),
    ] {
        c.policy("p", &from(peer))?;
        for (from, reaches) in (1..).zip(reaching) {
            c.expect(from, 0, tcp(80), reaches)?;
        }
    }
    // The namespace becomes another.
    c.policy("p", &from(json!({"namespaceSelector": other})))?;
    c.namespace("other", &json!({"kind": "third"}))?;
    c.sync()?;
    c.expect(2, 0, tcp(80), false)?;
    Ok(())
}

#[test]
fn blocks_of_addresses_have_their_exceptions() -> Result<()> {
    let mut c = Cluster::new(2, true)?;
    let pod = c.pods[0].addr;
    let block = json!({"cidr": "10.88.0.0/16", "except": ["10.88.0.4/30"]});
    c.policy("p", &json!({
        "podSelector": {"matchLabels": {"app": "0"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"ipBlock": block}], "ports": [{"protocol": "UDP", "port": 80}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.77.0.3/32"}}, {"ipBlock": {"cidr": "10.88.0.2/31"}}]}],
    }))?;
    for (last, reaches) in [(2, true), (3, true), (4, false), (5, false)] {
        let source = IpAddr::from([10, 88, 0, last]);
        let addr = SocketAddr::new(pod.into(), 80);
        c.expect_at(None, addr, udp(80), Some(source), reaches)?;
    }
    // Blocks are for pods' addresses too.
    c.expect(0, 1, tcp(80), true)?;
    ensure!(c.pods[0].pings("eth0", Ipv4Addr::new(10, 88, 0, 2))?);
    ensure!(!c.pods[0].pings("eth0", Ipv4Addr::new(10, 88, 0, 4))?);
    ensure!(!c.pods[0].pings("eth0", NODE)?);
    Ok(())
}

#[test]
fn connections_go_on_when_policies_change_and_new_ones_are_judged_anew() -> Result<()> {
    for direct in BOTH_WAYS {
        let mut c = Cluster::new(2, direct)?;
        let addr = SocketAddr::new(c.pods[0].addr.into(), 80);
        let from = |app: &str| {
            json!({
                "podSelector": {"matchLabels": {"app": "0"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}],
            })
        };
        c.policy("p", &from("1"))?;
        let open = Say::Open {
            id: 1,
            how: How::Tcp,
            addr,
            patience_ms: 5_000,
        };
        ensure!(c.probes[1].tell(&open)?.errors.is_empty());
        let goes_on = |c: &mut Cluster| -> Result<()> {
            let say = Say::Say {
                id: 1,
                patience_ms: 5_000,
            };
            let answer = c.probes[1].tell(&say)?;
            ensure!(answer.total() == 1, "{answer:?}");
            Ok(())
        };
        goes_on(&mut c)?;
        c.policy("p", &from("nobody"))?;
        goes_on(&mut c)?;
        c.expect(1, 0, tcp(80), false)?;
        // A pod becomes another by its labels.
        c.label(1, &json!({"app": "nobody"}))?;
        c.sync()?;
        c.expect(1, 0, tcp(80), true)?;
        c.label(1, &json!({"app": "1"}))?;
        c.sync()?;
        c.expect(1, 0, tcp(80), false)?;
        goes_on(&mut c)?;
    }
    Ok(())
}

#[test]
fn policies_outlive_the_daemon_and_are_adopted() -> Result<()> {
    let mut c = Cluster::new(3, true)?;
    c.policy(
        "p",
        &json!({
            "podSelector": {"matchLabels": {"app": "0"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "1"}}}]}],
        }),
    )?;
    c.stop();
    let addr = SocketAddr::new(c.pods[0].addr.into(), 80);
    let knock = |patience_ms| Say::Ask {
        how: How::Tcp,
        addr,
        from: None,
        times: 1,
        patience_ms,
    };
    ensure!(say(&mut c.probes[1], &knock(5_000))?.total() == 1);
    ensure!(say(&mut c.probes[2], &knock(250))?.total() == 0);
    c.start()?;
    // Before anything is written, and also after.
    c.expect(1, 0, tcp(80), true)?;
    c.expect(2, 0, tcp(80), false)?;
    let have = c.daemon()?.policies.tables().clone();
    ensure!(have != PolicyTables::default());
    let change = c.tracker.full_change(&have);
    ensure!(change.is_empty(), "{change:?}");
    c.policy("p", &json!(null))?;
    ensure!(*c.daemon()?.policies.tables() == PolicyTables::default());
    c.expect(2, 0, tcp(80), true)?;
    Ok(())
}

#[test]
fn a_pod_is_closed_until_its_policies_are_known() -> Result<()> {
    let mut c = Cluster::new(2, true)?;
    let mut pod = new_pod(&c.node, 9)?;
    pod.port.closed = true;
    let daemon = c.daemon.as_ref().expect("runs");
    attach(&c.node, &daemon.paths, &[&pod])?;
    c.probes.push(serve(&pod)?);
    c.pods.push(pod);
    for at in [tcp(80), v6(udp(80))] {
        c.expect(0, 2, at, false)?;
        c.expect(2, 0, at, false)?;
    }
    ensure!(node_pings(&c.node, c.pods[2].addr)?, "its node reaches it");
    let ifindex = c.pods[2].port.ifindex;
    c.daemon()?.policies.admit(ifindex)?;
    c.expect(0, 2, tcp(80), true)?;
    c.expect(2, 0, v6(udp(80)), true)?;
    // To attach it again does not close it.
    let daemon = c.daemon.as_ref().expect("runs");
    attach(&c.node, &daemon.paths, &[&c.pods[2]])?;
    c.expect(2, 0, tcp(80), true)?;
    Ok(())
}

#[test]
fn what_is_allowed_before_and_after_a_change_is_never_denied() -> Result<()> {
    let mut c = Cluster::new(3, true)?;
    let allow = |key: &str| {
        json!({
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchExpressions": [{"key": key, "operator": "Exists"}]}}]}],
            "egress": [{"to": [{"podSelector": {"matchExpressions": [{"key": key, "operator": "Exists"}]}}]}],
        })
    };
    for number in 0..3 {
        c.label(
            number,
            &json!({"app": number.to_string(), "a": "", "b": ""}),
        )?;
    }
    c.policy("p", &allow("a"))?;
    let addr = SocketAddr::new(c.pods[0].addr.into(), 80);
    c.probes[1].tell(&Say::StartLoad { addr })?;
    for round in 0..20 {
        c.policy("p", &allow(if round % 2 == 0 { "b" } else { "a" }))?;
        c.policy(
            "q",
            &if round % 3 == 0 {
                json!(null)
            } else {
                allow("app")
            },
        )?;
        c.label(2, &json!({"app": "2", "a": "", "b": round.to_string()}))?;
        c.sync()?;
    }
    c.policy("p", &json!(null))?;
    let answer = c.probes[1].tell(&Say::StopLoad)?;
    ensure!(
        answer.errors.is_empty() && answer.total() > 20,
        "{answer:?}"
    );
    Ok(())
}
