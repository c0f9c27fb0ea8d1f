//! Every key of ptp.

use serde_json::{Value, json};
use skiff_tests_cni::compare::{Case, Difference, Step};

use super::{
    ALIAS, KEEP, MASQUERADE, NFT_MASQUERADE, NFT_MASQUERADE_DEL, NO_DAD, OLD_QUEUE, QUEUE,
    dual_stack, ipam, run, with,
};

const COMMON: &[Difference] = &[ALIAS, QUEUE, OLD_QUEUE, NO_PREFIX_ROUTE, NO_DAD, KEEP];

pub(crate) const NO_PREFIX_ROUTE: Difference = Difference {
    path: "* > addresses > eth0 > * > noprefixroute",
    why: "the kernel is told not to make the route of the subnet, in place of deleting it again",
};

pub(crate) fn ptp(name: &str, keys: Value) -> Case {
    Case::new(
        name,
        json!([with(json!({"type": "ptp", "ipam": ipam()}), &keys)]),
    )
}

fn routed(dst: &str) -> Value {
    let mut ipam = ipam();
    ipam["routes"] = json!([{ "dst": dst }]);
    ipam
}

#[test]
fn keys_of_ptp() {
    run(
        COMMON,
        &[
            ptp("ptp", json!({})).two(),
            ptp("route", json!({"ipam": routed("0.0.0.0/0")})),
            ptp("ptp mtu", json!({"mtu": 1400})),
            ptp("ptp dual stack", json!({"ipam": dual_stack()})),
            ptp("ptp ipMasq", json!({"ipMasq": true}))
                .two()
                .differs(&[MASQUERADE]),
            ptp(
                "ptp ipMasq by nftables",
                json!({"ipMasq": true, "ipMasqBackend": "nftables"}),
            )
            .new_only()
            .differs(&[NFT_MASQUERADE, NFT_MASQUERADE_DEL]),
            ptp(
                "dns",
                json!({"dns": {"nameservers": ["10.9.9.9"], "search": ["example.org"]}}),
            ),
            ptp("no ipam", json!({"ipam": {}})).refused(),
            ptp("ptp 0.3.1", json!({})).version("0.3.1").steps(&[
                Step::Add(0),
                Step::Look("added"),
                Step::Del(0),
            ]),
            ptp("ptp 1.1.0", json!({})).version("1.1.0").new_only(),
            ptp("address gone", json!({})).steps(&[
                Step::Add(0),
                Step::Pod("a", "ip addr flush dev eth0"),
                Step::Miss(0),
                Step::Del(0),
                Step::Look("deleted"),
            ]),
        ],
    );
}
