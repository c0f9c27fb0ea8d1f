//! portmap behind a bridge: every key, both backends.

use serde_json::{Value, json};
use skiff_tests_cni::compare::{Case, Difference, Step};

use super::bridge::{DAD, PORT_RA};
use super::{ALIAS, NO_DAD, OLD_QUEUE, QUEUE, dual_stack, ipam, run, run_few, with};

const COMMON: &[Difference] = &[ALIAS, QUEUE, OLD_QUEUE, PORT_RA, DAD, NO_DAD];

pub(crate) const TIDY: Difference = Difference {
    path: "*deleted > node > ip*tables > nat*",
    why: "the last container takes the chains that all share with it",
};

pub(crate) const OLD_CHECK: Difference = Difference {
    path: "* CHECK a eth0 > outcome",
    why: "the oldest reference looks for rules of a family that the container has no address of",
};

const FAMILY: Difference = Difference {
    path: "* > ip*tables > nat > CNI-HOSTPORT-DNAT > rules > *",
    why: "ports of the other family's host addresses match nothing here",
};

const NFT: Difference = Difference {
    path: "* > nftables > ip* cni_hostport*",
    why: "one look-up in a map of ports, in place of a rule for each",
};

/// A bridge and portmap with these keys, and one TCP port.
pub(crate) fn portmap(name: &str, keys: Value) -> Case {
    behind(name, &ipam(), &keys)
}

/// The same for both families. The oldest reference fails its own CHECK there.
pub(crate) fn both_families(name: &str, keys: Value) -> Case {
    behind(name, &dual_stack(), &keys).new_only()
}

fn behind(name: &str, ipam: &Value, keys: &Value) -> Case {
    let conf = with(
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        keys,
    );
    let bridge = json!({"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipam": ipam});
    Case::new(name, json!([bridge, conf])).given(ports(json!([port(8080, 80, "tcp")])))
}

fn ports(mappings: Value) -> Value {
    json!({"portMappings": mappings})
}

fn port(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

pub(crate) fn many() -> Value {
    let at = |address: &str, mut mapping: Value| {
        mapping["hostIP"] = json!(address);
        mapping
    };
    ports(json!([
        port(8080, 80, "tcp"),
        port(8081, 81, "tcp"),
        port(5353, 53, "udp"),
        port(9999, 99, "sctp"),
        at("127.0.0.1", port(7070, 70, "tcp")),
        at("10.99.0.1", port(7071, 71, "udp")),
        at("fd99::1", port(7072, 72, "tcp")),
        at("0.0.0.0", port(7073, 73, "tcp")),
        at("::", port(7074, 74, "tcp")),
    ]))
}

#[test]
fn by_iptables() {
    let old = |name, keys: Value| {
        portmap(name, keys)
            .differs(&[TIDY])
            .differs_from_old(&[OLD_CHECK])
    };
    let new = |name, keys: Value| both_families(name, keys).differs(&[TIDY]);
    let chain = "iptables -t nat -N KUBE-MARK-MASQ; ip6tables -t nat -N KUBE-MARK-MASQ";
    run(
        COMMON,
        &[
            portmap("no port", json!({})).given(ports(json!([]))),
            old("one port", json!({})),
            old("two containers", json!({})).two(),
            old("markMasqBit", json!({"markMasqBit": 5})),
            old(
                "externalSetMarkChain",
                json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}),
            )
            .after(&[Step::Node(chain)]),
            old(
                "conditions",
                json!({
                    "conditionsV4": ["!", "-d", "192.0.2.0/24"], "conditionsV6": ["!", "-d", "2001:db8::/32"],
                }),
            ),
            new("both families", json!({})),
            new("many ports", json!({}))
                .given(many())
                .differs(&[FAMILY]),
            new("snat off", json!({"snat": false}))
                .given(many())
                .differs(&[FAMILY]),
            new("masqAll", json!({"masqAll": true})),
            new("backend", json!({"backend": "iptables"})),
        ],
    );
}

#[test]
fn by_nftables() {
    let nft = |name, keys: Value| {
        both_families(name, with(json!({"backend": "nftables"}), &keys)).differs(&[NFT])
    };
    run_few(
        COMMON,
        &[
            nft("nft one port", json!({})),
            nft("nft many ports", json!({})).given(many()),
            nft("nft two containers", json!({})).two(),
            nft("nft snat off", json!({"snat": false})),
            nft(
                "nft conditions",
                json!({"conditionsV4": ["ip", "daddr", "!=", "192.0.2.0/24"]}),
            ),
            nft("nft masqAll", json!({"masqAll": true})),
        ],
    );
}

#[test]
fn what_check_misses() {
    let steps = |damage| {
        [
            Step::Add(0),
            Step::Node(damage),
            Step::Miss(0),
            Step::Del(0),
            Step::Look("deleted"),
        ]
    };
    run_few(
        COMMON,
        &[
            portmap("rules gone", json!({}))
                .differs(&[TIDY])
                .steps(&steps("iptables -t nat -F CNI-HOSTPORT-DNAT")),
            portmap("nft rules gone", json!({"backend": "nftables"}))
                .new_only()
                .steps(&steps("nft flush ruleset")),
        ],
    );
}

#[test]
fn wrong_ports() {
    run_few(
        COMMON,
        &[
            portmap("port 0", json!({}))
                .given(ports(json!([port(8080, 0, "tcp")])))
                .refused_behind(),
            portmap("protocol", json!({}))
                .given(ports(json!([port(8080, 80, "icmp")])))
                .refused_behind()
                .differs(&[Difference {
                    path: "* refused > node > *",
                    why: "refused before the first change",
                }]),
            portmap("markMasqBit of 40", json!({"markMasqBit": 40})).refused_behind(),
            portmap(
                "mark bit and chain",
                json!({"markMasqBit": 4, "externalSetMarkChain": "X"}),
            )
            .refused_behind(),
        ],
    );
}
