//! The lists that others ship.

use std::fs;

use serde_json::{Value, json};
use skiff_tests_cni::compare::{Case, Difference};

use super::{ALIAS, MASQUERADE, OLD_QUEUE, QUEUE, run, with};
use super::{
    bridge::{DAD, PORT_RA},
    chained::{OWNERS, REDIRECT},
    portmap::{OLD_CHECK, TIDY},
    ptp::NO_PREFIX_ROUTE,
};

fn ports() -> Value {
    json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]})
}

/// Podman's default network, from Debian's package.
pub(crate) fn podman() -> Case {
    let text = fs::read_to_string("/etc/cni/net.d/87-podman-bridge.conflist").unwrap();
    let mut list: Value = serde_json::from_str(&text).unwrap();
    list["plugins"][0]["ipam"]["dataDir"] = json!("$DIR/networks");
    let mut case = Case::new("podman", json!([])).given(ports()).two();
    case.lists = vec![list];
    case
}

/// What flannel makes of k3s' list: its delegate, and what stands behind it.
pub(crate) fn k3s() -> Case {
    let bridge = json!({
        "type": "bridge", "hairpinMode": true, "forceAddress": true, "isDefaultGateway": true, "isGateway": true,
        "ipMasq": false, "mtu": 1450,
        "ipam": {
            "type": "host-local", "dataDir": "$DIR/networks", "ranges": [[{"subnet": "10.42.0.0/24"}]],
            "routes": [{"dst": "10.42.0.0/16"}],
        },
    });
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let limits = json!({"bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 1_600_000, "egressRate": 8_000_000, "egressBurst": 1_600_000,
    }});
    Case::new("k3s", json!([bridge, portmap, bandwidth]))
        .given(with(ports(), &limits))
        .two()
}

/// kind's list.
pub(crate) fn kind() -> Case {
    let ptp = json!({
        "type": "ptp", "ipMasq": false, "mtu": 1500,
        "ipam": {
            "type": "host-local", "dataDir": "$DIR/state", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.244.0.0/24"}]],
        },
    });
    Case::new(
        "kind",
        json!([ptp, {"type": "portmap", "capabilities": {"portMappings": true}}]),
    )
    .version("0.4.0")
    .given(ports())
    .two()
}

#[test]
fn stock_conflists() {
    let common = &[ALIAS, QUEUE, OLD_QUEUE, PORT_RA, DAD, TIDY];
    let routes = Difference {
        path: "* CHECK * > outcome",
        why: "the oldest reference looks for a route without the gateway that it gave to it",
    };
    run(
        common,
        &[
            podman()
                .differs(&[MASQUERADE, OWNERS])
                .differs_from_old(&[OLD_CHECK]),
            k3s().differs(&[REDIRECT]).differs_from_old(&[routes]),
            kind()
                .differs(&[NO_PREFIX_ROUTE])
                .differs_from_old(&[OLD_CHECK]),
        ],
    );
}
