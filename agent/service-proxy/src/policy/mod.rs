//! NetworkPolicies as the API has them, turned into the datapath's tables.
//!
//! ```text
//! watch NetworkPolicies ┐                compile (pure)         change            ebpf/loader
//! watch Namespaces ─────┼─> [`Tracker`] ─> atoms, identities ─> `PolicyChange` ─> maps of the kernel
//! watch Pods ───────────┘                  and rules
//! ```
//!
//! What policies cannot tell apart shares an identity, so a further pod of a Deployment is one entry in a map and no rule.
//! Addresses that no policy can tell from the rest of the world have none at all: without policies the tables are empty.
//!
//! Semantics beyond upstream's text:
//!
//! - A pod and its own node: the node always reaches the pod (probes). What the pod sends to the node is judged as anything
//!   else; `ipBlock`s name the node. The cluster's DNS, which the node serves, counts as upstream's pods of it
//!   (`k8s-app: kube-dns` in `kube-system`), at the port of DNS only, which rules know as 53.
//! - Pods on their node's network are the node: no selector selects them.
//! - An `ipBlock` holds for pods' addresses too, before any address is translated on the way out of the node.
//! - Policies are for new connections. One that was allowed goes on, also if a change of policies would not allow it any more.
//! - What has no ports (ICMP and others) needs a rule without ports. Answers and errors of what was allowed pass.

mod agent;
mod compile;
mod objects;
mod rules;
mod tracker;

#[cfg(test)]
mod tests;

pub use self::{
    agent::{PolicyAgent, PolicyConfig, PolicyError, PolicyHandle},
    objects::{
        Labels, NamedPort, Peer, PodInfo, PolicyInfo, PortRange, Ports, Rule, Selector, prefix_of,
    },
    tracker::{Key, Tracker},
};
