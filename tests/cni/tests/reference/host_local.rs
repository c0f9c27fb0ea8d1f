//! host-local, alone and as others call it.

use serde_json::{Value, json};
use skiff_tests_cni::compare::{Case, Difference, ONE, Step};

use super::{ipam_of, run, with};

const COMMON: &[Difference] = &[];

pub(crate) fn host_local(name: &str, keys: Value) -> Case {
    let ipam = with(
        json!({"type": "host-local", "dataDir": "$DIR/networks"}),
        &keys,
    );
    Case::new(name, json!([{"type": "host-local", "ipam": ipam}]))
}

fn ranges(name: &str, ranges: Value) -> Case {
    host_local(name, json!({"ranges": ranges}))
}

#[test]
fn ranges_of_host_local() {
    run(
        COMMON,
        &[
            host_local("old form", json!({"subnet": "10.1.2.0/24"})),
            host_local("old form with all keys", json!({
                "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.3",
            })),
            ranges("one", json!([[{"subnet": "10.1.2.0/24"}]])).two(),
            ranges("start, end, gateway", json!([[
                {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.12"},
            ]]))
            .two(),
            ranges("several sets", json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}], [{"subnet": "10.7.0.0/16"}]])),
            ranges("the next range of a set", json!([[
                {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.5"}, {"subnet": "10.1.3.0/24"},
            ]]))
            .two(),
            ranges("gateway outside", json!([[{"subnet": "10.0.0.0/24", "gateway": "10.7.0.1"}]])),
            ranges("point to point", json!([[{"subnet": "10.1.2.0/31"}]])).refused(),
            ranges("exhausted", json!([[{"subnet": "10.1.2.0/30"}]]))
                .two()
                .steps(&[Step::Add(0), Step::Refuse(1), Step::Look("exhausted"), Step::Del(0), Step::Add(1), Step::Look("free again")]),
            ranges("last address is followed by the first", json!([[
                {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.8", "rangeEnd": "10.1.2.9"},
            ]]))
            .steps(&[Step::Add(0), Step::Del(0), Step::Add(0), Step::Del(0), Step::Add(0), Step::Look("third")]),
        ],
    );
}

#[test]
fn routes_and_dns() {
    run(
        COMMON,
        &[
            host_local("routes", json!({
                "ranges": [[{"subnet": "10.1.2.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.1.2.9"}],
            })),
            host_local("routes of 1.1", json!({
                "ranges": [[{"subnet": "10.1.2.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 0}],
            }))
            .version("1.1.0")
            .new_only(),
            host_local("resolvConf", json!({"ranges": [[{"subnet": "10.1.2.0/24"}]], "resolvConf": "/etc/resolv.conf"})),
        ],
    );
}

fn requested(name: &str) -> Case {
    let ipam = ipam_of(&json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]));
    Case::new(
        name,
        json!([{
            "type": "host-local", "capabilities": {"ips": true, "ipRanges": true}, "ipam": ipam,
        }]),
    )
}

#[test]
fn requested_addresses() {
    run(
        COMMON,
        &[
            requested("of a capability").given(json!({"ips": ["10.1.2.77"]})),
            requested("of a capability with a length")
                .given(json!({"ips": ["10.1.2.77/24", "fd01::77/64"]}))
                .new_only(),
            requested("of CNI_ARGS").args("IP=10.1.2.78"),
            Case::new(
                "of args",
                json!([{
                    "type": "host-local", "args": {"cni": {"ips": ["10.1.2.79"]}}, "ipam": ipam_of(&json!([[{"subnet": "10.1.2.0/24"}]])),
                }]),
            ),
            requested("outside of all ranges")
                .given(json!({"ips": ["10.9.9.9"]}))
                .refused(),
            requested("the gateway's")
                .given(json!({"ips": ["10.1.2.1"]}))
                .refused(),
            requested("ipRanges").given(json!({"ipRanges": [[{"subnet": "10.4.4.0/24"}]]})),
            requested("not an address")
                .given(json!({"ips": ["x"]}))
                .refused(),
        ],
    );
}

#[test]
fn of_two_containers() {
    let mut taken = requested("one address for two").two();
    for attachment in &mut taken.attachments {
        attachment.capabilities = json!({"ips": ["10.1.2.77"]});
    }
    let mut two_interfaces = requested("two interfaces");
    two_interfaces
        .attachments
        .push(skiff_tests_cni::runtime::Attachment {
            ifname: "net1",
            ..skiff_tests_cni::runtime::Attachment::new("a")
        });
    run(
        COMMON,
        &[
            taken.steps(&[
                Step::Add(0),
                Step::Refuse(1),
                Step::Look("refused"),
                Step::Del(0),
            ]),
            two_interfaces.steps(&[
                Step::Add(0),
                Step::Add(1),
                Step::Look("added"),
                Step::Del(0),
                Step::Look("one deleted"),
            ]),
            requested("ADD twice").steps(&[Step::Add(0), Step::Refuse(0), Step::Look("refused")]),
            requested("lease gone").steps(&[
                Step::Add(0),
                Step::Look("added"),
                Step::Del(0),
                Step::Miss(0),
            ]),
            requested("0.3.1")
                .version("0.3.1")
                .steps(&[Step::Add(0), Step::Del(0)]),
            requested("0.4.0").version("0.4.0").steps(ONE),
            requested("1.1.0").version("1.1.0").steps(ONE).new_only(),
        ],
    );
}
