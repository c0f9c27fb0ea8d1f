//! What the pods of each identity may say to those of the others: the table of rules. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use skiff_ebpf_common::{
    DIRECTION_EGRESS, DIRECTION_INGRESS, IDENTITY_ANY, IDENTITY_ISOLATED_EGRESS,
    IDENTITY_ISOLATED_INGRESS, PROTO_TCP, PROTO_UDP, PolicyRule, RULE_BITS_ANY, RULE_BITS_PORT,
    RULE_BITS_PROTO,
};
use skiff_ebpf_loader::PolicyRuleKey;

use super::{
    compile::{Compiled, CompiledPeer, CompiledRule, DNS, Signature, named_ports},
    objects::{PortRange, Ports},
};

/// Where policies expect DNS.
const DNS_PORT: u16 = 53;

/// Plans the table. `identities`: all signatures in use, and the identity of each. `dns`: the port at which the node serves
/// the cluster's DNS; policies know it as 53.
pub(super) fn plan_rules(
    compiled: &Compiled,
    identities: &HashMap<Signature, u32>,
    dns: u16,
) -> BTreeSet<PolicyRuleKey> {
    let mut all = BTreeSet::new();
    for (signature, id) in identities {
        if id & (IDENTITY_ISOLATED_INGRESS | IDENTITY_ISOLATED_EGRESS) == 0 {
            continue;
        }
        let subject = (signature, *id);
        let about = compiled.policies.iter();
        for policy in about.filter(|policy| signature.contains(&policy.subject)) {
            for rule in policy.ingress.iter().flatten() {
                plan_rule(subject, DIRECTION_INGRESS, rule, identities, dns, &mut all);
            }
            for rule in policy.egress.iter().flatten() {
                plan_rule(subject, DIRECTION_EGRESS, rule, identities, dns, &mut all);
            }
        }
    }
    all
}

/// How far a rule goes towards a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// As far as its ports say.
    All,
    /// To the port of DNS only, which its number is.
    Dns(u16),
}

fn plan_rule(
    (signature, subject): (&Signature, u32),
    direction: u8,
    rule: &CompiledRule,
    identities: &HashMap<Signature, u32>,
    dns: u16,
    all: &mut BTreeSet<PolicyRuleKey>,
) {
    // Names of ports are those of the pod that it goes to.
    let at_peer = direction == DIRECTION_EGRESS;
    let mut allow = |peer: u32, peer_signature: Option<&Signature>, reach: Reach| {
        let head = PolicyRule {
            subject,
            peer,
            direction,
            proto: 0,
            port: 0,
        };
        let target = if at_peer {
            peer_signature
        } else {
            Some(signature)
        };
        if rule.ports.is_empty() {
            match reach {
                Reach::All => {
                    all.insert(key(head, RULE_BITS_ANY));
                }
                Reach::Dns(port) => {
                    all.insert(port_key(head, PROTO_UDP, port, RULE_BITS_PORT));
                    all.insert(port_key(head, PROTO_TCP, port, RULE_BITS_PORT));
                }
            }
        }
        for port in &rule.ports {
            plan_ports(head, port, target, reach, all);
        }
    };
    if rule.peers.is_empty() {
        allow(IDENTITY_ANY, None, Reach::All);
    }
    let named = |port: &PortRange| matches!(port.ports, Ports::Named(_));
    let by_name = rule.peers.is_empty() && at_peer && rule.ports.iter().any(named);
    for (peer_signature, peer) in identities {
        let is_peer = !rule.peers.is_empty() && is_peer(&rule.peers, peer_signature);
        if is_peer || by_name {
            allow(*peer, Some(peer_signature), Reach::All);
        }
        let is_dns = at_peer && peer_signature.contains(DNS);
        if is_dns && (is_peer || rule.peers.is_empty() || stands_for(&rule.peers, peer_signature)) {
            allow(*peer, Some(peer_signature), Reach::Dns(dns));
        }
    }
}

fn is_peer(peers: &[CompiledPeer], signature: &BTreeSet<Arc<str>>) -> bool {
    peers.iter().any(|peer| match peer {
        CompiledPeer::Pods(atom) => signature.contains(atom),
        CompiledPeer::Block { cidr, except } => {
            signature.contains(cidr) && !except.iter().any(|atom| signature.contains(atom))
        }
    })
}

/// Whether the DNS server would be a peer if it were a pod.
fn stands_for(peers: &[CompiledPeer], signature: &BTreeSet<Arc<str>>) -> bool {
    peers.iter().any(|peer| match peer {
        CompiledPeer::Pods(atom) => signature.contains(format!("{DNS}{atom}").as_str()),
        CompiledPeer::Block { .. } => false,
    })
}

fn plan_ports(
    head: PolicyRule,
    ports: &PortRange,
    target: Option<&Signature>,
    reach: Reach,
    all: &mut BTreeSet<PolicyRuleKey>,
) {
    let proto = ports.proto;
    if let Reach::Dns(dns) = reach {
        let meant = match &ports.ports {
            Ports::All => true,
            Ports::Range(first, last) => (*first..=*last).contains(&DNS_PORT),
            Ports::Named(name) => matches!(
                (&**name, proto),
                ("dns", PROTO_UDP) | ("dns-tcp", PROTO_TCP)
            ),
        };
        if meant && matches!(proto, PROTO_TCP | PROTO_UDP) {
            all.insert(port_key(head, proto, dns, RULE_BITS_PORT));
        }
        return;
    }
    match &ports.ports {
        Ports::All => {
            all.insert(port_key(head, proto, 0, RULE_BITS_PROTO));
        }
        Ports::Range(first, last) => {
            let prefixes = prefixes_of(*first, *last).into_iter();
            all.extend(
                prefixes.map(|(port, bits)| port_key(head, proto, port, RULE_BITS_PROTO + bits)),
            );
        }
        Ports::Named(name) => {
            let named = target.map(|target| named_ports(target, proto, name));
            let named = named.into_iter().flatten();
            all.extend(named.map(|port| port_key(head, proto, port, RULE_BITS_PORT)));
        }
    }
}

fn port_key(head: PolicyRule, proto: u8, port: u16, prefix_len: u32) -> PolicyRuleKey {
    let port = port.to_be();
    key(
        PolicyRule {
            proto,
            port,
            ..head
        },
        prefix_len,
    )
}

fn key(rule: PolicyRule, prefix_len: u32) -> PolicyRuleKey {
    PolicyRuleKey { prefix_len, rule }
}

/// The fewest prefixes that are exactly the ports from `first` to `last`, each with the bits that count.
pub(super) fn prefixes_of(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        // As many as the alignment of the first and the number of what is left allow.
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let free = (end - next).ilog2().min(aligned);
        if let Ok(port) = u16::try_from(next) {
            prefixes.push((port, 16 - free));
        }
        next += 1 << free;
    }
    prefixes
}
