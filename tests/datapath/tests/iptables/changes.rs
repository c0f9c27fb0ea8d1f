//! What a change writes, and what it leaves alone.

use std::collections::BTreeMap;

use anyhow::Result;
use skiff_ebpf_loader::{Backend, DesiredTables, Protocol};
use skiff_service_proxy::{Iptables, RuleWrites};
use skiff_tests_datapath::{
    BridgedNode, Probe, TARGET,
    protocol::{Command, How},
};

use crate::{PROGRAM, Rules, address, backends, inside, names, set};

const DNS: &str = "10.96.0.10:53";

fn dns(numbers: &[usize]) -> DesiredTables {
    DesiredTables {
        sets: [(set("dns"), backends(numbers))].into(),
        frontends: [(address(DNS, Protocol::Udp), inside(set("dns")))].into(),
    }
}

/// Opens a UDP socket that stays.
fn open(client: &mut Probe, addr: &str) -> Result<()> {
    let open = Command::Open {
        id: 0,
        how: How::Udp,
        addr: addr.parse()?,
        patience_ms: 1500,
    };
    client.tell(&open).map(drop)
}

fn ask(client: &mut Probe) -> Result<Vec<String>> {
    let say = Command::Say {
        id: 0,
        patience_ms: 1500,
    };
    Ok(client.tell(&say)?.names.into_keys().collect())
}

#[tokio::test]
async fn a_udp_flow_leaves_a_backend_that_is_removed_and_keeps_one_that_stays() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    let mut rules = Rules::open(&node).await?;
    rules.program(&dns(&[0]))?;
    let mut client = node.pod(2)?;
    open(&mut client, DNS)?;
    assert_eq!(ask(&mut client)?, names(&[0]));
    rules.program(&dns(&[0, 1]))?;
    for _ in 0..10 {
        assert_eq!(ask(&mut client)?, names(&[0]));
    }
    rules.program(&dns(&[1]))?;
    assert_eq!(ask(&mut client)?, names(&[1]));
    // A restart changes nothing either.
    Rules::open(&node).await?.program(&dns(&[0, 1]))?;
    for _ in 0..10 {
        assert_eq!(ask(&mut client)?, names(&[1]));
    }
    Ok(())
}

#[tokio::test]
async fn a_udp_flow_that_came_before_its_service_gets_there_once_it_is_ready() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    let mut rules = Rules::open(&node).await?;
    let mut client = node.outside()?;
    // An external address: nothing refuses it before it is a Service's.
    const EXTERNAL: &str = "203.0.113.9:53";
    open(&mut client, EXTERNAL)?;
    rules.program(&DesiredTables::default())?;
    // Let through, and not answered.
    assert!(ask(&mut client)?.is_empty());
    let mut tables = dns(&[0]);
    tables
        .frontends
        .insert(address(EXTERNAL, Protocol::Udp), inside(set("dns")));
    rules.program(&tables)?;
    assert_eq!(ask(&mut client)?, names(&[0]));
    Ok(())
}

fn many(count: u16, first: &[Backend]) -> DesiredTables {
    let mut tables = DesiredTables::default();
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let id = set(&format!("s{number}"));
        let members = (1..=3).map(|pod| {
            let addr = std::net::Ipv4Addr::new(10, 240 + pod, high, low);
            Backend::new(addr.into(), TARGET)
        });
        let members = if number == 0 {
            first.to_vec()
        } else {
            members.collect()
        };
        tables.sets.insert(id, members);
        let frontend = address(&format!("10.96.{high}.{low}:80"), Protocol::Tcp);
        tables.frontends.insert(frontend, inside(id));
    }
    tables
}

#[tokio::test]
async fn a_change_writes_its_chains_only_and_a_restart_none() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    let mut rules = Rules::open(&node).await?;
    rules.program(&many(300, &backends(&[0])))?;
    let begun = rules.iptables.writes();
    assert!(begun.chains > 1200 && begun.removed == 0, "{begun:?}");

    // One backend more: its chain, and the one that chooses.
    rules.program(&many(300, &backends(&[0, 1])))?;
    let one = since(rules.iptables.writes(), begun);
    let expected = RuleWrites {
        chains: 2,
        removed: 0,
        rules: 4,
        runs: 1,
    };
    assert_eq!(one, expected);

    let adopted = Rules::open(&node).await?;
    let mut adopted = adopted;
    adopted.program(&many(300, &backends(&[0, 1])))?;
    assert_eq!(adopted.iptables.writes(), RuleWrites::default());

    // Gone while nobody ran: the Service's own chains, and those on the way that hold nothing else.
    let mut again = Rules::open(&node).await?;
    let mut tables = many(300, &backends(&[0, 1]));
    tables.sets.remove(&set("s299"));
    let gone = address("10.96.1.43:80", Protocol::Tcp);
    assert!(tables.frontends.remove(&gone).is_some());
    again.program(&tables)?;
    let writes = again.iptables.writes();
    assert_eq!((writes.removed, writes.runs), (4, 1), "{writes:?}");
    Ok(())
}

fn since(now: RuleWrites, before: RuleWrites) -> RuleWrites {
    RuleWrites {
        chains: now.chains - before.chains,
        removed: now.removed - before.removed,
        rules: now.rules - before.rules,
        runs: now.runs - before.runs,
    }
}

#[tokio::test]
async fn what_others_flushed_is_written_again() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let _servers = node.serving_pods()?;
    let mut rules = Rules::open(&node).await?;
    let tables = many(3, &backends(&[0]));
    rules.program(&tables)?;
    node.run("iptables", &["-t", "nat", "-F"])?;
    node.run("iptables", &["-t", "nat", "-X"])?;
    // The change that finds it out fails; the next one looks.
    let changed = many(3, &backends(&[0, 1]));
    if rules.program(&changed).is_err() {
        rules.program(&changed)?;
    }
    let answer = node.pod(2)?.tell(&Command::Tcp {
        addr: "10.96.0.0:80".parse()?,
        times: 5,
    })?;
    assert_eq!(answer.errors, BTreeMap::new());
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_after_removal_and_foreign_rules_stay() -> Result<()> {
    let node = BridgedNode::new(PROGRAM)?;
    let saved = |program: &str| -> Result<Vec<String>> {
        let text = node.run(program, &[])?;
        let lines = text.lines().filter(|line| line.starts_with("-A"));
        Ok(lines.map(str::to_owned).collect())
    };
    node.run(
        "iptables",
        &[
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-s",
            "10.9.9.9/32",
            "-j",
            "MASQUERADE",
        ],
    )?;
    let before = (saved("iptables-save")?, saved("ip6tables-save")?);
    let mut rules = Rules::open(&node).await?;
    rules.program(&many(20, &backends(&[0])))?;
    assert!(saved("iptables-save")?.len() > 100);
    let ranges = ["10.96.0.0/16".parse()?];
    Iptables::remove(&node.node_netns()?, &ranges).await?;
    assert_eq!((saved("iptables-save")?, saved("ip6tables-save")?), before);
    let chains = node.run("iptables-save", &[])?;
    assert!(!chains.contains("SKIFF"), "{chains}");
    let routes = node.run("ip", &["route", "show", "10.96.0.0/16"])?;
    assert!(!routes.contains("up0"), "{routes}");
    // Absent is success.
    Iptables::remove(&node.node_netns()?, &ranges).await?;
    Ok(())
}
