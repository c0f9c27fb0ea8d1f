//! Every key of the bridge plugin.

use serde_json::{Value, json};
use skiff_tests_cni::{
    compare::{Case, Difference, Step, TWO},
    runtime::Attachment,
};

use super::{
    ALIAS, KEEP, MASQUERADE, NFT_MASQUERADE, NFT_MASQUERADE_DEL, NO_DAD, OLD_QUEUE, QUEUE,
    dual_stack, ipam, ipam_of, run, run_few, with,
};

const COMMON: &[Difference] = &[ALIAS, QUEUE, OLD_QUEUE, PORT_RA, DAD, NO_DAD, KEEP];

/// Of the node's ends of veths.
pub(crate) const PORT_RA: Difference = Difference {
    path: "* > node > sysctls > ipv6 > conf > veth(* > accept_ra",
    why: "a port hands all it receives to its bridge, which takes no router advertisements",
};

pub(crate) const DAD: Difference = Difference {
    path: "* > sysctls > ipv6 > conf > eth0 > accept_dad",
    why: "without an IPv6 address of ours there is none whose check could delay the container",
};

const NO_IPAM_CHECK: Difference = Difference {
    path: "* CHECK a eth0 > *",
    why: "the reference asks for an IPAM plugin that the network does not have",
};

const MTU: Difference = Difference {
    path: "* ADD *> result > interfaces > * > mtu",
    why: "the protocol has it since 1.1.0",
};

/// A port keeps its carrier up.
const BRIDGE_WITH_CARRIER: &str =
    "ip link add br0 type bridge && ip link add p0 up type veth peer name p1 &&
    ip link set p1 up && ip link set p0 master br0 && ip link set br0 up";

/// A network of one bridge with these keys.
pub(crate) fn bridge(name: &str, keys: Value) -> Case {
    Case::new(name, json!([conf(keys)]))
}

fn conf(keys: Value) -> Value {
    with(
        json!({"type": "bridge", "bridge": "br0", "ipam": ipam()}),
        &keys,
    )
}

#[test]
fn keys_of_bridge() {
    run(
        COMMON,
        &[
            bridge("no key", json!({})),
            Case::new(
                "default bridge",
                json!([{"type": "bridge", "ipam": ipam()}]),
            ),
            bridge("isGateway", json!({"isGateway": true})),
            bridge("isDefaultGateway", json!({"isDefaultGateway": true})),
            bridge("mtu", json!({"mtu": 1400})),
            bridge("hairpinMode", json!({"hairpinMode": true})),
            bridge("promiscMode", json!({"promiscMode": true})),
            bridge(
                "enabledad",
                json!({"enabledad": true, "isGateway": true, "ipam": dual_stack()}),
            )
            .new_only(),
            bridge(
                "disableContainerInterface",
                json!({"disableContainerInterface": true, "ipam": {}}),
            )
            .new_only()
            .after(&[Step::Node(BRIDGE_WITH_CARRIER)])
            .differs(&[NO_IPAM_CHECK]),
            bridge("portIsolation", json!({"portIsolation": true})).new_only(),
            bridge("no ipam", json!({"ipam": {}, "isGateway": true})).differs(&[
                NO_IPAM_CHECK,
                Difference {
                    path: "* > a > sysctls > ipv4 > conf > eth0 > arp_notify",
                    why: "set when the link is made, which costs no call; there is no address to announce",
                },
            ]),
            bridge(
                "dual stack",
                json!({"isDefaultGateway": true, "ipam": dual_stack()}),
            )
            .two(),
            bridge(
                "IPv6 alone",
                json!({"isDefaultGateway": true, "ipam": ipam_of(&json!([[{"subnet": "fd99::/64"}]]))}),
            ),
            bridge(
                "gateway of ipam",
                json!({
                    "isGateway": true,
                    "ipam": ipam_of(&json!([[{"subnet": "10.99.0.0/24", "gateway": "10.99.0.254"}]])),
                }),
            ),
            bridge("two containers", json!({"isGateway": true})).two(),
        ],
    );
}

#[test]
fn addresses_of_the_bridge() {
    // A port keeps its carrier up.
    let other = "ip link add br0 type bridge && ip link add p0 up type veth peer name p1 && ip link set p1 up &&
        ip link set p0 master br0 && ip link set br0 up && ip addr add 10.5.0.1/24 dev br0";
    run_few(
        COMMON,
        &[
            bridge(
                "forceAddress",
                json!({"isGateway": true, "forceAddress": true}),
            )
            .after(&[Step::Node(other)]),
            bridge("another address", json!({"isGateway": true}))
                .refused()
                .differs(&[Difference {
                    path: "* untouched > node > sysctls > ipv6 > conf > br0 > accept_ra",
                    why: "no bridge of a network takes router advertisements, whatever becomes of this ADD",
                }])
                .after(&[Step::Node(other)]),
            bridge("the address is there", json!({"isGateway": true})).after(&[Step::Node(
                "ip link add br0 type bridge && ip addr add 10.99.0.1/24 dev br0",
            )]),
        ],
    );
}

#[test]
fn hardware_addresses_and_requested_ones() {
    let mac = "0a:11:22:33:44:55";
    let declared = json!([conf(
        json!({"capabilities": {"mac": true, "ips": true}, "isGateway": true})
    )]);
    run_few(
        COMMON,
        &[
            Case::new("mac", declared.clone()).given(json!({"mac": mac})),
            Case::new("ips", declared.clone())
                .given(json!({"ips": ["10.99.0.77/24"]}))
                .new_only(),
            bridge("MAC of CNI_ARGS", json!({})).args("IgnoreUnknown=1;MAC=0a:11:22:33:44:66"),
            bridge(
                "mac of args",
                json!({"args": {"cni": {"mac": "0a:11:22:33:44:77"}}}),
            ),
            Case::new(
                "mac of all three",
                json!([conf(json!({
                    "capabilities": {"mac": true}, "args": {"cni": {"mac": "0a:11:22:33:44:77"}},
                }))]),
            )
            .given(json!({"mac": mac}))
            .args("IgnoreUnknown=1;MAC=0a:11:22:33:44:66"),
        ],
    );
}

#[test]
fn masquerading() {
    let masquerade = |name, keys: Value| {
        let keys = with(json!({"isGateway": true, "ipMasq": true}), &keys);
        bridge(name, keys)
    };
    let nftables = |name, ipam: Value| {
        let keys = json!({"ipMasqBackend": "nftables", "ipam": ipam});
        masquerade(name, keys)
            .new_only()
            .differs(&[NFT_MASQUERADE, NFT_MASQUERADE_DEL])
    };
    run_few(
        COMMON,
        &[
            masquerade("ipMasq", json!({})).two().differs(&[MASQUERADE]),
            masquerade("ipMasq dual stack", json!({"ipam": dual_stack()})).differs(&[MASQUERADE]),
            masquerade("ipMasq by iptables", json!({"ipMasqBackend": "iptables"}))
                .new_only()
                .differs(&[MASQUERADE]),
            nftables("ipMasq by nftables", ipam()).two(),
            nftables("ipMasq by nftables dual stack", dual_stack()),
        ],
    );
}

const VLANS: &str = "VLAN filtering";

#[test]
fn vlans() {
    run_few(
        COMMON,
        &[
            bridge("vlan", json!({"vlan": 100})).needs(VLANS),
            bridge("vlan and gateway", json!({"vlan": 100, "isGateway": true})).needs(VLANS),
            bridge(
                "vlan alone",
                json!({"vlan": 100, "preserveDefaultVlan": false}),
            )
            .new_only()
            .needs(VLANS),
            bridge(
                "vlanTrunk",
                json!({"vlanTrunk": [{"id": 7}, {"minID": 20, "maxID": 23}]}),
            )
            .new_only()
            .needs(VLANS),
            bridge(
                "vlanTrunk alone",
                json!({"vlanTrunk": [{"id": 7}], "preserveDefaultVlan": false}),
            )
            .new_only()
            .needs(VLANS),
        ],
    );
}

#[test]
fn macspoofchk() {
    const SPOOF: Difference = Difference {
        path: "* > nftables > bridge *",
        why: "one look-up in a map of ports in a table of our own, in place of a rule for each port",
    };
    let checked =
        |name| bridge(name, json!({"macspoofchk": true, "isGateway": true})).differs(&[SPOOF]);
    run_few(
        COMMON,
        &[checked("macspoofchk"), checked("macspoofchk twice").two()],
    );
}

#[test]
fn two_networks_on_one_bridge() {
    let mut case = bridge("two networks", json!({"isGateway": true, "ipMasq": true})).steps(TWO);
    let second = ipam_of(&json!([[{"subnet": "fd77::/64"}]]));
    case.lists.push(json!({
        "cniVersion": "1.0.0", "name": "second", "plugins": [conf(json!({"isGateway": true, "ipam": second}))],
    }));
    case.attachments.push(Attachment {
        list: 1,
        ifname: "net1",
        ..Attachment::new("a")
    });
    let queue = Difference {
        path: "* > links > net1 > txqlen",
        ..OLD_QUEUE
    };
    let case = case.differs(&[MASQUERADE]).differs_from_old(&[queue]);
    run_few(COMMON, &[case]);
}

#[test]
fn protocol_versions() {
    let conf = json!({"isDefaultGateway": true, "ipam": dual_stack()});
    let without_check = [
        Step::Add(0),
        Step::Look("added"),
        Step::Del(0),
        Step::Look("deleted"),
    ];
    run_few(
        COMMON,
        &[
            bridge("0.3.1", conf.clone())
                .version("0.3.1")
                .steps(&without_check),
            bridge("0.4.0", conf.clone()).version("0.4.0"),
            bridge("1.0.0", conf.clone()).version("1.0.0"),
            bridge("1.1.0", conf.clone())
                .version("1.1.0")
                .new_only()
                .differs(&[MTU]),
        ],
    );
}

#[test]
fn what_check_misses() {
    let damage = |name, step| {
        bridge(name, json!({"isGateway": true})).steps(&[
            Step::Add(0),
            step,
            Step::Miss(0),
            Step::Del(0),
            Step::Look("deleted"),
        ])
    };
    run_few(
        &[],
        &[
            damage("address gone", Step::Pod("a", "ip addr flush dev eth0")),
            damage("link gone", Step::Pod("a", "ip link del eth0")),
            damage("bridge gone", Step::Node("ip link del br0")),
        ],
    );
}

#[test]
fn a_second_add() {
    run_few(
        COMMON,
        &[
            bridge("same container", json!({"isGateway": true})).steps(&[
                Step::Add(0),
                Step::Refuse(0),
                Step::Look("refused"),
                Step::Del(0),
            ]),
            bridge("interface taken", json!({"isGateway": true}))
                .refused()
                .after(&[Step::Pod("a", "ip link add eth0 type veth peer name eth1")]),
        ],
    );
}

#[test]
fn garbage() {
    let mut case = bridge("GC", json!({"isGateway": true}))
        .version("1.1.0")
        .new_only()
        .two();
    case.steps = vec![
        Step::Status,
        Step::Add(0),
        Step::Add(1),
        Step::Look("added"),
        Step::Gc(&[1]),
        Step::Look("collected"),
        Step::Del(0),
        Step::Del(1),
        Step::Look("deleted"),
    ];
    let collected = Difference {
        path: "* collected > *",
        why: "the reference collects nothing but what its IPAM plugin collects, and host-local does not",
    };
    run_few(COMMON, &[case.differs(&[collected, MTU])]);
}
