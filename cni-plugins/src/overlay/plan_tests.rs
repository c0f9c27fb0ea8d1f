use super::*;
use crate::{
    netlink::Link,
    overlay::{NodeTable, Settings, Underlay, Vni, plan_site, table::tests::node},
};

fn settings() -> Settings {
    Settings {
        vni: Vni::new(7).unwrap(),
        port: 8472,
        mtu: None,
        underlay: Underlay::default(),
        node: None,
        cluster_cidrs: Vec::new(),
    }
}

fn nodes() -> Vec<Node> {
    vec![
        node("a", &["192.0.2.1"], &["10.0.0.0/24", "fd00:0:0:a::/64"]),
        node("b", &["192.0.2.2"], &["10.0.1.0/24", "fd00:0:0:b::/64"]),
        node("c", &["192.0.2.3"], &["10.0.2.0/24", "10.0.3.0/24"]),
    ]
}

fn overlay(nodes: Vec<Node>) -> Overlay {
    Overlay::new(settings(), NodeTable::new(nodes).unwrap()).unwrap()
}

fn addresses() -> Vec<(u32, IpNetwork)> {
    ["127.0.0.1/8", "192.0.2.1/24", "2001:db8::1/64"]
        .iter()
        .zip(1..)
        .map(|(address, index)| (index, address.parse().unwrap()))
        .collect()
}

fn wanted(nodes: Vec<Node>) -> Wanted {
    let overlay = overlay(nodes);
    let site = plan_site(&overlay, &addresses(), None).unwrap();
    Wanted::new(&overlay, &site, 1500).unwrap()
}

/// The state after `plan` was applied to `observed`.
fn applied(mut observed: Observed, plan: &EntryPlan) -> Observed {
    let set_fdb = &plan.set_fdb;
    observed.fdb.retain(|old| {
        !plan.delete_fdb.contains(old) && !set_fdb.iter().any(|new| new.mac == old.mac)
    });
    observed.fdb.extend(set_fdb.iter().cloned());
    let set = &plan.set_neighbours;
    observed.neighbours.retain(|old| {
        !plan.delete_neighbours.contains(old) && !set.iter().any(|new| new.ip == old.ip)
    });
    observed.neighbours.extend(set.iter().cloned());
    let replaced = &plan.replace_routes;
    observed.routes.retain(|old| {
        !plan.delete_routes.contains(old) && !replaced.iter().any(|new| new.dst == old.dst)
    });
    observed.routes.extend(replaced);
    observed.routes.extend(&plan.add_routes);
    observed
        .addresses
        .retain(|old| !plan.delete_addresses.contains(old));
    observed.addresses.extend(&plan.add_addresses);
    observed
}

#[test]
fn every_other_node_costs_one_forwarding_entry_and_a_route_per_cidr() {
    let wanted = wanted(nodes());
    assert_eq!((wanted.fdb.len(), wanted.routes.len()), (2, 4));
    // b has both families, c only IPv4.
    assert_eq!(wanted.neighbours.len(), 3);
    assert_eq!(wanted.mtu, 1450);
    assert_eq!(wanted.addresses, ["10.0.0.0/32".parse().unwrap()]);
    let via = |dst: &str| wanted.routes[&dst.parse::<IpNetwork>().unwrap()];
    assert_eq!(via("10.0.3.0/24"), via("10.0.2.0/24"));
    let mac = wanted.neighbours[&via("fd00:0:0:b::/64")];
    assert_eq!(mac, wanted.neighbours[&via("10.0.1.0/24")]);
    assert_eq!(wanted.fdb[&mac].to_string(), "192.0.2.2");
}

#[test]
fn what_is_applied_needs_nothing_more() {
    let wanted = wanted(nodes());
    let plan = plan_entries(&wanted, &Observed::default());
    assert_eq!(plan.set_count(), 10);
    let observed = applied(Observed::default(), &plan);
    assert_eq!(plan_entries(&wanted, &observed), EntryPlan::default());
}

#[test]
fn a_node_that_leaves_takes_its_entries_along_and_nothing_else() {
    let full = applied(
        Observed::default(),
        &plan_entries(&wanted(nodes()), &Observed::default()),
    );
    let mut rest = nodes();
    rest.pop();
    let plan = plan_entries(&wanted(rest), &full);
    assert_eq!((plan.set_count(), plan.delete_count()), (0, 4));
    assert_eq!(plan.delete_routes.len(), 2);
}

#[test]
fn a_podcidr_that_moves_is_replaced_in_one_step() {
    let full = applied(
        Observed::default(),
        &plan_entries(&wanted(nodes()), &Observed::default()),
    );
    let mut moved = nodes();
    let cidr = moved[2].pod_cidrs.remove(1);
    moved[1].pod_cidrs.push(cidr);
    let wanted = wanted(moved);
    let plan = plan_entries(&wanted, &full);
    assert_eq!(plan.replace_routes.len(), 1);
    assert_eq!((plan.set_count(), plan.delete_count()), (1, 0));
    assert_eq!(
        plan_entries(&wanted, &applied(full, &plan)),
        EntryPlan::default()
    );
}

#[test]
fn strangers_entries_on_the_device_go() {
    let wanted = wanted(nodes());
    let clean = applied(
        Observed::default(),
        &plan_entries(&wanted, &Observed::default()),
    );
    let mut observed = clean.clone();
    let ip: IpAddr = "203.0.113.9".parse().unwrap();
    observed.fdb.push(FdbEntry {
        mac: [0; 6],
        remote: ip,
    });
    // The same VTEP at a second place, too.
    observed.fdb.push(FdbEntry {
        mac: observed.fdb[0].mac,
        remote: ip,
    });
    observed.neighbours.push(Neighbour { ip, mac: [2; 6] });
    observed.neighbours[0].mac = [2; 6];
    observed.addresses.push("203.0.113.1/24".parse().unwrap());
    observed.addresses.push("fe80::1/64".parse().unwrap());
    observed.routes.push(Path {
        dst: "10.9.0.0/24".parse().unwrap(),
        gateway: ip,
    });
    let plan = plan_entries(&wanted, &observed);
    assert_eq!(
        (plan.delete_fdb.len(), plan.delete_neighbours.len()),
        (2, 1)
    );
    assert_eq!(
        (plan.delete_routes.len(), plan.delete_addresses.len()),
        (1, 1)
    );
    assert_eq!(plan.set_neighbours.len(), 1);
    assert_eq!(plan.set_count(), 1);
}

#[test]
fn a_device_is_kept_adjusted_or_made_anew() {
    let wanted = wanted(nodes());
    let found = VxlanLink {
        link: Link {
            index: 9,
            name: wanted.device.clone(),
            kind: "vxlan".to_owned(),
            mac: wanted.mac.to_vec(),
            mtu: wanted.mtu,
            up: true,
            ..Link::default()
        },
        vni: wanted.vni,
        port: wanted.port,
        local: Some(wanted.local),
        underlay: None,
        learning: false,
        external: false,
    };
    let keep = |set_mtu, set_up| DeviceStep::Keep { set_mtu, set_up };
    assert_eq!(plan_device(&wanted, None), DeviceStep::Create);
    assert_eq!(plan_device(&wanted, Some(&found)), keep(false, false));
    let mut other = found.clone();
    (other.link.mtu, other.link.up) = (1400, false);
    assert_eq!(plan_device(&wanted, Some(&other)), keep(true, true));
    for change in [
        |found: &mut VxlanLink| found.port = 4789,
        |found: &mut VxlanLink| found.vni = 8,
        |found: &mut VxlanLink| found.local = None,
        |found: &mut VxlanLink| found.underlay = Some(2),
        |found: &mut VxlanLink| found.learning = true,
        |found: &mut VxlanLink| found.external = true,
        |found: &mut VxlanLink| found.link.mac = vec![2; 6],
    ] {
        let mut other = found.clone();
        change(&mut other);
        assert_eq!(plan_device(&wanted, Some(&other)), DeviceStep::Recreate);
    }
}

#[test]
fn nodes_must_be_reachable_over_the_same_family() {
    let mut nodes = nodes();
    nodes[1].underlay = vec!["2001:db8::2".parse().unwrap()];
    let overlay = overlay(nodes);
    let site = plan_site(&overlay, &addresses(), None).unwrap();
    let error = Wanted::new(&overlay, &site, 1500).unwrap_err().to_string();
    assert!(error.contains("\"b\"") && error.contains("IPv4"), "{error}");
}

#[test]
fn a_vtep_address_that_two_have_is_refused() {
    let mut nodes = nodes();
    nodes[1].vtep_mac = Some(VtepMac::derive(
        Vni::new(7).unwrap(),
        "192.0.2.3".parse().unwrap(),
    ));
    let overlay = overlay(nodes);
    let site = plan_site(&overlay, &addresses(), None).unwrap();
    assert!(matches!(
        Wanted::new(&overlay, &site, 1500),
        Err(OverlayError::Conflict { .. })
    ));
}
