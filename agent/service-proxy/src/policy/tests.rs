//! Compiled tables against upstream's semantics, told a second time in the plainest way.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use proptest::prelude::*;
use skiff_ebpf_common::{
    Addr, DIRECTION_EGRESS, DIRECTION_INGRESS, IDENTITY_ISOLATED_EGRESS, IDENTITY_ISOLATED_INGRESS,
    PROTO_SCTP, PROTO_TCP, PROTO_UDP, PolicyConn, PolicyConnKey, PolicyIds, PolicyRule,
};
use skiff_ebpf_loader::PolicyTables;
use skiff_lb::policy::{Judgement, PROTO_ICMP, Part, PolicyPacket, PolicyTables as Kernel, judge};

use super::{rules::prefixes_of, *};

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

/// What is in a cluster.
#[derive(Clone, Debug, Default)]
struct World {
    namespaces: HashMap<String, Labels>,
    pods: HashMap<(String, String), PodInfo>,
    policies: HashMap<(String, String), PolicyInfo>,
}

impl World {
    fn tracker(&self) -> Tracker {
        let mut tracker = Tracker::new(None);
        for (name, labels) in &self.namespaces {
            tracker.set_namespace(name, Some(labels.clone()));
        }
        for (key, pod) in &self.pods {
            tracker.set_pod(own(key), Some(pod.clone()));
        }
        for (key, policy) in &self.policies {
            tracker.set_policy(own(key), Some(policy.clone()));
        }
        tracker
    }

    fn pod_at(&self, addr: IpAddr) -> Option<(&str, &PodInfo)> {
        let mut all = self.pods.iter();
        let found = all.find(|(_, pod)| pod.addrs.contains(&addr))?;
        Some((&found.0.0, found.1))
    }

    /// Upstream's rule, one direction: a pod that no policy is about is open; else some rule of some policy must match.
    fn allows(&self, subject: IpAddr, peer: IpAddr, ingress: bool, proto: u8, port: u16) -> bool {
        let Some((namespace, pod)) = self.pod_at(subject) else {
            return true;
        };
        if subject == peer {
            return true;
        }
        let about = self.policies.values().filter(|policy| {
            &*policy.namespace == namespace && policy.subject.matches(&pod.labels)
        });
        let sets: Vec<&Vec<Rule>> = about
            .filter_map(|policy| {
                if ingress {
                    policy.ingress.as_ref()
                } else {
                    policy.egress.as_ref()
                }
            })
            .collect();
        if sets.is_empty() {
            return true;
        }
        let target = if ingress {
            Some(pod)
        } else {
            self.pod_at(peer).map(|(_, pod)| pod)
        };
        // Policies of other namespaces are not about the pod, so `own` is its namespace.
        sets.into_iter().flatten().any(|rule| {
            (rule.peers.is_empty() || rule.peers.iter().any(|p| self.is_peer(p, namespace, peer)))
                && (rule.ports.is_empty()
                    || rule
                        .ports
                        .iter()
                        .any(|range| port_matches(range, proto, port, target)))
        })
    }

    fn is_peer(&self, wanted: &Peer, own: &str, addr: IpAddr) -> bool {
        match wanted {
            Peer::Block { cidr, except } => {
                cidr.contains(addr) && !except.iter().any(|e| e.contains(addr))
            }
            Peer::Pods { namespaces, pods } => {
                let Some((namespace, pod)) = self.pod_at(addr) else {
                    return false;
                };
                let in_namespace = match namespaces {
                    None => namespace == own,
                    Some(selector) => self
                        .namespaces
                        .get(namespace)
                        .is_some_and(|l| selector.matches(l)),
                };
                in_namespace && pods.matches(&pod.labels)
            }
        }
    }
}

fn port_matches(range: &PortRange, proto: u8, port: u16, target: Option<&PodInfo>) -> bool {
    range.proto == proto
        && match &range.ports {
            Ports::All => true,
            Ports::Range(first, last) => (*first..=*last).contains(&port),
            Ports::Named(name) => target.is_some_and(|pod| {
                pod.ports
                    .iter()
                    .any(|p| p.name == *name && p.proto == proto && p.port == port)
            }),
        }
}

fn own(key: &(String, String)) -> Key {
    (key.0.as_str().into(), key.1.as_str().into())
}

const ISOLATED: u32 = IDENTITY_ISOLATED_INGRESS | IDENTITY_ISOLATED_EGRESS;
const STRANGERS: [&str; 4] = ["10.0.1.77", "10.1.0.200", "192.168.7.7", "2001:db8::7"];
const PORTS: [u16; 5] = [53, 80, 81, 8080, 8090];

/// That every verdict of the tables is the one of the evaluator.
fn check(world: &World, tables: &PolicyTables) -> Result<(), TestCaseError> {
    let fake = Fake {
        tables: tables.clone(),
        ..Fake::default()
    };
    let pods: Vec<IpAddr> = world
        .pods
        .values()
        .flat_map(|pod| pod.addrs.clone())
        .collect();
    let others = pods.iter().copied().chain(STRANGERS.map(ip));
    for other in others.collect::<BTreeSet<_>>() {
        for pod in pods
            .iter()
            .copied()
            .filter(|p| p.is_ipv4() == other.is_ipv4() && *p != other)
        {
            for (proto, port) in PORTS
                .iter()
                .flat_map(|port| [(PROTO_TCP, *port), (PROTO_UDP, *port)])
                .chain([(PROTO_SCTP, 80), (PROTO_ICMP, 0)])
            {
                for ingress in [true, false] {
                    fake.conns.take();
                    let (from, to) = if ingress { (other, pod) } else { (pod, other) };
                    let packet = packet((from, 50_000), (to, port), proto, pod);
                    // Programs do not ask for who is not isolated.
                    let asked = fake.tables.id(pod) & ISOLATED != 0;
                    let found = !asked || judge(&fake, &packet) == Judgement::Pass;
                    let wanted = world.allows(pod, other, ingress, proto, port);
                    prop_assert_eq!(
                        found,
                        wanted,
                        "{} -> {} {}:{} ingress {}",
                        from,
                        to,
                        proto,
                        port,
                        ingress
                    );
                }
            }
        }
    }
    Ok(())
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

fn any_selector() -> impl Strategy<Value = Selector> {
    use serde_json::json;
    prop_oneof![
        Just(selector(json!({}))),
        Just(selector(json!({"matchLabels": {"app": "web"}}))),
        Just(selector(json!({"matchLabels": {"app": "db", "tier": "1"}}))),
        Just(selector(json!({"matchLabels": {"team": "x"}}))),
        Just(selector(
            json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["1"]}]})
        )),
        Just(selector(
            json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]})
        )),
    ]
}

fn any_peer() -> impl Strategy<Value = Peer> {
    let block = |cidr: &str, except: &[&str]| Peer::Block {
        cidr: prefix_of(cidr).unwrap(),
        except: except.iter().map(|e| prefix_of(e).unwrap()).collect(),
    };
    prop_oneof![
        3 => (proptest::option::of(any_selector()), any_selector())
            .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => prop_oneof![
            Just(block("0.0.0.0/0", &[])),
            Just(block("0.0.0.0/0", &["10.0.0.0/8"])),
            Just(block("10.0.0.0/8", &["10.0.0.0/24", "10.1.0.200/32"])),
            Just(block("10.0.0.0/24", &[])),
            Just(block("10.0.0.2/32", &[])),
            Just(block("::/0", &["fd00::/64"])),
            Just(block("fd00::/16", &[])),
        ],
    ]
}

fn any_ports() -> impl Strategy<Value = PortRange> {
    let proto = prop_oneof![Just(PROTO_TCP), Just(PROTO_UDP), Just(PROTO_SCTP)];
    let ports = prop_oneof![
        Just(Ports::All),
        Just(Ports::Range(80, 80)),
        Just(Ports::Range(53, 8080)),
        Just(Ports::Range(81, 65535)),
        Just(Ports::Named("web".into())),
    ];
    (proto, ports).prop_map(|(proto, ports)| PortRange { proto, ports })
}

fn any_rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let peers = proptest::collection::vec(any_peer(), 0..3);
    let ports = proptest::collection::vec(any_ports(), 0..3);
    let rule = (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports });
    proptest::option::weighted(0.7, proptest::collection::vec(rule, 0..3))
}

const NAMESPACES: [&str; 2] = ["a", "b"];

fn any_policy() -> impl Strategy<Value = PolicyInfo> {
    (0..2_usize, any_selector(), any_rules(), any_rules()).prop_map(
        |(namespace, subject, ingress, egress)| PolicyInfo {
            namespace: NAMESPACES[namespace].into(),
            subject,
            ingress,
            egress,
        },
    )
}

fn any_pod(number: u8) -> impl Strategy<Value = PodInfo> {
    let app = prop_oneof![Just("web"), Just("db")];
    let tier = proptest::option::of(prop_oneof![Just("1"), Just("2")]);
    let port = proptest::option::of(prop_oneof![Just(80_u16), Just(8080)]);
    (app, tier, port).prop_map(move |(app, tier, port)| {
        let mut labels = labels(&[("app", app)]);
        labels.extend(tier.map(|tier| ("tier".to_owned(), tier.to_owned())));
        PodInfo {
            uid: number.to_string().into(),
            created: 0,
            labels,
            addrs: vec![
                ip(&format!("10.{}.0.{number}", number % 2)),
                ip(&format!("fd00::{number}")),
            ],
            ports: port
                .into_iter()
                .map(|port| NamedPort {
                    name: "web".into(),
                    proto: PROTO_TCP,
                    port,
                })
                .collect(),
        }
    })
}

/// A change of the world.
#[derive(Clone, Debug)]
enum Step {
    Policy(u8, Option<PolicyInfo>),
    Pod(u8, Option<PodInfo>),
    Namespace(usize, &'static str),
}

fn any_step() -> impl Strategy<Value = Step> {
    let pod = (1..6_u8).prop_flat_map(|number| {
        proptest::option::weighted(0.9, any_pod(number)).prop_map(move |pod| Step::Pod(number, pod))
    });
    let policy = (0..4_u8, proptest::option::weighted(0.8, any_policy()));
    let namespace = (0..2_usize, prop_oneof![Just("x"), Just("y")]);
    prop_oneof![
        3 => pod,
        3 => policy.prop_map(|(number, policy)| Step::Policy(number, policy)),
        1 => namespace.prop_map(|(number, team)| Step::Namespace(number, team)),
    ]
}

impl Step {
    fn take(&self, world: &mut World, tracker: &mut Tracker) {
        match self {
            Self::Pod(number, pod) => {
                let namespace = NAMESPACES[usize::from(*number) / 2 % 2].to_owned();
                let key = (namespace, number.to_string());
                tracker.set_pod(own(&key), pod.clone());
                match pod {
                    Some(pod) => drop(world.pods.insert(key, pod.clone())),
                    None => drop(world.pods.remove(&key)),
                }
            }
            Self::Policy(number, policy) => {
                let key = (String::new(), number.to_string());
                tracker.set_policy(own(&key), policy.clone());
                match policy {
                    Some(policy) => drop(world.policies.insert(key, policy.clone())),
                    None => drop(world.policies.remove(&key)),
                }
            }
            Self::Namespace(number, team) => {
                let name = NAMESPACES[*number].to_owned();
                tracker.set_namespace(&name, Some(labels(&[("team", team)])));
                world.namespaces.insert(name, labels(&[("team", team)]));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn prop_tables_say_what_upstream_means(steps in proptest::collection::vec(any_step(), 1..14)) {
        let (mut world, mut tracker) = (World::default(), Tracker::new(None));
        let mut tables = PolicyTables::default();
        for step in &steps {
            step.take(&mut world, &mut tracker);
            tables.make(&tracker.change());
        }
        check(&world, &tables)?;
        // The way there does not matter.
        let mut anew = PolicyTables::default();
        anew.make(&world.tracker().change());
        prop_assert_eq!(&tables, &anew);
        prop_assert!(tracker.full_change(&tables).is_empty());
    }

    #[test]
    fn prop_prefixes_are_exactly_the_range(first in 0_u16.., length in 0_u16..) {
        let last = first.saturating_add(length);
        let prefixes = prefixes_of(first, last);
        prop_assert!(prefixes.len() <= 30);
        let mut next = u32::from(first);
        for (port, bits) in prefixes {
            prop_assert_eq!(u32::from(port), next);
            prop_assert_eq!(next % (1 << (16 - bits)), 0);
            next += 1 << (16 - bits);
        }
        prop_assert_eq!(next, u32::from(last) + 1);
    }
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
    let mut tracker = Tracker::new(Some(node));
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
    let egress = |ports| PolicyInfo {
        namespace: "a".into(),
        subject: Selector::everything(),
        ingress: None,
        egress: Some(vec![Rule {
            peers: vec![dns.clone()],
            ports,
        }]),
    };
    let all_udp = vec![PortRange {
        proto: PROTO_UDP,
        ports: Ports::All,
    }];
    for (ports, tcp) in [(Vec::new(), true), (all_udp, false)] {
        tracker.set_policy(("a".into(), "dns".into()), Some(egress(ports)));
        let mut fake = Fake::default();
        fake.tables
            .make(&tracker.full_change(&PolicyTables::default()));
        let pod = ip("10.0.0.1");
        let ask = |proto, port| judge(&fake, &packet((pod, 5000), (node, port), proto, pod));
        assert_eq!(ask(PROTO_UDP, 53), Judgement::Pass);
        assert_eq!(ask(PROTO_TCP, 53) == Judgement::Pass, tcp);
        assert_eq!(ask(PROTO_TCP, 6443), Judgement::Deny);
        assert_eq!(ask(PROTO_UDP, 54), Judgement::Deny);
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
