use skiff_cni::firewall::Family;
use skiff_ebpf_loader::{
    Backend, Frontend, FrontendSpec, IpFamily, Prefix, Protocol, SetId, TableDiff,
};

use super::{
    balance, base,
    chain::{ChainId, Chains, FAMILIES, TableName, is_ours},
    dispatch::{self, Ranges},
    state::State,
};

fn ranges() -> Ranges {
    Ranges {
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        services: vec!["10.96.0.0/16".parse().unwrap()],
    }
}

fn address(addr: &str, port: u16, protocol: Protocol) -> Frontend {
    Frontend::Address {
        addr: addr.parse().unwrap(),
        port,
        protocol,
    }
}

fn backend(addr: &str) -> Backend {
    Backend::new(addr.parse().unwrap(), 8080)
}

fn spec(inside: SetId, outside: Option<SetId>, affinity_seconds: u32) -> FrontendSpec {
    FrontendSpec {
        outside,
        affinity_seconds,
        local_only: outside.is_some_and(|set| set != inside),
        ..FrontendSpec::to(inside)
    }
}

/// All chains of a state.
fn render(state: &State) -> Chains {
    let touched = state.all();
    let mut chains = Chains::new();
    for family in FAMILIES {
        chains.extend(base::chains(state, family, &ranges()));
    }
    chains.extend(dispatch::chains_to(state, &touched.frontends, &ranges()));
    for set in touched.sets {
        chains.extend(balance::chains_of(state, set, &ranges().pods));
    }
    chains
}

/// The chains of one table as lines, without those that are always there.
fn text(chains: &Chains, family: Family, table: TableName) -> String {
    const ALWAYS: [&str; 5] = [
        "SKIFF-MARK-MASQ",
        "SKIFF-MARK-OUTSIDE",
        "SKIFF-POSTROUTING",
        "SKIFF-FORWARD",
        "SKIFF-LOCALNET",
    ];
    let mut text = String::new();
    for (id, rules) in chains {
        let fixed = ALWAYS.contains(&id.name.as_str());
        if id.family != family || id.table != table || fixed {
            continue;
        }
        for rule in rules.iter().flatten() {
            text += &format!("{} {rule}\n", id.name);
        }
    }
    text
}

#[test]
fn a_service_with_affinity_and_one_without_backends_are_these_rules() {
    let (web, none) = (SetId::of(&["web"]), SetId::of(&["none"]));
    let mut state = State::default();
    state.apply(&TableDiff {
        publish: vec![
            (web, vec![backend("10.244.1.9"), backend("10.244.0.5")]),
            (none, Vec::new()),
        ],
        upsert: vec![
            (
                address("10.96.0.80", 80, Protocol::Tcp),
                spec(web, None, 60),
            ),
            (
                address("10.96.0.81", 53, Protocol::Udp),
                spec(none, None, 0),
            ),
        ],
        ..TableDiff::default()
    });
    let chains = render(&state);
    assert_eq!(
        text(&chains, Family::V4, TableName::Nat),
        "\
SKIFF-NET-10.96.0.0_16 -d 10.96.0.0/20 -j SKIFF-NET-10.96.0.0_20
SKIFF-NET-10.96.0.0_20 -d 10.96.0.0/24 -j SKIFF-NET-10.96.0.0_24
SKIFF-NET-10.96.0.0_24 -d 10.96.0.80/28 -j SKIFF-NET-10.96.0.80_28
SKIFF-NET-10.96.0.80_28 -d 10.96.0.80/32 -p tcp -m tcp --dport 80 -j SKIFF-MARK-OUTSIDE
SKIFF-NET-10.96.0.80_28 -d 10.96.0.80/32 -p tcp -m tcp --dport 80 -j SKIFF-SVC-1be6948b4d247261
SKIFF-SEP-6a2d495e4b366b2f -s 10.244.1.9/32 -j SKIFF-MARK-MASQ
SKIFF-SEP-6a2d495e4b366b2f -p tcp -m recent --set --name SKIFF-SEP-6a2d495e4b366b2f --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.1.9:8080
SKIFF-SEP-a6ba4723f38ace31 -s 10.244.0.5/32 -j SKIFF-MARK-MASQ
SKIFF-SEP-a6ba4723f38ace31 -p tcp -m recent --set --name SKIFF-SEP-a6ba4723f38ace31 --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.0.5:8080
SKIFF-SERVICES -d 10.96.0.0/16 -j SKIFF-NET-10.96.0.0_16
SKIFF-SERVICES -m addrtype --dst-type LOCAL -j SKIFF-NODEPORTS
SKIFF-SVC-1be6948b4d247261 -m recent --rcheck --seconds 60 --reap --name SKIFF-SEP-a6ba4723f38ace31 --mask 255.255.255.255 --rsource -j SKIFF-SEP-a6ba4723f38ace31
SKIFF-SVC-1be6948b4d247261 -m recent --rcheck --seconds 60 --reap --name SKIFF-SEP-6a2d495e4b366b2f --mask 255.255.255.255 --rsource -j SKIFF-SEP-6a2d495e4b366b2f
SKIFF-SVC-1be6948b4d247261 -m statistic --mode random --probability 0.50000000000 -j SKIFF-SEP-a6ba4723f38ace31
SKIFF-SVC-1be6948b4d247261 -j SKIFF-SEP-6a2d495e4b366b2f
"
    );
    assert_eq!(
        text(&chains, Family::V4, TableName::Filter),
        "\
SKIFF-NET-10.96.0.0_16 -d 10.96.0.0/20 -j SKIFF-NET-10.96.0.0_20
SKIFF-NET-10.96.0.0_20 -d 10.96.0.0/24 -j SKIFF-NET-10.96.0.0_24
SKIFF-NET-10.96.0.0_24 -d 10.96.0.80/28 -j SKIFF-NET-10.96.0.80_28
SKIFF-NET-10.96.0.80_28 -d 10.96.0.81/32 -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable
SKIFF-SERVICES -d 10.96.0.0/16 -j SKIFF-NET-10.96.0.0_16
SKIFF-SERVICES -m addrtype --dst-type LOCAL -j SKIFF-NODEPORTS
SKIFF-SERVICES -d 10.96.0.0/16 -j REJECT --reject-with icmp-host-unreachable
"
    );
}

#[test]
fn a_load_balancer_with_source_ranges_lets_those_in_and_drops_the_rest() {
    let all = SetId::of(&["all"]);
    let at = address("203.0.113.7", 443, Protocol::Tcp);
    let ranges = ["198.51.100.0/24", "203.0.113.9/32"].map(|text| {
        let range: ipnetwork::IpNetwork = text.parse().unwrap();
        Prefix::of(range.ip(), range.prefix()).unwrap()
    });
    let restricted = FrontendSpec {
        sources: Some(ranges.into()),
        ..spec(all, Some(all), 0)
    };
    let mut state = State::default();
    state.apply(&TableDiff {
        publish: vec![(all, vec![backend("10.244.1.9")])],
        upsert: vec![(at, restricted)],
        ..TableDiff::default()
    });
    let lines = |state: &State, table| {
        let text = text(&render(state), Family::V4, table);
        let lines = text.lines().filter(|line| line.contains("--dport 443"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let chain = "SKIFF-NET-203.0.113.0_28";
    let place = "-d 203.0.113.7/32 -p tcp -m tcp --dport 443";
    let served = "-j SKIFF-EXT-70ff71036ee4f44f";
    assert_eq!(
        lines(&state, TableName::Nat),
        [
            format!("{chain} -s 198.51.100.0/24 {place} {served}"),
            format!("{chain} -s 203.0.113.9/32 {place} {served}"),
        ]
    );
    let filter = |target: &str| vec![format!("{chain} {place} -j {target}")];
    assert_eq!(lines(&state, TableName::Filter), filter("DROP"));
    // Without endpoints everybody is refused.
    state.apply(&TableDiff {
        publish: vec![(all, Vec::new())],
        ..TableDiff::default()
    });
    assert!(lines(&state, TableName::Nat).is_empty());
    let refused = filter("REJECT --reject-with icmp-port-unreachable");
    assert_eq!(lines(&state, TableName::Filter), refused);
}

#[test]
fn external_addresses_and_node_ports_follow_their_policy() {
    let (all, local) = (SetId::of(&["all"]), SetId::of(&["local"]));
    let node_port = Frontend::NodePort {
        family: IpFamily::V4,
        port: 30_080,
        protocol: Protocol::Tcp,
    };
    let mut state = State::default();
    let mut diff = TableDiff {
        publish: vec![(all, vec![backend("10.244.1.9")]), (local, Vec::new())],
        upsert: vec![
            (
                address("203.0.113.7", 443, Protocol::Tcp),
                spec(all, Some(all), 0),
            ),
            (node_port, spec(all, Some(local), 0)),
        ],
        ..TableDiff::default()
    };
    state.apply(&diff);
    let nat = text(&render(&state), Family::V4, TableName::Nat);
    assert_eq!(
        nat,
        "\
SKIFF-EXT-15c08c803a858d57 -s 10.244.0.0/16 -j SKIFF-SVC-00ad8e7ec7101ff4
SKIFF-EXT-15c08c803a858d57 -m addrtype --src-type LOCAL -j SKIFF-MARK-MASQ
SKIFF-EXT-15c08c803a858d57 -m addrtype --src-type LOCAL -j SKIFF-SVC-00ad8e7ec7101ff4
SKIFF-EXT-70ff71036ee4f44f -j SKIFF-MARK-MASQ
SKIFF-EXT-70ff71036ee4f44f -j SKIFF-SVC-00ad8e7ec7101ff4
SKIFF-NET-203.0.0.0_16 -d 203.0.112.0/20 -j SKIFF-NET-203.0.112.0_20
SKIFF-NET-203.0.112.0_20 -d 203.0.113.0/24 -j SKIFF-NET-203.0.113.0_24
SKIFF-NET-203.0.113.0_24 -d 203.0.113.0/28 -j SKIFF-NET-203.0.113.0_28
SKIFF-NET-203.0.113.0_28 -d 203.0.113.7/32 -p tcp -m tcp --dport 443 -j SKIFF-EXT-70ff71036ee4f44f
SKIFF-NODEPORTS -p tcp -m tcp --dport 30080 -j SKIFF-EXT-15c08c803a858d57
SKIFF-SEP-a248450593dcf74e -s 10.244.1.9/32 -j SKIFF-MARK-MASQ
SKIFF-SEP-a248450593dcf74e -p tcp -m tcp -j DNAT --to-destination 10.244.1.9:8080
SKIFF-SERVICES -d 203.0.0.0/16 -j SKIFF-NET-203.0.0.0_16
SKIFF-SERVICES -m addrtype --dst-type LOCAL -j SKIFF-NODEPORTS
SKIFF-SVC-00ad8e7ec7101ff4 -j SKIFF-SEP-a248450593dcf74e
"
    );
    // Outside clients of a port without a local backend are not answered.
    let filter = text(&render(&state), Family::V4, TableName::Filter);
    assert!(filter.contains("SKIFF-NODEPORTS -p tcp -m tcp --dport 30080 -j DROP\n"));

    diff.publish = vec![(local, vec![backend("10.244.0.5")])];
    diff.upsert.clear();
    state.apply(&diff);
    let nat = text(&render(&state), Family::V4, TableName::Nat);
    // Last, without a mark: the client's address stays.
    let local_chain = "SKIFF-EXT-15c08c803a858d57 -j SKIFF-SVC-";
    assert!(nat.contains(local_chain), "{nat}");
    let filter = text(&render(&state), Family::V4, TableName::Filter);
    assert!(!filter.contains("DROP"), "{filter}");
}

#[test]
fn ipv6_has_the_same_rules() {
    let web = SetId::of(&["web"]);
    let mut state = State::default();
    state.apply(&TableDiff {
        publish: vec![(web, vec![backend("fd00::5")])],
        upsert: vec![
            (address("fd96::80", 80, Protocol::Tcp), spec(web, None, 60)),
            (
                address("fd96::81", 80, Protocol::Tcp),
                spec(SetId::of(&["none"]), None, 0),
            ),
        ],
        ..TableDiff::default()
    });
    let nat = text(&render(&state), Family::V6, TableName::Nat);
    for part in [
        "-d fd96::80/128 -p tcp -m tcp --dport 80 -j SKIFF-SVC-",
        "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource",
        "-j DNAT --to-destination [fd00::5]:8080",
        "-s fd00::5/128 -j SKIFF-MARK-MASQ",
    ] {
        assert!(nat.contains(part), "{part}:\n{nat}");
    }
    let filter = text(&render(&state), Family::V6, TableName::Filter);
    let refused =
        "-d fd96::81/128 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp6-port-unreachable";
    assert!(filter.contains(refused), "{filter}");
    assert!(!text(&render(&state), Family::V4, TableName::Nat).contains("fd"));
}

#[test]
fn names_fit_into_iptables_and_every_jump_has_a_chain() {
    let sets: Vec<SetId> = (0..40).map(|n| SetId::of(&[&format!("s{n}")])).collect();
    let mut state = State::default();
    let mut diff = TableDiff::default();
    for (number, set) in (0_u8..).zip(&sets) {
        diff.publish
            .push((*set, vec![backend(&format!("10.244.255.{number}"))]));
        let v4 = format!("255.255.{number}.255");
        let v6 = format!("fdff:ffff:ffff:ffff:ffff:ffff:ffff:{number}");
        let other = sets[usize::from(number) / 2];
        diff.upsert.push((
            address(&v4, 65_535, Protocol::Udp),
            spec(*set, Some(other), 1),
        ));
        diff.upsert
            .push((address(&v6, 65_535, Protocol::Tcp), spec(*set, None, 0)));
    }
    state.apply(&diff);
    let chains = render(&state);
    for (id, rules) in &chains {
        assert!(id.name.len() <= 28 && is_ours(&id.name), "{id:?}");
        for rule in rules.iter().flatten() {
            let target = rule.split("-j ").nth(1).unwrap();
            if is_ours(target) {
                let target = ChainId::new(id.family, id.table, target);
                assert!(chains.get(&target).is_some_and(Option::is_some), "{rule}");
            }
        }
    }
}

#[test]
fn a_change_touches_what_depends_on_it() {
    let (all, local) = (SetId::of(&["all"]), SetId::of(&["local"]));
    let (one, other) = (
        address("10.96.0.1", 80, Protocol::Tcp),
        address("10.96.0.2", 80, Protocol::Tcp),
    );
    let mut state = State::default();
    state.apply(&TableDiff {
        publish: vec![(all, vec![backend("10.244.1.9")]), (local, Vec::new())],
        upsert: vec![
            (one, spec(all, Some(local), 0)),
            (other, spec(all, None, 0)),
        ],
        ..TableDiff::default()
    });
    let touched = state.apply(&TableDiff {
        publish: vec![(local, vec![backend("10.244.1.9")])],
        ..TableDiff::default()
    });
    // The way in from outside is written with the set for clients inside.
    assert_eq!(touched.sets, [all, local].into());
    assert_eq!(touched.frontends, [one].into());
    let touched = state.apply(&TableDiff {
        remove_frontends: vec![one],
        remove_sets: vec![local],
        ..TableDiff::default()
    });
    assert_eq!(touched.sets, [all, local].into());
    assert_eq!(touched.frontends, [one].into());
    assert_eq!(state.users(all).count(), 1);
    assert_eq!(state.users(local).count(), 0);
}
