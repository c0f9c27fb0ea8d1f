//! A node changes its plugins while containers run: what one side made the other one checks and takes away.
//!
//! Both sides have used the network before, so what each makes once and leaves there (the bridge, chains, sysctls) is
//! there already; then nothing may be left at all.

use std::{path::Path, thread};

use serde_json::json;
use skiff_tests_cni::{
    Bench,
    compare::{Case, Common, Difference, References, Step},
    state::{self, Deviation},
};

use super::{bridge, chained, conflists, host_local, portmap, ptp};

/// Both sides once, and then one container.
const STEPS: &[Step] = &[
    Step::Add(1),
    Step::Del(1),
    Step::Add(1),
    Step::Del(1),
    Step::Look("before"),
    Step::Add(0),
    Step::Check(0),
    Step::Del(0),
    Step::Look("after"),
];
const FIRST: std::ops::Range<usize> = 0..2;
const ADD: usize = 5;

/// Both ways.
const ALWAYS: &[Difference] = &[
    Difference {
        path: "* > files > *last_reserved_ip.*",
        why: "the next address is looked for behind the last one",
    },
    Difference {
        path: "* > sysctls > ipv4 > conf > * > route_localnet",
        why: "nobody takes it back: other containers have ports too",
    },
];

/// Added by the reference, checked and deleted by ours.
const TO_OURS: &[Difference] = &[
    Difference {
        path: "* > CHECK",
        why: "ours expect links and rules of their own making; DEL finds the reference's all the same",
    },
    Difference {
        path: "portmap by nftables > * cni_hostport*",
        why: "empty chains of the reference, which it leaves itself",
    },
];

/// Added by ours, deleted by the reference: for what it does not find, our GC must be asked.
const FROM_OURS: &[Difference] = &[
    Difference {
        path: "* > DEL",
        why: "the reference fails where rules that it would have made are not there",
    },
    Difference {
        path: "* > node > ip*tables > nat*",
        why: "a chain of the network in place of one of the container",
    },
    Difference {
        path: "* > node > nftables > *",
        why: "maps of our own in place of rules",
    },
    Difference {
        path: "* > filter > SKIFF-FW-OWNERS",
        why: "a note for our GC",
    },
];

fn cases() -> Vec<Case> {
    let ports = portmap::many();
    vec![
        bridge::bridge("bridge", json!({"isGateway": true})),
        bridge::bridge("ipMasq", json!({"isGateway": true, "ipMasq": true})),
        bridge::bridge(
            "ipMasq by nftables",
            json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables"}),
        )
        .new_only(),
        bridge::bridge(
            "macspoofchk",
            json!({"isGateway": true, "macspoofchk": true}),
        ),
        portmap::portmap("portmap", json!({})),
        portmap::both_families("portmap of both families", json!({})).given(ports.clone()),
        portmap::both_families("portmap by nftables", json!({"backend": "nftables"})).given(ports),
        ptp::ptp("ptp", json!({"ipMasq": true})),
        chained::tuning(
            "tuning",
            json!({"mtu": 1300, "promisc": true, "mac": "0a:11:22:33:44:55"}),
        ),
        chained::bandwidth(
            "bandwidth",
            json!({
                "ingressRate": 8_000_000, "ingressBurst": 1_600_000, "egressRate": 8_000_000, "egressBurst": 1_600_000,
            }),
        ),
        chained::firewall("firewall", json!({"ingressPolicy": "same-bridge"})),
        host_local::host_local(
            "host-local",
            json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]}),
        ),
        conflists::podman(),
        conflists::k3s(),
        conflists::kind(),
    ]
}

/// Adds with the plugins of `adder`, checks and deletes with those of `deleter`; tells what is not as it should be.
fn change(case: &Case, adder: &Path, deleter: &Path) -> Vec<Deviation> {
    let mut case = case.clone();
    if case.attachments.len() < 2 {
        case = case.two();
    }
    STEPS.clone_into(&mut case.steps);
    let told = case.transcript_by(|number| {
        if number == ADD || FIRST.contains(&number) {
            adder
        } else {
            deleter
        }
    });
    let mut found = state::differences(&told["4 before"], &told["8 after"]);
    for (step, name) in [("5 ADD", "ADD"), ("6 CHECK", "CHECK"), ("7 DEL", "DEL")] {
        let answer = &told[format!("{step} a eth0")];
        if answer["outcome"] != "ok" {
            found.push(Deviation {
                path: name.to_owned(),
                left: None,
                right: Some(answer.clone()),
            });
        }
    }
    for deviation in &mut found {
        deviation.path = format!("{} > {}", case.name, deviation.path);
    }
    found
}

/// Runs all cases one way, and tells what is neither as it was nor explained.
fn all(title: &str, known: &[Difference], change: impl Fn(&Case) -> Vec<Deviation>) -> Vec<String> {
    let only = std::env::var("SKIFF_CASE").unwrap_or_default();
    let mut known = Common::new(&[ALWAYS, known].concat());
    let mut left = Vec::new();
    for case in cases().iter().filter(|case| case.name.contains(&only)) {
        left.extend(change(case));
    }
    left.retain(|deviation| !known.mark(&deviation.path));
    let mut found = Vec::new();
    if !left.is_empty() {
        found.push(format!(
            "{title}, before and after:\n{}",
            state::show(&left)
        ));
    }
    if only.is_empty() {
        found.extend(known.stale());
    }
    found
}

#[test]
fn a_node_changes_its_plugins() {
    let (reference, bench) = (References::find(), Bench::new());
    let ours = bench.plugins();
    let to_ours = |case: &Case| {
        let mut found = change(case, &reference.new, ours);
        if case.old {
            found.extend(change(case, &reference.old, ours));
        }
        found
    };
    let from_ours = |case: &Case| {
        let mut found = change(case, ours, &reference.new);
        // What the reference thinks of ours is its own affair.
        found.retain(|deviation| !deviation.path.ends_with("> CHECK"));
        found
    };
    let mut found = thread::scope(|scope| {
        let there = scope.spawn(|| all("from the reference to ours", TO_OURS, to_ours));
        let mut found = all("from ours to the reference", FROM_OURS, from_ours);
        found.extend(there.join().unwrap());
        found
    });
    found.sort();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}
