use serde_json::{Value, json};

use super::*;
use crate::portmap::config::tests::config;

fn forwarding(keys: &Value, address: &str, container: &str) -> Forwarding {
    Forwarding::new(
        &config(keys),
        address.parse().unwrap(),
        &"net".parse().unwrap(),
        &container.parse().unwrap(),
    )
}

fn keys() -> Value {
    json!({"backend": "nftables", "runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]}})
}

/// The table with what containers have in it.
fn table(forwardings: &[&Forwarding]) -> Table {
    let mut table = Table::default();
    for name in base_chains()
        .map(|(chain, _, _)| chain)
        .into_iter()
        .chain([DNAT])
    {
        table.chains.insert(name.to_owned());
        table.rules.push(Rule {
            chain: name.to_owned(),
            handle: 1,
            comment: String::new(),
        });
    }
    for forwarding in forwardings {
        table.elements.extend(forwarding.elements.clone());
    }
    table
}

#[test]
fn elements_say_it_all() {
    let v4 = forwarding(&keys(), "10.0.0.2/24", "a");
    let written: Vec<String> = v4
        .elements
        .iter()
        .map(|element| format!("{}: {} -> {}", element.set, element.key, element.value))
        .collect();
    assert_eq!(
        written,
        [
            "skiff_hostports: tcp . 8080 -> 10.0.0.2 . 80",
            "skiff_hostip_hostports: 192.0.2.1 . udp . 8081 -> 10.0.0.2 . 81",
            "skiff_masquerade: 10.0.0.0/24 . 10.0.0.2 -> ",
            "skiff_masquerade: 127.0.0.1 . 10.0.0.2 -> ",
        ]
    );
    // The address of the other family is not for this one.
    assert_eq!(forwarding(&keys(), "fd00::2/64", "a").elements.len(), 2);
    let mut all = keys();
    all["masqAll"] = json!(true);
    let all = forwarding(&all, "10.0.0.2/24", "a");
    assert_eq!(all.elements.last().unwrap().key, "0.0.0.0/0 . 10.0.0.2");
}

#[test]
fn conditions_take_rules() {
    let mut keys = keys();
    keys["conditionsV4"] = json!(["ip", "saddr", "192.0.2.0/24"]);
    let v4 = forwarding(&keys, "10.0.0.2/24", "a");
    assert_eq!(
        v4.rules,
        [
            "ip saddr 192.0.2.0/24 fib daddr type local meta l4proto tcp th dport 8080 dnat ip to 10.0.0.2:80",
            "ip saddr 192.0.2.0/24 ip daddr 192.0.2.1 meta l4proto udp th dport 8081 dnat ip to 10.0.0.2:81",
        ]
    );
}

#[test]
fn a_port_belongs_to_whoever_asked_last() {
    let (first, second) = (
        forwarding(&keys(), "10.0.0.2/24", "a"),
        forwarding(&keys(), "10.0.0.3/24", "b"),
    );
    assert!(
        first
            .plan_ensure(None)
            .contains("add table ip cni_hostport")
    );
    let with_first = table(&[&first]);
    assert_eq!(first.plan_ensure(Some(&with_first)), "");
    let script = second.plan_ensure(Some(&with_first));
    assert_eq!(script.matches("delete element").count(), 2, "{script}");
    assert_eq!(script.matches("create element").count(), 4, "{script}");
    // What the first has lost is not its own to remove.
    let mut both = table(&[&second]);
    let left = first
        .elements
        .iter()
        .filter(|element| element.set == SOURCES);
    both.elements.extend(left.cloned());
    let removed = plan_remove(Family::V4, &both, |_, comment| comment == first.comment);
    assert_eq!(removed.lines().count(), 2, "{removed}");
    assert!(
        removed.lines().all(|line| line.contains("10.0.0.2")),
        "{removed}"
    );
}

#[test]
fn the_table_goes_with_the_last_container_unless_it_is_shared() {
    let only = forwarding(&keys(), "10.0.0.2/24", "a");
    let mut table = table(&[&only]);
    let is_doomed = |_: Option<&str>, comment: &str| comment == only.comment;
    assert_eq!(
        plan_remove(Family::V4, &table, is_doomed),
        "delete table ip cni_hostport\n"
    );
    table.chains.insert("hostports".to_owned());
    let script = plan_remove(Family::V4, &table, is_doomed);
    assert_eq!(script.matches("delete element").count(), 4, "{script}");
    assert_eq!(plan_remove(Family::V4, &table, |_, _| false), "");
}
