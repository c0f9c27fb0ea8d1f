//! Compiled tables: what they cost, and what the kernel makes of them.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    slice,
};

use skiff_ebpf_common::{
    Addr, DIRECTION_EGRESS, DIRECTION_INGRESS, IDENTITY_ISOLATED_EGRESS, IDENTITY_ISOLATED_INGRESS,
    PROTO_SCTP, PROTO_TCP, PROTO_UDP, PolicyConn, PolicyConnKey, PolicyIds, PolicyRule,
};
use skiff_ebpf_loader::PolicyTables;
use skiff_lb::policy::{Judgement, PROTO_ICMP, Part, PolicyPacket, PolicyTables as Kernel, judge};

use super::{rules::prefixes_of, *};

mod world;

use self::world::World;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => Addr::from_octets(ip.octets()),
    }
}

fn ip_of(addr: &Addr) -> IpAddr {
    if addr.is_v4() {
        IpAddr::from(addr.as_v4().to_ne_bytes())
    } else {
        IpAddr::from(addr.octets())
    }
}

/// The tables as the kernel looks at them.
#[derive(Default)]
struct Fake {
    tables: PolicyTables,
    conns: RefCell<HashMap<PolicyConnKey, PolicyConn>>,
    now: u64,
}

fn bits(rule: &PolicyRule) -> u128 {
    let [a, b, c, d] = rule.subject.to_ne_bytes();
    let [e, f, g, h] = rule.peer.to_ne_bytes();
    let [i, j] = rule.port.to_ne_bytes();
    u128::from_be_bytes([
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        rule.direction,
        rule.proto,
        i,
        j,
        0,
        0,
        0,
        0,
    ])
}

impl Kernel for Fake {
    fn state(&self) -> u32 {
        0
    }
    fn ids(&self, addr: &Addr) -> Option<PolicyIds> {
        let id = self.tables.ids.get(&ip_of(addr))?;
        Some(PolicyIds { ids: [*id; 2] })
    }
    fn cidr_ids(&self, addr: &Addr) -> Option<PolicyIds> {
        // As the trie does it: IPv4 in IPv6 prefixes too.
        let bits = u128::from_be_bytes(addr.octets());
        let whole = |prefix: &skiff_ebpf_loader::Prefix| match prefix.addr() {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), u32::from(prefix.len()) + 96),
            IpAddr::V6(ip) => (ip.to_bits(), u32::from(prefix.len())),
        };
        let matches = self.tables.cidrs.iter().filter_map(|(prefix, id)| {
            let (first, len) = whole(prefix);
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            (bits & mask == first).then_some((len, *id))
        });
        let (_, id) = matches.max()?;
        Some(PolicyIds { ids: [id; 2] })
    }
    fn allows(&self, rule: &PolicyRule) -> bool {
        self.tables.rules.iter().any(|key| {
            let mask = u128::MAX << (128 - key.prefix_len);
            bits(&key.rule) & mask == bits(rule) & mask
        })
    }
    fn conn(&self, key: &PolicyConnKey) -> Option<PolicyConn> {
        self.conns.borrow().get(key).copied()
    }
    fn remember(&self, key: &PolicyConnKey, conn: &PolicyConn) {
        self.conns.borrow_mut().insert(*key, *conn);
    }
    fn now(&self) -> u64 {
        self.now
    }
}

/// A packet of a connection from one address and port to another, to or from the pod at `pod`.
fn packet(from: (IpAddr, u16), to: (IpAddr, u16), proto: u8, pod: IpAddr) -> PolicyPacket {
    let outwards = from.0 == pod;
    let (own, other) = if outwards { (from, to) } else { (to, from) };
    PolicyPacket {
        subject: addr(pod),
        peer: addr(other.0),
        proto,
        port: to.1.to_be(),
        conn: PolicyConnKey {
            pod: addr(own.0),
            peer: addr(other.0),
            pod_port: own.1.to_be(),
            peer_port: other.1.to_be(),
            proto,
            pad: [0; 3],
        },
        direction: if outwards {
            DIRECTION_EGRESS
        } else {
            DIRECTION_INGRESS
        },
        part: Part::Carries,
        from_node: false,
        ifindex: 7,
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn selector(json: serde_json::Value) -> Selector {
    Selector::of(&serde_json::from_value(json).unwrap())
}

fn own(key: &(String, String)) -> Key {
    (key.0.as_str().into(), key.1.as_str().into())
}

fn web_world(pods: u8) -> World {
    let mut world = World::default();
    world.namespaces.insert("a".to_owned(), Labels::new());
    for number in 1..=pods {
        let pod = PodInfo {
            uid: number.to_string().into(),
            created: 0,
            labels: labels(&[("app", "web"), ("hash", &number.to_string())]),
            addrs: vec![ip(&format!("10.0.0.{number}"))],
            ports: Vec::new(),
        };
        world.pods.insert(("a".to_owned(), number.to_string()), pod);
    }
    let web = selector(serde_json::json!({"matchLabels": {"app": "web"}}));
    let peers = vec![Peer::Pods {
        namespaces: None,
        pods: web.clone(),
    }];
    let policy = PolicyInfo {
        namespace: "a".into(),
        subject: web,
        ingress: Some(vec![Rule {
            peers,
            ports: Vec::new(),
        }]),
        egress: None,
    };
    world
        .policies
        .insert(("a".to_owned(), "web".to_owned()), policy);
    world
}

#[test]
fn a_further_pod_of_a_known_identity_is_one_entry() {
    let mut tracker = web_world(100).tracker();
    let mut tables = PolicyTables::default();
    tables.make(&tracker.change());
    assert_eq!(tables.ids.len(), 100);
    assert_eq!(tables.rules.len(), 1);
    let (key, pod) = web_world(101)
        .pods
        .into_iter()
        .find(|(key, _)| key.1 == "101")
        .unwrap();
    tracker.set_pod(own(&key), Some(pod));
    let change = tracker.change();
    assert_eq!(change.ids.len(), 1);
    assert_eq!(change.fresh, [ip("10.0.0.101")].into());
    assert!(change.add.is_empty() && change.remove.is_empty() && change.cidrs.is_empty());
    // And so is one that goes.
    tracker.set_pod(own(&key), None);
    assert_eq!(tracker.change().ids, [(ip("10.0.0.101"), None)]);
}

#[test]
fn without_policies_there_is_nothing_in_the_tables() {
    let mut world = web_world(10);
    world.policies.clear();
    assert!(world.tracker().change().is_empty());
}

#[test]
fn a_pod_has_the_addresses_that_its_node_gave_it_before_its_status_tells() {
    let mut world = web_world(2);
    let key = ("a".to_owned(), "2".to_owned());
    world.pods.get_mut(&key).unwrap().addrs.clear();
    let mut tracker = world.tracker();
    tracker.change();
    assert!(!tracker.set_local("3", vec![ip("10.0.0.3")]), "not known");
    assert!(tracker.set_local("2", vec![ip("10.0.0.2")]));
    let change = tracker.change();
    let [(addr, Some(_))] = change.ids[..] else {
        panic!("{change:?}")
    };
    assert_eq!(addr, ip("10.0.0.2"));
    tracker.set_pod(own(&key), None);
    assert_eq!(tracker.change().ids, [(ip("10.0.0.2"), None)]);
}

#[test]
fn of_two_pods_with_one_address_the_younger_has_it() {
    let mut world = web_world(1);
    let mut tracker = world.tracker();
    tracker.change();
    let mut other = world
        .pods
        .remove(&("a".to_owned(), "1".to_owned()))
        .unwrap();
    other.labels = labels(&[("app", "other")]);
    other.created = 5;
    tracker.set_pod(("a".into(), "other".into()), Some(other));
    assert_eq!(tracker.change().ids, [(ip("10.0.0.1"), None)]);
}

#[test]
fn dns_of_the_node_is_reached_by_who_may_reach_upstreams() {
    let node = ip("192.168.0.1");
    let mut tracker = Tracker::new(Some(SocketAddr::new(node, 10_053)));
    for (key, pod) in &web_world(1).pods {
        tracker.set_pod(own(key), Some(pod.clone()));
    }
    tracker.set_namespace(
        "kube-system",
        Some(labels(&[("kubernetes.io/metadata.name", "kube-system")])),
    );
    let dns = Peer::Pods {
        namespaces: Some(selector(
            serde_json::json!({"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}),
        )),
        pods: selector(serde_json::json!({"matchLabels": {"k8s-app": "kube-dns"}})),
    };
    let egress = |rule| PolicyInfo {
        namespace: "a".into(),
        subject: Selector::everything(),
        ingress: None,
        egress: Some(vec![rule]),
    };
    let rule = |peers: &[Peer], ports: &[PortRange]| Rule {
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    };
    let only = |ports| PortRange {
        proto: PROTO_UDP,
        ports,
    };
    let block = Peer::Block {
        cidr: prefix_of("192.168.0.0/16").unwrap(),
        except: Vec::new(),
    };
    let elsewhere = Peer::Pods {
        namespaces: None,
        pods: Selector::everything(),
    };
    // Whether UDP and TCP get through.
    for (rule, udp, tcp) in [
        (rule(slice::from_ref(&dns), &[]), true, true),
        (
            rule(slice::from_ref(&dns), &[only(Ports::All)]),
            true,
            false,
        ),
        (
            rule(slice::from_ref(&dns), &[only(Ports::Named("dns".into()))]),
            true,
            false,
        ),
        (rule(&[dns], &[only(Ports::Range(54, 65535))]), false, false),
        (rule(&[], &[only(Ports::Range(53, 53))]), true, false),
        (rule(&[block], &[only(Ports::Range(53, 53))]), true, false),
        (rule(&[elsewhere], &[]), false, false),
    ] {
        tracker.set_policy(("a".into(), "dns".into()), Some(egress(rule.clone())));
        let mut fake = Fake::default();
        fake.tables
            .make(&tracker.full_change(&PolicyTables::default()));
        let pod = ip("10.0.0.1");
        let ask = |proto, port| judge(&fake, &packet((pod, 5000), (node, port), proto, pod));
        assert_eq!(ask(PROTO_UDP, 10_053) == Judgement::Pass, udp, "{rule:?}");
        assert_eq!(ask(PROTO_TCP, 10_053) == Judgement::Pass, tcp, "{rule:?}");
        assert_eq!(ask(PROTO_TCP, 6443), Judgement::Deny, "{rule:?}");
    }
}

#[test]
fn replies_pass_until_a_flow_has_ended() {
    let mut fake = Fake::default();
    fake.tables.make(&web_world(2).tracker().change());
    let (pod, world) = (ip("10.0.0.1"), ip("192.168.7.7"));
    let reply = packet((world, 53), (pod, 4000), PROTO_UDP, pod);
    assert_eq!(judge(&fake, &reply), Judgement::Deny);
    let query = packet((pod, 4000), (world, 53), PROTO_UDP, pod);
    assert_eq!(judge(&fake, &query), Judgement::Pass);
    assert_eq!(judge(&fake, &reply), Judgement::Pass);
    // Another pod with the address has no part in it.
    assert_eq!(
        judge(
            &fake,
            &PolicyPacket {
                ifindex: 8,
                ..reply
            }
        ),
        Judgement::Deny
    );
    // Nor does somebody who opens a connection of his own.
    assert_eq!(
        judge(
            &fake,
            &PolicyPacket {
                part: Part::Opens,
                ..reply
            }
        ),
        Judgement::Deny
    );
    fake.now += 121_000_000_000;
    assert_eq!(judge(&fake, &reply), Judgement::Deny);
}

#[test]
fn a_pod_that_is_not_known_is_closed_but_to_its_node() {
    let fake = Fake::default();
    let (pod, world) = (ip("10.0.0.9"), ip("192.168.7.7"));
    let knock = packet((world, 4000), (pod, 80), PROTO_TCP, pod);
    assert_eq!(judge(&fake, &knock), Judgement::Unknown);
    assert_eq!(
        judge(
            &fake,
            &PolicyPacket {
                from_node: true,
                ..knock
            }
        ),
        Judgement::Pass
    );
    let out = packet((pod, 4001), (world, 80), PROTO_TCP, pod);
    assert_eq!(judge(&fake, &out), Judgement::Unknown);
}
