//! Plugins behind a bridge that change what it made: tuning, bandwidth, firewall. And loopback.

use serde_json::{Value, json};
use skiff_tests_cni::compare::{Case, Difference, Step};

use super::bridge::{DAD, PORT_RA};
use super::{ALIAS, KEEP, NO_DAD, OLD_QUEUE, QUEUE, dual_stack, ipam, run, with};

const BRIDGE: &[Difference] = &[ALIAS, QUEUE, OLD_QUEUE, PORT_RA, DAD];

const TUNED: Difference = Difference {
    path: "* > files > tuning/*",
    why: "holds the network too, so that GC knows whose it is",
};

pub(crate) const REDIRECT: Difference = Difference {
    path: "* > node > filters > *",
    why: "one action and no class, where the reference names its action twice and a class that ingress has not",
};

pub(crate) const OWNERS: Difference = Difference {
    path: "* > filter > SKIFF-FW-OWNERS",
    why: "rules that nothing jumps to say whose addresses the others speak of, for GC",
};

const REFUSED_EARLY: Difference = Difference {
    path: "* refused > node > ip*tables > filter",
    why: "refused before the first change",
};

fn behind(name: &str, ipam: Value, plugin: Value) -> Case {
    let bridge = json!({"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipam": ipam});
    Case::new(name, json!([bridge, plugin]))
}

pub(crate) fn tuning(name: &str, keys: Value) -> Case {
    let conf = json!({"type": "tuning", "dataDir": "$DIR/tuning", "capabilities": {"mac": true}});
    behind(name, ipam(), with(conf, &keys))
}

#[test]
fn keys_of_tuning() {
    run(
        &[BRIDGE, &[TUNED]].concat(),
        &[
            tuning("tuning of nothing", json!({})),
            tuning(
                "sysctl",
                json!({"sysctl": {"net.ipv4.conf.eth0.arp_filter": "1", "net.ipv4.conf.all.log_martians": "1"}}),
            ),
            tuning(
                "sysctl of IFNAME",
                json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
            )
            .new_only(),
            tuning(
                "sysctl with slashes",
                json!({"sysctl": {"net/ipv4/conf/eth0/arp_ignore": "2"}}),
            ),
            tuning("tuned mac", json!({"mac": "0a:11:22:33:44:55"})),
            tuning("mac capability", json!({})).given(json!({"mac": "0a:11:22:33:44:66"})),
            tuning("tuned mtu", json!({"mtu": 1300})),
            tuning("promisc", json!({"promisc": true})),
            tuning("allmulti", json!({"allmulti": true})),
            tuning("txQLen", json!({"txQLen": 500})).new_only(),
            tuning(
                "everything",
                json!({"mac": "0a:11:22:33:44:55", "mtu": 1300, "promisc": true, "allmulti": true}),
            )
            .two(),
            tuning(
                "sysctl of another area",
                json!({"sysctl": {"kernel.hostname": "x"}}),
            )
            .refused_behind(),
            tuning(
                "sysctl that is not there",
                json!({"sysctl": {"net.ipv4.nothing": "1"}}),
            )
            .refused_behind(),
            tuning("mtu changed", json!({"mtu": 1300})).steps(&[
                Step::Add(0),
                Step::Pod("a", "ip link set eth0 mtu 1400"),
                Step::Miss(0),
                Step::Del(0),
            ]),
        ],
    );
}

pub(crate) fn bandwidth(name: &str, keys: Value) -> Case {
    let conf = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    behind(name, ipam(), with(conf, &keys))
}

#[test]
fn keys_of_bandwidth() {
    let ingress = json!({"ingressRate": 8_000_000, "ingressBurst": 1_600_000});
    let egress = json!({"egressRate": 16_000_000, "egressBurst": 3_200_000});
    let both = with(ingress.clone(), &egress);
    run(
        &[BRIDGE, &[REDIRECT]].concat(),
        &[
            bandwidth("no limit", json!({})).differs_from_old(&[Difference {
                path: "* CHECK a eth0 > outcome",
                why: "the oldest reference crashes",
            }]),
            bandwidth("ingress", ingress.clone()),
            bandwidth("egress", egress.clone()),
            bandwidth("both", both.clone()).two(),
            bandwidth("capability", json!({})).given(json!({"bandwidth": both})),
            bandwidth("capability wins", ingress.clone()).given(json!({"bandwidth": egress})),
            bandwidth("rate without burst", json!({"ingressRate": 8_000_000})).refused_behind(),
            bandwidth("qdisc gone", ingress).steps(&[
                Step::Add(0), Step::Node("tc qdisc del dev $(ip -o link show type veth | sed 's/^[0-9]*: \\([^@:]*\\).*/\\1/') root"),
                Step::Miss(0), Step::Del(0), Step::Look("deleted"),
            ])
            .differs(&[Difference {
                path: "* CHECK a eth0 > outcome",
                why: "the reference looks only at those qdiscs that are there",
            }]),
        ],
    );
}

pub(crate) fn firewall(name: &str, keys: Value) -> Case {
    behind(
        name,
        dual_stack(),
        with(json!({"type": "firewall", "backend": "iptables"}), &keys),
    )
}

#[test]
fn keys_of_firewall() {
    run(
        &[BRIDGE, &[NO_DAD, KEEP, OWNERS]].concat(),
        &[
            firewall("firewall", json!({})).two(),
            behind(
                "backend of the machine",
                ipam(),
                json!({"type": "firewall"}),
            ),
            firewall(
                "iptablesAdminChainName",
                json!({"iptablesAdminChainName": "MY-ADMIN"}),
            ),
            firewall("open", json!({"ingressPolicy": "open"})),
            firewall("same-bridge", json!({"ingressPolicy": "same-bridge"}))
                .two()
                .differs_from_old(&[Difference {
                    path: "* > filter > *",
                    why: "the comments name the policy that came later too",
                }]),
            firewall("isolated", json!({"ingressPolicy": "isolated"}))
                .two()
                .new_only(),
            firewall("unknown policy", json!({"ingressPolicy": "nobody"}))
                .refused_behind()
                .differs(&[REFUSED_EARLY]),
            firewall("unknown backend", json!({"backend": "nobody"}))
                .refused_behind()
                .differs(&[
                    REFUSED_EARLY,
                    Difference {
                        path: "* ADD a eth0 > *",
                        why: "the reference takes any word",
                    },
                ]),
            firewall("rules gone", json!({})).steps(&[
                Step::Add(0),
                Step::Node("iptables -F CNI-FORWARD"),
                Step::Miss(0),
                Step::Del(0),
                Step::Look("deleted"),
            ]),
        ],
    );
}

#[test]
fn loopback() {
    let loopback = |name| {
        let mut case = Case::new(name, json!([{"type": "loopback"}]))
            .after(&[Step::Pod("a", "ip link set lo down")]);
        case.attachments[0].ifname = "lo";
        case
    };
    let stays_up = Difference {
        path: "* deleted > a > *",
        why: "other networks of the container, and itself, go on using it",
    };
    let family = Difference {
        path: "* ADD a lo > result > ips > * > version",
        why: "0.4.0 asks for it",
    };
    run(
        &[stays_up],
        &[
            loopback("loopback"),
            loopback("loopback of 0.4.0")
                .version("0.4.0")
                .differs(&[family]),
            loopback("loopback of 1.1.0").version("1.1.0").new_only(),
            loopback("loopback is down").steps(&[
                Step::Add(0),
                Step::Pod("a", "ip link set lo down"),
                Step::Miss(0),
            ]),
        ],
    );
}
