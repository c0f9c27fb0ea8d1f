use super::*;
use crate::overlay::{NodeTable, Settings, Underlay, Vni, table::tests::node};

fn overlay(change: impl Fn(&mut Settings)) -> Overlay {
    let mut settings = Settings {
        vni: Vni::new(7).unwrap(),
        port: 8472,
        mtu: None,
        underlay: Underlay::default(),
        node: None,
        cluster_cidrs: Vec::new(),
    };
    change(&mut settings);
    let nodes = vec![
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.0.0/24"]),
        node("b", &["192.0.2.2"], &["10.0.1.0/24", "fd00:b::/64"]),
    ];
    Overlay::new(settings, NodeTable::new(nodes).unwrap()).unwrap()
}

fn addresses(list: &[&str]) -> Vec<(u32, IpNetwork)> {
    let addresses = list.iter().map(|address| address.parse().unwrap());
    (1..).zip(addresses).collect()
}

#[test]
fn a_node_is_found_by_its_addresses() {
    let here = addresses(&["127.0.0.1/8", "2001:db8::1/64", "192.0.2.1/24"]);
    let site = plan_site(&overlay(|_| {}), &here, None).unwrap();
    // The entry's first address counts, whatever the kernel lists first.
    assert_eq!((&*site.node.name, site.link), ("a", 3));
    let by_device = plan_site(&overlay(|_| {}), &here, Some(2)).unwrap();
    assert_eq!((by_device.local.is_ipv6(), by_device.link), (true, 2));
    let only_v6 = overlay(|s| s.underlay.address = "2001:db8::1".parse().ok());
    assert!(plan_site(&only_v6, &here, None).unwrap().local.is_ipv6());
}

#[test]
fn a_node_that_is_none_or_two_of_the_table_is_refused() {
    let here = addresses(&["192.0.2.9/24"]);
    let error = plan_site(&overlay(|_| {}), &here, None).unwrap_err();
    assert!(matches!(error, OverlayError::NotInTable { .. }), "{error}");
    let both = addresses(&["192.0.2.1/24", "192.0.2.2/24"]);
    let error = plan_site(&overlay(|_| {}), &both, None).unwrap_err();
    assert!(matches!(error, OverlayError::Ambiguous { .. }), "{error}");
    let named = overlay(|s| s.node = Some("b".to_owned()));
    assert_eq!(plan_site(&named, &both, None).unwrap().node.name, "b");
    let here = addresses(&["192.0.2.1/24"]);
    assert!(plan_site(&named, &here, None).is_err());
    let unknown = overlay(|s| s.node = Some("c".to_owned()));
    assert!(plan_site(&unknown, &both, None).is_err());
}

#[test]
fn the_mtu_is_what_the_underlay_leaves() {
    let site = |ip: &str, index: usize| {
        let overlay = overlay(|_| {});
        let mut site = plan_site(&overlay, &addresses(&["192.0.2.1/24"]), None).unwrap();
        site.node = overlay.nodes()[index].clone();
        site.local = ip.parse().unwrap();
        site
    };
    let plain = overlay(|_| {});
    assert_eq!(site("192.0.2.1", 0).mtu(&plain, 1500).unwrap(), 1450);
    assert_eq!(site("2001:db8::1", 0).mtu(&plain, 1500).unwrap(), 1430);
    assert_eq!(site("192.0.2.2", 1).mtu(&plain, 9000).unwrap(), 8950);
    // What the pods' families need at least.
    assert!(site("192.0.2.1", 0).mtu(&plain, 600).is_err());
    assert!(site("192.0.2.2", 1).mtu(&plain, 1329).is_err());
    assert_eq!(site("192.0.2.2", 1).mtu(&plain, 1330).unwrap(), 1280);
    let wished = |mtu| overlay(move |s| s.mtu = Some(mtu));
    assert_eq!(site("192.0.2.1", 0).mtu(&wished(1400), 1500).unwrap(), 1400);
    for bad in [1, 575, 1451, u32::MAX] {
        assert!(site("192.0.2.1", 0).mtu(&wished(bad), 1500).is_err());
    }
}

#[test]
fn clusters_hold_podcidrs_and_no_underlay() {
    let new = |cluster: &str| {
        let good = overlay(|_| {});
        let mut settings = good.settings().clone();
        settings.cluster_cidrs = vec![cluster.parse().unwrap(), "fd00::/16".parse().unwrap()];
        Overlay::new(settings, NodeTable::new(good.nodes().to_vec()).unwrap())
    };
    assert!(new("10.0.0.0/16").is_ok());
    let error = new("10.0.0.0/24").unwrap_err().to_string();
    assert!(error.contains("10.0.1.0/24"), "{error}");
    let error = new("128.0.0.0/1").unwrap_err().to_string();
    assert!(error.contains("podCIDR"), "{error}");
    let settings = overlay(|_| {}).settings().clone();
    let far = vec![node("a", &["10.0.9.9"], &["10.0.0.0/24"])];
    let settings = Settings {
        cluster_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        ..settings
    };
    let error = Overlay::new(settings, NodeTable::new(far).unwrap()).unwrap_err();
    assert!(error.to_string().contains("underlay address"), "{error}");
}

#[test]
fn numbers_are_checked() {
    for vni in [0, 1 << 24, u32::MAX] {
        assert!(Vni::new(vni).is_err(), "{vni}");
    }
    assert!(Vni::new((1 << 24) - 1).unwrap().device().len() <= 15);
    let port_zero = Settings {
        port: 0,
        ..overlay(|_| {}).settings().clone()
    };
    let table = NodeTable::new(Vec::new()).unwrap();
    assert!(matches!(
        Overlay::new(port_zero, table),
        Err(OverlayError::Port)
    ));
}
