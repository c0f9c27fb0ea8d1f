use serde_json::{Value, json};

use super::*;
use crate::portmap::config::tests::config;

fn forwarding(keys: &Value, address: &str) -> Forwarding {
    Forwarding::new(
        &config(keys),
        address.parse().unwrap(),
        &"net".parse().unwrap(),
        &"c1".parse().unwrap(),
    )
}

fn keys(more: &Value) -> Value {
    let mut keys = json!({"backend": "iptables", "runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.1"},
        {"hostPort": 8082, "containerPort": 82, "protocol": "tcp", "hostIP": "::"},
    ]}});
    for (key, value) in more.as_object().unwrap() {
        keys[key] = value.clone();
    }
    keys
}

#[test]
fn rules_are_the_reference_plugins() {
    let v4 = forwarding(
        &keys(&json!({"conditionsV4": ["-d", "192.0.2.0/24"]})),
        "10.0.0.2/24",
    );
    let chain = &v4.chain;
    let comment = r#"-m comment --comment "dnat name: \"net\" id: \"c1\"" -m multiport"#;
    assert_eq!(
        v4.entries,
        [
            format!("-p tcp {comment} --dports 8080 -d 192.0.2.0/24 -j {chain}"),
            format!("-p udp {comment} --dports 8081 -d 192.0.2.0/24 -j {chain}"),
        ]
    );
    assert_eq!(
        v4.rules,
        [
            "-s 10.0.0.2/24 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            "-s 127.0.0.1 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            "-p tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80",
            "-s 10.0.0.2/24 -d 192.0.2.1 -p udp --dport 8081 -j CNI-HOSTPORT-SETMARK",
            "-s 127.0.0.1 -d 192.0.2.1 -p udp --dport 8081 -j CNI-HOSTPORT-SETMARK",
            "-d 192.0.2.1 -p udp --dport 8081 -j DNAT --to-destination 10.0.0.2:81",
        ]
    );
    let v6 = forwarding(&keys(&json!({})), "fd00::2/64");
    assert_eq!(
        v6.rules,
        [
            "-s fd00::2/64 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            "-p tcp --dport 8080 -j DNAT --to-destination [fd00::2]:80",
            "-s fd00::2/64 -p tcp --dport 8082 -j CNI-HOSTPORT-SETMARK",
            "-p tcp --dport 8082 -j DNAT --to-destination [fd00::2]:82",
        ]
    );
}

#[test]
fn masquerading_follows_its_keys() {
    let marks = |more: Value| {
        let rules = forwarding(&keys(&more), "10.0.0.2/24").rules;
        rules
            .iter()
            .filter(|rule| !rule.contains("DNAT"))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert!(marks(json!({"snat": false})).is_empty());
    let all = marks(json!({"masqAll": true}));
    assert_eq!(all[0], "-p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK");
    assert_eq!(all.len(), 2);
    let external = marks(json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}));
    assert!(
        external
            .iter()
            .all(|rule| rule.ends_with("-j KUBE-MARK-MASQ"))
    );
    let bit = forwarding(&keys(&json!({"markMasqBit": 5})), "10.0.0.2/24");
    assert!(bit.marking.unwrap().1.contains("--mark 0x20/0x20"));
}

#[test]
fn sixteen_ports_take_two_rules() {
    let mappings: Vec<Value> = (1..=16)
        .map(|port| json!({"hostPort": port, "containerPort": port, "protocol": "tcp"}))
        .collect();
    let keys = json!({"backend": "iptables", "runtimeConfig": {"portMappings": mappings}});
    let entries = forwarding(&keys, "10.0.0.2/24").entries;
    assert_eq!(entries.len(), 2);
    assert!(entries[1].contains("--dports 16 "));
}

/// The table that a plan for an empty one makes, as `iptables-save` would print it.
fn made_by(batch: &Batch) -> Table {
    let mut text = "*nat\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n".to_owned();
    for line in batch.script().lines() {
        if let Some(chain) = line.strip_prefix("-N ") {
            text += &format!(":{chain} - [0:0]\n");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            text += &format!("-A {rule}\n");
        } else if let Some(rule) = line.strip_prefix("-I ") {
            text += &format!("-A {}\n", rule.replacen(" 1 ", " ", 1));
        }
    }
    Table::parse(&text, TABLE)
}

#[test]
fn the_last_container_takes_the_shared_chains_along() {
    let forwarding = forwarding(&keys(&json!({})), "10.0.0.2/24");
    let table = made_by(&forwarding.plan_ensure(&Table::default()));
    let script = plan_remove(&table, |chain| chain == forwarding.chain).script();
    for chain in [&forwarding.chain, DNAT, MASQUERADE, SET_MARK] {
        assert!(script.contains(&format!("-X {chain}\n")), "{script}");
    }
    assert!(plan_remove(&table, |_| false).is_empty());
    // With another container only its own chain goes.
    let other = Table::parse(
        "*nat\n:CNI-HOSTPORT-DNAT -\n:CNI-DN-a -\n:CNI-DN-b -\n\
         -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 1 -j CNI-DN-a\n\
         -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 2 -j CNI-DN-b\n",
        TABLE,
    );
    assert_eq!(
        plan_remove(&other, |chain| chain == "CNI-DN-a").script(),
        "*nat\n-D CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 1 -j CNI-DN-a\n\
         -X CNI-DN-a\nCOMMIT\n"
    );
}

#[test]
fn what_is_shared_goes_after_what_is_not() {
    let forwarding = forwarding(&keys(&json!({})), "10.0.0.2/24");
    let release = forwarding.plan_release().unwrap();
    let own = release.own.script();
    assert!(own.ends_with(&format!("-F {0}\n-X {0}\nCOMMIT\n", forwarding.chain)));
    for shared in ["PREROUTING", "POSTROUTING", "-X CNI-HOSTPORT"] {
        assert!(!own.contains(shared), "{own}");
        assert!(release.shared.script().contains(shared));
    }
    assert!(!release.shared.script().contains(&forwarding.chain));
}

#[test]
fn without_knowing_the_shared_chains_one_has_to_look() {
    let unmarked = forwarding(&keys(&json!({"snat": false})), "10.0.0.2/24");
    assert_eq!(unmarked.plan_release(), None);
    let empty = forwarding(&json!({"backend": "iptables"}), "10.0.0.2/24");
    assert_eq!(empty.plan_release(), None);
}

#[test]
fn a_second_add_replaces_the_chain_and_keeps_the_shared_ones() {
    let forwarding = forwarding(&keys(&json!({})), "10.0.0.2/24");
    let table = made_by(&forwarding.plan_ensure(&Table::default()));
    let script = forwarding.plan_ensure(&table).script();
    assert!(!script.contains("-N CNI-HOSTPORT"), "{script}");
    assert!(
        script.contains(&format!("-X {0}\n-N {0}\n", forwarding.chain)),
        "{script}"
    );
    assert!(
        script.contains(&format!("-F {}\n-D CNI-HOSTPORT-DNAT", forwarding.chain)),
        "{script}"
    );
}
