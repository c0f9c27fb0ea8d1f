use super::*;

pub(crate) fn node(name: &str, underlay: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        underlay: underlay.iter().map(|ip| ip.parse().unwrap()).collect(),
        pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        vtep_mac: None,
    }
}

fn refused(nodes: Vec<Node>) -> String {
    NodeTable::new(nodes).unwrap_err().to_string()
}

#[test]
fn a_table_is_sorted_by_name_and_may_be_empty() {
    let table = NodeTable::new(vec![
        node(
            "b",
            &["192.0.2.2", "2001:db8::2"],
            &["10.0.1.0/24", "fd00:1::/64"],
        ),
        node("a", &["192.0.2.1"], &["10.0.0.0/24"]),
    ])
    .unwrap();
    assert_eq!(table.nodes()[0].name, "a");
    assert!(NodeTable::new(Vec::new()).unwrap().nodes().is_empty());
}

#[test]
fn an_entry_that_makes_no_sense_is_named() {
    let good = ["10.0.0.0/24"];
    for (underlay, cidrs) in [
        (&[][..], &good[..]),
        (&["127.0.0.1"], &good),
        (&["0.0.0.0"], &good),
        (&["169.254.1.1"], &good),
        (&["224.0.0.1"], &good),
        (&["fe80::1"], &good),
        (&["::ffff:192.0.2.1"], &good),
        (&["192.0.2.1", "192.0.2.2"], &good),
        (&["192.0.2.1"], &[]),
        (&["192.0.2.1"], &["10.0.0.1/24"]),
        (&["192.0.2.1"], &["0.0.0.0/0"]),
        (&["192.0.2.1"], &["10.0.0.0/31"]),
        (&["192.0.2.1"], &["fd00::/127"]),
        (&["192.0.2.1"], &["224.0.0.0/24"]),
        (&["10.0.0.9"], &good),
    ] {
        let error = refused(vec![node("worker", underlay, cidrs)]);
        assert!(
            error.starts_with("node \"worker\": "),
            "{underlay:?} {cidrs:?}: {error}"
        );
    }
    assert!(refused(vec![node("", &["192.0.2.1"], &good)]).contains("name"));
}

#[test]
fn two_entries_cannot_have_the_same() {
    let a = node("a", &["192.0.2.1"], &["10.0.0.0/24", "fd00::/64"]);
    for (b, what) in [
        (node("a", &["192.0.2.2"], &["10.0.1.0/24"]), "the same name"),
        (node("b", &["192.0.2.1"], &["10.0.1.0/24"]), "192.0.2.1"),
        (node("b", &["192.0.2.2"], &["10.0.0.0/24"]), "10.0.0.0/24"),
        (
            node("b", &["192.0.2.2"], &["10.0.0.128/25"]),
            "10.0.0.128/25",
        ),
        (node("b", &["192.0.2.2"], &["10.0.0.0/8"]), "10.0.0.0/8"),
        (node("b", &["192.0.2.2"], &["fd00::/32"]), "fd00::/32"),
    ] {
        let error = refused(vec![a.clone(), b]);
        assert!(error.contains(what), "{what}: {error}");
    }
    let mac = "02:00:00:00:00:01".parse().ok();
    let with_mac = |name, underlay, cidr| Node {
        vtep_mac: mac,
        ..node(name, &[underlay], &[cidr])
    };
    let error = refused(vec![
        with_mac("a", "192.0.2.1", "10.0.0.0/24"),
        with_mac("b", "192.0.2.2", "10.0.1.0/24"),
    ]);
    assert!(error.contains("02:00:00:00:00:01"), "{error}");
}

#[test]
fn an_underlay_address_in_a_far_podcidr_is_found() {
    let nodes = vec![
        node("a", &["10.9.0.5"], &["10.0.0.0/24"]),
        node("b", &["192.0.2.2"], &["10.9.0.0/16"]),
        node("c", &["192.0.2.3"], &["10.10.0.0/16"]),
    ];
    assert!(refused(nodes).contains("10.9.0.0/16"));
}

#[test]
fn ten_thousand_nodes_are_checked_in_no_time() {
    let nodes: Vec<Node> = (0..10_000u32)
        .map(|i| {
            let underlay = std::net::Ipv4Addr::from_bits(0xc0a8_0000 + i).to_string();
            let cidr = format!(
                "{}/24",
                std::net::Ipv4Addr::from_bits(0x0a00_0000 + (i << 8))
            );
            node(&format!("n{i}"), &[&underlay], &[&cidr])
        })
        .collect();
    let start = std::time::Instant::now();
    NodeTable::new(nodes).unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
}

#[test]
fn unknown_keys_are_refused() {
    let text = r#"{"name":"a","underlay":["192.0.2.1"],"podCIDRs":["10.0.0.0/24"],"podCidr":"x"}"#;
    assert!(serde_json::from_str::<Node>(text).is_err());
}
