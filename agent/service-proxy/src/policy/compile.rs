//! Policies as atoms, and what follows for identities and rules. Pure.
//!
//! An atom is one thing that a policy can tell about an address: that a pod selector in a namespace (or in namespaces that a
//! selector selects) selects its pod, that it lies in a CIDR, that its pod has a named port. The atoms that hold for an address
//! are its [`Signature`]; addresses of one signature share an identity, however many they are. Atoms are kept as text, so an
//! identity is the same after a restart and does not depend on other policies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use skiff_ebpf_common::{IDENTITY_ISOLATED_EGRESS, IDENTITY_ISOLATED_INGRESS};
use skiff_ebpf_loader::Prefix;

use super::objects::{Labels, NamedPort, Peer, PodInfo, PolicyInfo, PortRange, Ports, Selector};

/// The atoms that hold for an address.
pub(super) type Signature = Arc<BTreeSet<Arc<str>>>;

/// All policies, compiled.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pods: BTreeMap<Arc<str>, PodAtom>,
    cidrs: BTreeMap<Prefix, Arc<str>>,
    port_names: BTreeSet<(Arc<str>, u8)>,
    pub(super) policies: Vec<CompiledPolicy>,
}

#[derive(Debug)]
struct PodAtom {
    scope: Scope,
    pods: Selector,
}

#[derive(Debug)]
enum Scope {
    Namespace(Arc<str>),
    Namespaces(Selector),
}

#[derive(Debug)]
pub(super) struct CompiledPolicy {
    pub(super) subject: Arc<str>,
    pub(super) ingress: Option<Vec<CompiledRule>>,
    pub(super) egress: Option<Vec<CompiledRule>>,
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    /// Empty: anybody.
    pub(super) peers: Vec<CompiledPeer>,
    /// Empty: all, and what has no ports.
    pub(super) ports: Vec<PortRange>,
}

#[derive(Debug)]
pub(super) enum CompiledPeer {
    Pods(Arc<str>),
    Block {
        cidr: Arc<str>,
        except: Vec<Arc<str>>,
    },
}

/// The atom of the cluster's DNS server, which is no pod here but stands for upstream's; and the start of the atoms that it
/// would have as one.
pub(super) const DNS: &str = "dns ";

impl Compiled {
    pub(super) fn of<'a>(policies: impl Iterator<Item = &'a PolicyInfo>) -> Self {
        let mut compiled = Self::default();
        for policy in policies {
            let own = &policy.namespace;
            let subject = compiled.pod_atom(own, None, &policy.subject);
            let ingress = policy.ingress.as_ref();
            let ingress = ingress.map(|rules| compiled.rules(own, rules));
            let egress = policy.egress.as_ref();
            let egress = egress.map(|rules| compiled.rules(own, rules));
            compiled.policies.push(CompiledPolicy {
                subject,
                ingress,
                egress,
            });
        }
        compiled.part_families();
        compiled
    }

    /// IPv4 addresses are IPv6 ones in the tables, and not to be found in an IPv6 prefix there.
    fn part_families(&mut self) {
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]);
        let all_v4 = Prefix::of(IpAddr::from([0; 4]), 0);
        if let Some(all_v4) = all_v4
            && self.cidrs.keys().any(|prefix| prefix.contains(mapped))
        {
            self.cidr_atom(all_v4);
        }
    }

    fn rules(&mut self, own: &Arc<str>, rules: &[super::objects::Rule]) -> Vec<CompiledRule> {
        let mut compiled = Vec::with_capacity(rules.len());
        for rule in rules {
            for port in &rule.ports {
                if let Ports::Named(name) = &port.ports {
                    self.port_names.insert((Arc::clone(name), port.proto));
                }
            }
            let peers = rule.peers.iter().map(|peer| match peer {
                Peer::Pods { namespaces, pods } => {
                    CompiledPeer::Pods(self.pod_atom(own, namespaces.as_ref(), pods))
                }
                Peer::Block { cidr, except } => CompiledPeer::Block {
                    cidr: self.cidr_atom(*cidr),
                    except: except.iter().map(|cidr| self.cidr_atom(*cidr)).collect(),
                },
            });
            compiled.push(CompiledRule {
                peers: peers.collect(),
                ports: rule.ports.clone(),
            });
        }
        compiled
    }

    fn pod_atom(
        &mut self,
        own: &Arc<str>,
        namespaces: Option<&Selector>,
        pods: &Selector,
    ) -> Arc<str> {
        let (text, scope) = match namespaces {
            None => (
                format!("pods {pods} in {own}"),
                Scope::Namespace(Arc::clone(own)),
            ),
            Some(namespaces) => (
                format!("pods {pods} in namespaces {namespaces}"),
                Scope::Namespaces(namespaces.clone()),
            ),
        };
        let text: Arc<str> = text.into();
        let pods = pods.clone();
        let atom = PodAtom { scope, pods };
        self.pods.entry(Arc::clone(&text)).or_insert(atom);
        text
    }

    fn cidr_atom(&mut self, prefix: Prefix) -> Arc<str> {
        let text = || format!("in {}/{}", prefix.addr(), prefix.len()).into();
        Arc::clone(self.cidrs.entry(prefix).or_insert_with(text))
    }

    /// The atoms of a pod that do not depend on its address.
    pub(super) fn atoms_of_pod(
        &self,
        namespace: &str,
        pod: &PodInfo,
        namespaces: &HashMap<Arc<str>, Labels>,
    ) -> BTreeSet<Arc<str>> {
        let mut atoms = self.atoms_of_labels(namespace, &pod.labels, namespaces);
        let named = |port: &&NamedPort| {
            let name = (Arc::clone(&port.name), port.proto);
            self.port_names.contains(&name)
        };
        atoms.extend(pod.ports.iter().filter(named).map(port_atom));
        atoms
    }

    fn atoms_of_labels(
        &self,
        namespace: &str,
        labels: &Labels,
        namespaces: &HashMap<Arc<str>, Labels>,
    ) -> BTreeSet<Arc<str>> {
        let holds = |atom: &PodAtom| {
            let in_scope = match &atom.scope {
                Scope::Namespace(name) => &**name == namespace,
                Scope::Namespaces(selector) => namespaces
                    .get(namespace)
                    .is_some_and(|labels| selector.matches(labels)),
            };
            in_scope && atom.pods.matches(labels)
        };
        let holding = self.pods.iter().filter(|(_, atom)| holds(atom));
        holding.map(|(text, _)| Arc::clone(text)).collect()
    }

    /// The atoms of the node's address, at which it serves the cluster's DNS: policies mean that by upstream's DNS pods.
    pub(super) fn atoms_of_dns(
        &self,
        namespaces: &HashMap<Arc<str>, Labels>,
    ) -> BTreeSet<Arc<str>> {
        let labels = [("k8s-app".to_owned(), "kube-dns".to_owned())].into();
        let atoms = self.atoms_of_labels("kube-system", &labels, namespaces);
        // Rules that name no peer are about it too.
        let itself = (!self.policies.is_empty()).then(|| DNS.into());
        let as_pod = atoms.iter().map(|text| format!("{DNS}{text}").into());
        as_pod.chain(itself).collect()
    }

    /// The atoms that an address has by itself.
    pub(super) fn atoms_of_addr(&self, addr: IpAddr) -> impl Iterator<Item = Arc<str>> {
        let covering = self
            .cidrs
            .iter()
            .filter(move |(prefix, _)| prefix.contains(addr));
        covering.map(|(_, text)| Arc::clone(text))
    }

    /// The prefixes that policies name, each with the signature of an address that is in no longer one.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (Prefix, Signature)> {
        self.cidrs.keys().map(|prefix| {
            let covering = self.cidrs.iter().filter(|(outer, _)| outer.covers(*prefix));
            let atoms = covering.map(|(_, text)| Arc::clone(text)).collect();
            (*prefix, Arc::new(atoms))
        })
    }

    /// In which directions addresses of a signature are isolated: bits of an identity.
    pub(super) fn isolation(&self, signature: &BTreeSet<Arc<str>>) -> u32 {
        let about = self
            .policies
            .iter()
            .filter(|p| signature.contains(&p.subject));
        about.fold(0, |bits, policy| {
            let ingress = policy
                .ingress
                .as_ref()
                .map_or(0, |_| IDENTITY_ISOLATED_INGRESS);
            let egress = policy
                .egress
                .as_ref()
                .map_or(0, |_| IDENTITY_ISOLATED_EGRESS);
            bits | ingress | egress
        })
    }
}

fn port_atom(port: &NamedPort) -> Arc<str> {
    format!("port {} {} {}", port.proto, port.name, port.port).into()
}

/// The ports of that name that a signature's pods have.
pub(super) fn named_ports(signature: &BTreeSet<Arc<str>>, proto: u8, name: &str) -> Vec<u16> {
    let start = format!("port {proto} {name} ");
    let from = signature.range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
    let these = from.take_while(|atom| atom.starts_with(&start));
    these
        .filter_map(|atom| atom.get(start.len()..)?.parse().ok())
        .collect()
}
