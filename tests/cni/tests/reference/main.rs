//! Our plugins beside the reference's: the same configurations in fresh namespaces, the same answers, the same state
//! of the kernel after ADD and after DEL. Where ours deviate on purpose the case says so and why; a deviation that is
//! gone must go from the list too.
//!
//! `SKIFF_CASE=WORD` runs only the cases whose name holds the word.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

mod bridge;
mod chained;
mod conflists;
mod host_local;
mod mixed;
mod portmap;
mod ptp;
mod wrong_input;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::{Value, json};
use skiff_tests_cni::{
    Bench,
    compare::{Case, Common, Difference, References},
};

/// Runs all cases of a table, whose cases have the `common` deviations, and tells everything that is not as it should
/// be at once.
fn run(common: &[Difference], cases: &[Case]) {
    let (mut found, common) = verdicts(common, cases);
    if std::env::var("SKIFF_CASE").is_err() {
        found.extend(common.stale());
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The same for a table that need not have all of the common deviations; another one of the plugin's has.
fn run_few(common: &[Difference], cases: &[Case]) {
    let (found, _) = verdicts(common, cases);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Much of a case is waiting for the kernel: some at a time.
const AT_A_TIME: usize = 3;

fn verdicts(common: &[Difference], cases: &[Case]) -> (Vec<String>, Common) {
    let (reference, bench) = (References::find(), Bench::new());
    let only = std::env::var("SKIFF_CASE").unwrap_or_default();
    let cases: Vec<&Case> = cases
        .iter()
        .filter(|case| case.name.contains(&only))
        .collect();
    let (next, state) = (
        AtomicUsize::new(0),
        Mutex::new((Vec::new(), Common::new(common))),
    );
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let told = case.transcripts(&reference, bench.plugins());
                    let mut state = state.lock().unwrap();
                    let (found, common) = &mut *state;
                    found.extend(case.verdict(&told, common));
                }
            });
        }
    });
    state.into_inner().unwrap()
}

/// Whose link it is: GC, and a DEL without the namespace, find it by that.
const ALIAS: Difference = Difference {
    path: "* > node > links > * > ifalias",
    why: "says which attachment the link belongs to, for GC and for a DEL without its namespace",
};

/// Of links that plugins make in the node.
const QUEUE: Difference = Difference {
    path: "* > node > links > * > txqlen",
    why: "the kernel's default; the reference asks for a queue of no length, which shapers fill at once",
};

/// The oldest reference asks for a queue of no length in the container too.
const OLD_QUEUE: Difference = Difference {
    path: "* > links > eth0 > txqlen",
    why: "the kernel's default, as with the newest reference",
};

const KEEP: Difference = Difference {
    path: "* > sysctls > ipv6 > conf > * > keep_addr_on_down",
    why: "as the newest reference has it",
};

/// A network's containers share a chain, one rule each, which goes with the last.
const MASQUERADE: Difference = Difference {
    path: "* > nat*",
    why: "a chain for the network with a rule for each container, in place of a chain for each",
};

const NFT_MASQUERADE: Difference = Difference {
    path: "* > nftables > inet cni_plugins_masquerade*",
    why: "one look-up in a map of containers, in place of a rule for each",
};

/// Of bridge and ptp.
const NFT_MASQUERADE_DEL: Difference = Difference {
    path: "* DEL *",
    why: "the reference also looks for rules of iptables, and fails where iptables tells their absence by exit code 2",
};

/// Our own addresses.
const NO_DAD: Difference = Difference {
    path: "* > addresses > * > nodad",
    why: "an address that host-local gave to nobody else is usable at once",
};

/// host-local for one IPv4 subnet.
fn ipam() -> Value {
    ipam_of(&json!([[{"subnet": "10.99.0.0/24"}]]))
}

/// host-local for these ranges.
fn ipam_of(ranges: &Value) -> Value {
    json!({"type": "host-local", "dataDir": "$DIR/networks", "ranges": ranges})
}

/// host-local for both families.
fn dual_stack() -> Value {
    ipam_of(&json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]))
}

/// The configuration of a plugin, a key of `keys` winning over one of `defaults`.
fn with(mut defaults: Value, keys: &Value) -> Value {
    for (key, value) in keys.as_object().unwrap() {
        defaults[key] = value.clone();
    }
    defaults
}
