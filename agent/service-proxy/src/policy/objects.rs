//! What policies need of the API's objects, and nothing else.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::Pod,
        networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector as ApiSelector, util::intstr::IntOrString},
};
use skiff_api::selector::LabelSelector;
use skiff_ebpf_common::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use skiff_ebpf_loader::Prefix;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod with a network of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its UID.
    pub uid: Arc<str>,
    /// When it was made, in seconds: of two that claim one address the younger has it.
    pub created: i64,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, as far as its status tells.
    pub addrs: Vec<IpAddr>,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: Arc<str>,
    /// IP protocol.
    pub proto: u8,
    /// The port.
    pub port: u16,
}

impl PodInfo {
    /// What is needed of a pod; `None` if no policy can be about it: it uses its node's network, or has ended.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let ips = status.and_then(|status| status.pod_ips.as_ref());
        let ips = ips.into_iter().flatten().map(|ip| ip.ip.as_str());
        let single = status.and_then(|status| status.pod_ip.as_deref());
        let mut addrs: Vec<IpAddr> = ips.chain(single).filter_map(|ip| ip.parse().ok()).collect();
        addrs.sort();
        addrs.dedup();
        let inits = spec.init_containers.iter().flatten();
        let containers = inits.chain(&spec.containers);
        let ports = containers.flat_map(|c| c.ports.iter().flatten());
        let mut ports: Vec<NamedPort> = ports
            .filter_map(|port| {
                Some(NamedPort {
                    name: port.name.as_deref()?.into(),
                    proto: proto_of(port.protocol.as_deref()),
                    port: u16::try_from(port.container_port).ok()?,
                })
            })
            .collect();
        ports.sort();
        ports.dedup();
        let created = pod.metadata.creation_timestamp.as_ref();
        Some(Self {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            created: created.map_or(0, |time| time.0.as_second()),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            addrs,
            ports,
        })
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// Where it is, and the pods that it is about.
    pub namespace: Arc<str>,
    /// Which pods of its namespace.
    pub subject: Selector,
    /// What may come in; `None` if it says nothing about that.
    pub ingress: Option<Vec<Rule>>,
    /// What may go out; `None` if it says nothing about that.
    pub egress: Option<Vec<Rule>>,
}

/// Something that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// To or from whom. Empty: anybody.
    pub peers: Vec<Peer>,
    /// At which ports. Empty: all, and what has no ports.
    pub ports: Vec<PortRange>,
}

/// Somebody at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods {
        /// In which namespaces. `None`: the policy's own.
        namespaces: Option<Selector>,
        /// Which of them.
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// All these,
        cidr: Prefix,
        /// but not these.
        except: Vec<Prefix>,
    },
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// IP protocol.
    pub proto: u8,
    /// Which.
    pub ports: Ports,
}

/// Which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All.
    All,
    /// From the first to the last.
    Range(u16, u16),
    /// The one that the pod it goes to calls so.
    Named(Arc<str>),
}

/// A label selector that selects nothing if the API has let something malformed through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Option<LabelSelector>);

impl Selector {
    /// From the API's.
    #[must_use]
    pub fn of(selector: &ApiSelector) -> Self {
        let value = serde_json::to_value(selector).unwrap_or_default();
        Self(LabelSelector::from_object(&value).ok())
    }

    /// Selects everything.
    #[must_use]
    pub fn everything() -> Self {
        Self(Some(LabelSelector::default()))
    }

    /// Whether it selects an object with these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let selector = self.0.as_ref();
        selector.is_some_and(|selector| selector.matches_labels(Some(labels)))
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(selector) if selector.is_empty() => f.write_str("*"),
            Some(selector) => selector.fmt(f),
            None => f.write_str("-"),
        }
    }
}

impl PolicyInfo {
    /// What is needed of a policy.
    #[must_use]
    pub fn of(policy: &NetworkPolicy) -> Self {
        let spec = policy.spec.clone().unwrap_or_default();
        // The API server always sets the types; one that does not means what upstream's default is.
        let types = spec.policy_types.unwrap_or_else(|| {
            let both = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            let both = if both { Some("Egress") } else { None };
            let types = ["Ingress"].into_iter().chain(both);
            types.map(str::to_owned).collect()
        });
        let is_about = |kind: &str| types.iter().any(|t| t == kind);
        let ingress = spec.ingress.unwrap_or_default().into_iter();
        let ingress = ingress.map(|rule| rule_of(rule.from, rule.ports)).collect();
        let egress = spec.egress.unwrap_or_default().into_iter();
        let egress = egress.map(|rule| rule_of(rule.to, rule.ports)).collect();
        let subject = spec.pod_selector.as_ref();
        Self {
            namespace: policy
                .metadata
                .namespace
                .as_deref()
                .unwrap_or_default()
                .into(),
            subject: subject.map_or_else(Selector::everything, Selector::of),
            ingress: is_about("Ingress").then_some(ingress),
            egress: is_about("Egress").then_some(egress),
        }
    }
}

fn rule_of(peers: Option<Vec<NetworkPolicyPeer>>, ports: Option<Vec<NetworkPolicyPort>>) -> Rule {
    Rule {
        peers: peers.iter().flatten().map(peer_of).collect(),
        ports: ports.iter().flatten().map(port_of).collect(),
    }
}

/// What the API server does not let through must not become a peer that is anybody, hence
/// [`nobody`].
fn peer_of(peer: &NetworkPolicyPeer) -> Peer {
    if let Some(block) = &peer.ip_block {
        return block_of(block).unwrap_or_else(nobody);
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return nobody();
    }
    let pods = peer.pod_selector.as_ref();
    Peer::Pods {
        namespaces: peer.namespace_selector.as_ref().map(Selector::of),
        pods: pods.map_or_else(Selector::everything, Selector::of),
    }
}

fn nobody() -> Peer {
    Peer::Pods {
        namespaces: None,
        pods: Selector(None),
    }
}

fn block_of(block: &IPBlock) -> Option<Peer> {
    let except = block.except.iter().flatten();
    let except: Option<Vec<Prefix>> = except.map(|text| prefix_of(text)).collect();
    Some(Peer::Block {
        cidr: prefix_of(&block.cidr)?,
        except: except?,
    })
}

/// Reads `10.0.0.0/8`.
#[must_use]
pub fn prefix_of(text: &str) -> Option<Prefix> {
    let (addr, len) = text.split_once('/')?;
    Prefix::of(addr.parse().ok()?, len.parse().ok()?)
}

fn port_of(port: &NetworkPolicyPort) -> PortRange {
    let ports = match &port.port {
        None => Ports::All,
        Some(IntOrString::String(name)) => Ports::Named(name.as_str().into()),
        Some(IntOrString::Int(first)) => {
            let last = port.end_port.unwrap_or(*first);
            match (u16::try_from(*first), u16::try_from(last)) {
                (Ok(first), Ok(last)) => Ports::Range(first, last),
                // Refused by the API server; no port is meant.
                _ => Ports::Range(1, 0),
            }
        }
    };
    PortRange {
        proto: proto_of(port.protocol.as_deref()),
        ports,
    }
}

fn proto_of(protocol: Option<&str>) -> u8 {
    match protocol {
        Some("UDP") => PROTO_UDP,
        Some("SCTP") => PROTO_SCTP,
        _ => PROTO_TCP,
    }
}
