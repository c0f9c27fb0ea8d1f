use super::*;

fn network() -> NetworkName {
    "net".parse().unwrap()
}

fn wanted(name: &str, address: &str) -> Vec<Wanted> {
    Wanted::all(
        &network(),
        &[address.parse().unwrap()],
        &name.parse().unwrap(),
    )
}

/// The table as it is with these pods.
fn table(pods: &[(&str, &str)]) -> Table {
    let mut table = Table::default();
    for family in Family::BOTH {
        table.sets.insert(map_of(family).to_owned());
    }
    let mut chain = |name: &str| {
        table.chains.insert(name.to_owned());
        table.rules.push(nft::Rule {
            chain: name.to_owned(),
            handle: 1,
            comment: String::new(),
        });
    };
    chain(BASE_CHAIN);
    for (name, address) in pods {
        chain(&wanted(name, address)[0].chain);
    }
    for (name, address) in pods {
        let wanted = &wanted(name, address)[0];
        table.elements.push(nft::Element {
            set: wanted.map().to_owned(),
            key: wanted.ip.to_string(),
            value: format!("goto {}", wanted.chain),
            comment: wanted.comment.clone(),
        });
    }
    table
}

fn plan_delete(table: &Table, name: &str) -> String {
    let (network, container): (_, ContainerId) = (network(), name.parse().unwrap());
    plan_remove(
        table,
        &Removal {
            network: &network,
            doomed: &|owner, _| owner.is_container(&container),
            container: Some(&container),
        },
    )
}

#[test]
fn a_table_is_made_once_and_elements_join_it() {
    let first = plan_ensure(None, &wanted("a", "10.0.0.2/24"));
    assert!(first.starts_with("create table inet cni_plugins_masquerade\n"));
    assert!(first.contains("ip daddr 10.0.0.0/24 return"));
    assert!(first.contains("{ 10.0.0.2 comment \"name:net id:a\" : goto skiff_"));
    let there = table(&[("a", "10.0.0.2/24")]);
    assert_eq!(plan_ensure(Some(&there), &wanted("a", "10.0.0.2/24")), "");
    let second = plan_ensure(Some(&there), &wanted("b", "10.0.0.3/24"));
    assert_eq!(second.lines().count(), 1, "{second}");
    let taken = plan_ensure(Some(&there), &wanted("b", "10.0.0.2/24"));
    assert!(taken.starts_with("delete element"), "{taken}");
    assert!(taken.contains("id:b"), "{taken}");
}

#[test]
fn only_the_owner_of_an_address_removes_it() {
    let two = table(&[("a", "10.0.0.2/24"), ("b", "10.0.0.3/24")]);
    assert_eq!(
        plan_delete(&two, "a"),
        "delete element inet cni_plugins_masquerade skiff_pods4 { 10.0.0.2 }\n"
    );
    assert_eq!(plan_delete(&two, "c"), "");
    let other_subnet = table(&[("a", "10.0.0.2/24"), ("b", "fd00::3/64")]);
    let plan = plan_delete(&other_subnet, "a");
    assert_eq!(plan.matches("chain").count(), 2, "{plan}");
}

#[test]
fn the_table_goes_with_the_last_pod_unless_it_is_shared() {
    let mut one = table(&[("a", "10.0.0.2/24")]);
    assert_eq!(
        plan_delete(&one, "a"),
        "delete table inet cni_plugins_masquerade\n"
    );
    one.chains.insert(REFERENCE_CHAIN.to_owned());
    let plan = plan_delete(&one, "a");
    assert!(!plan.contains("delete table"), "{plan}");
    assert!(plan.contains("delete chain inet cni_plugins_masquerade skiff_postrouting"));
    assert!(plan.contains("delete map inet cni_plugins_masquerade skiff_pods6"));
}

#[test]
fn the_reference_plugins_rules_go_by_handle() {
    let mut shared = table(&[("b", "10.0.0.3/24")]);
    shared.chains.insert(REFERENCE_CHAIN.to_owned());
    for (handle, id) in [(7, "a"), (8, "b")] {
        shared.rules.push(nft::Rule {
            chain: REFERENCE_CHAIN.to_owned(),
            handle,
            comment: format!("0-0, net: net, if: eth0, id: {id}"),
        });
    }
    assert_eq!(
        plan_delete(&shared, "a"),
        "delete rule inet cni_plugins_masquerade masq_checks handle 7\n"
    );
}
