//! What both refuse.

use serde_json::{Value, json};
use skiff_tests_cni::compare::{Case, Difference};

use super::{ipam, ipam_of, run, with};

const COMMON: &[Difference] = &[];

fn bridge(name: &str, keys: Value) -> Case {
    let conf = with(
        json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam()}),
        &keys,
    );
    Case::new(name, json!([conf])).refused()
}

#[test]
fn keys_of_bridge() {
    run(
        COMMON,
        &[
            bridge("mtu of another type", json!({"mtu": "big"})),
            bridge(
                "hairpin and promiscuous",
                json!({"hairpinMode": true, "promiscMode": true}),
            ),
            bridge("a bridge that is none", json!({"bridge": "lo"})),
            bridge("vlan too great", json!({"vlan": 5000})),
            bridge(
                "vlan and trunk",
                json!({"vlan": 5, "vlanTrunk": [{"id": 7}]}),
            )
            .new_only(),
            bridge("trunk without an end", json!({"vlanTrunk": [{"minID": 7}]})).new_only(),
            bridge("mac that is none", json!({"runtimeConfig": {"mac": "zz"}})),
            bridge("ipam that is not there", json!({"ipam": {"type": "nope"}})),
            bridge("ipam of another type", json!({"ipam": []})),
            bridge("no range", json!({"ipam": ipam_of(&json!([]))})),
            bridge(
                "unknown masquerade backend",
                json!({"ipMasq": true, "ipMasqBackend": "nobody"}),
            )
            .new_only(),
            bridge("version", json!({})).version("9.9.9"),
            bridge("version that is none", json!({})).version("x"),
        ],
    );
}

#[test]
fn ranges() {
    let ranges = |name, ranges: Value| bridge(name, json!({"ipam": ipam_of(&ranges)}));
    run(
        COMMON,
        &[
            ranges("host bits", json!([[{"subnet": "10.0.0.1/24"}]])),
            ranges("too small", json!([[{"subnet": "10.0.0.0/31"}]])),
            ranges(
                "start outside",
                json!([[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.5"}]]),
            ),
            ranges(
                "end before start",
                json!([[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.5"}]]),
            ),
            ranges(
                "overlapping",
                json!([[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/16"}]]),
            ),
            ranges(
                "families mixed",
                json!([[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]),
            ),
            ranges("empty set", json!([[]])),
        ],
    );
}
