//! The order of writes: packets are judged by the state before a change or by the one after it.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{
    PolicyChange, PolicyTables, Prefix,
    plan::{Pair, plan},
};

fn addr(number: u8) -> IpAddr {
    IpAddr::from([10, number / 8, 0, number % 8])
}

fn prefix(number: u8) -> Prefix {
    let lens = [0, 8, 16, 24, 30, 32];
    let len = lens[usize::from(number) % lens.len()];
    Prefix::of(addr(number), len).unwrap()
}

fn any_tables() -> impl Strategy<Value = PolicyTables> {
    let ids = proptest::collection::vec((0..16_u8, 1..5_u32), 0..8);
    let cidrs = proptest::collection::vec((0..16_u8, 1..5_u32), 0..6);
    (ids, cidrs).prop_map(|(ids, cidrs)| PolicyTables {
        ids: ids.into_iter().map(|(n, id)| (addr(n), id)).collect(),
        cidrs: cidrs.into_iter().map(|(n, id)| (prefix(n), id)).collect(),
        rules: [].into(),
    })
}

/// What the kernel finds for an address, `next` or not, after the first writes of a plan.
fn found(before: &PolicyTables, writes: &super::plan::Plan, addr: IpAddr, next: bool) -> u32 {
    let side = |pair: &Pair| if next { pair.next } else { pair.now };
    let (mut ids, mut cidrs) = (before.ids.clone(), before.cidrs.clone());
    for (addr, pair) in &writes.addrs {
        ids.insert(*addr, side(pair));
    }
    for (prefix, pair) in &writes.prefixes {
        cidrs.insert(*prefix, side(pair));
    }
    let rules = [].into();
    PolicyTables { ids, cidrs, rules }.id(addr)
}

proptest! {
    #[test]
    fn prop_both_states_are_whole(before in any_tables(), after in any_tables()) {
        let change = PolicyChange::between(&before, &after);
        let mut tables = before.clone();
        let writes = plan(&mut tables, &change);
        prop_assert_eq!(&tables, &after);
        let moved = (0..16).filter(|n| before.id(addr(*n)) != after.id(addr(*n))).count();
        for number in 0..16 {
            let addr = addr(number);
            prop_assert_eq!(found(&before, &writes, addr, false), before.id(addr));
            prop_assert_eq!(found(&before, &writes, addr, true), after.id(addr));
        }
        let in_place = !writes.switch && writes.prefixes.is_empty();
        prop_assert!(!in_place || moved <= 1, "{} identities change in place", moved);
    }

    #[test]
    fn prop_the_difference_leads_there(before in any_tables(), after in any_tables()) {
        let mut tables = before.clone();
        tables.make(&PolicyChange::between(&before, &after));
        prop_assert_eq!(&tables, &after);
        prop_assert!(PolicyChange::between(&tables, &after).is_empty());
    }
}

#[test]
fn a_new_pod_is_written_in_place_with_both_its_addresses() {
    let addrs = [addr(1), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])];
    let change = PolicyChange {
        ids: addrs.map(|addr| (addr, Some(7))).to_vec(),
        fresh: addrs.into(),
        ..PolicyChange::default()
    };
    assert!(!plan(&mut PolicyTables::default(), &change).switch);
    let known = PolicyChange {
        fresh: [].into(),
        ..change
    };
    assert!(plan(&mut PolicyTables::default(), &known).switch);
}

#[test]
fn prefixes_hold_what_is_in_them() {
    let prefix = |text: &str, len| Prefix::of(text.parse().unwrap(), len);
    let ten = prefix("10.1.2.3", 8).unwrap();
    assert_eq!(ten, prefix("10.0.0.0", 8).unwrap());
    assert!(ten.contains("10.255.0.1".parse().unwrap()));
    assert!(!ten.contains("11.0.0.1".parse().unwrap()));
    assert!(!ten.contains("::ffff:10.0.0.1".parse().unwrap()));
    assert!(prefix("0.0.0.0", 0).unwrap().covers(ten));
    assert!(!ten.covers(prefix("0.0.0.0", 0).unwrap()));
    assert!(
        prefix("::", 0)
            .unwrap()
            .contains("fd00::1".parse().unwrap())
    );
    assert_eq!(prefix("10.0.0.0", 33), None);
    assert_eq!(prefix("::", 129), None);
}
