use serde_json::{Value, json};
use skiff_cni::{
    skel::{Call, Command},
    types::{CniVersion, NetConf},
};

use super::*;

/// A call with these keys beside what every configuration has.
pub(in crate::portmap) fn call(keys: &Value) -> Call {
    let mut raw = keys.as_object().unwrap().clone();
    raw.insert("name".into(), "net".into());
    raw.insert("type".into(), "portmap".into());
    Call {
        command: Command::Add,
        conf: NetConf::from_value(CniVersion::LATEST, raw).unwrap(),
        args: Vec::new(),
        path: Vec::new(),
    }
}

pub(in crate::portmap) fn config(keys: &Value) -> Config {
    Config::new(&call(keys)).unwrap()
}

fn refusal(keys: &Value) -> String {
    Config::new(&call(keys)).unwrap_err().to_string()
}

fn mappings(mapping: &Value) -> Value {
    json!({"backend": "iptables", "runtimeConfig": {"portMappings": [mapping]}})
}

#[test]
fn defaults_are_the_reference_plugins() {
    let config = config(&json!({"backend": "iptables"}));
    assert_eq!(config.masquerade, Masquerading::Bit(13));
    assert!(config.mappings.is_empty() && !config.masq_all);
}

#[test]
fn mappings_are_checked() {
    let good = json!({"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "::"});
    let mapping = config(&mappings(&good)).mappings[0];
    assert_eq!(mapping.protocol, Protocol::Tcp);
    // Any address of one family.
    assert_eq!(mapping.host_ip, None);
    assert!(mapping.is_for(Family::V6) && !mapping.is_for(Family::V4));
    for (key, value, expected) in [
        ("hostPort", json!(0), "invalid hostPort 0"),
        ("hostPort", json!(65_536), "invalid hostPort 65536"),
        ("containerPort", json!(-1), "invalid containerPort -1"),
        ("protocol", json!("icmp"), "invalid protocol"),
        ("protocol", json!(""), "invalid protocol"),
        ("hostIP", json!("1.2.3"), "invalid hostIP"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let said = refusal(&mappings(&bad));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_names_a_backend_must_agree() {
    let backend = |keys: Value| config(&keys).backend;
    assert_eq!(
        backend(json!({"conditionsV4": ["-d", "1.2.3.4"]})),
        Backend::Iptables
    );
    assert_eq!(
        backend(json!({"conditionsV6": ["ip6", "daddr", "::1"]})),
        Backend::Nftables
    );
    assert_eq!(backend(json!({"markMasqBit": 3})), Backend::Iptables);
    for (keys, expected) in [
        (json!({"backend": "ipfw"}), "unknown firewall backend"),
        (
            json!({"backend": "nftables", "markMasqBit": 3}),
            "iptables backend only",
        ),
        (
            json!({"backend": "nftables", "conditionsV4": ["-d", "1.2.3.4"]}),
            "the other backend",
        ),
        (
            json!({"conditionsV4": ["-d"], "conditionsV6": ["ip6"]}),
            "different backends",
        ),
        (json!({"conditionsV4": ["-d\nCOMMIT"]}), "invalid word"),
        (json!({"conditionsV4": ["ip", "; flush"]}), "invalid word"),
        (json!({"markMasqBit": 32}), "between 0 and 31"),
        (
            json!({"markMasqBit": 1, "externalSetMarkChain": "X"}),
            "cannot have both",
        ),
        (
            json!({"externalSetMarkChain": "-F X"}),
            "invalid externalSetMarkChain",
        ),
    ] {
        let said = refusal(&keys);
        assert!(said.contains(expected), "{keys}: {said}");
    }
}

#[test]
fn the_addresses_are_those_of_this_link() {
    let call = call(&json!({"prevResult": {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/x"}, {"name": "eth1", "sandbox": "/x"}],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.9.2/24", "interface": 2},
            {"address": "10.0.0.2/24", "interface": 1},
            {"address": "10.0.0.3/24", "interface": 1},
            {"address": "fd00::2/64"},
        ],
    }}));
    let target = Target {
        container_id: "c1".parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
        netns: None,
    };
    assert_eq!(
        addresses(&call, &target),
        [
            (Family::V4, "10.0.0.2/24".parse().unwrap()),
            (Family::V6, "fd00::2/64".parse().unwrap()),
        ]
    );
}
