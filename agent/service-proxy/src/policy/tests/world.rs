//! A cluster, upstream's semantics told in the plainest way, and random changes under which the tables must agree with it.

use proptest::prelude::*;

use super::*;

/// What is in a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) namespaces: HashMap<String, Labels>,
    pub(super) pods: HashMap<(String, String), PodInfo>,
    pub(super) policies: HashMap<(String, String), PolicyInfo>,
}

impl World {
    pub(super) fn tracker(&self) -> Tracker {
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
