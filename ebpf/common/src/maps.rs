//! Map names: at most 15 characters, the kernel cuts off the rest.

/// Frontends: [`crate::ServiceKey`] to [`crate::Service`].
pub const SERVICES: &str = "LB_SERVICES";
/// Backend sets by index: [`crate::BackendSet`].
pub const SETS: &str = "LB_SETS";
/// The members of the sets: [`crate::Slot`].
pub const SLOTS: &str = "LB_SLOTS";
/// Backends by id: [`crate::Backend`].
pub const BACKENDS: &str = "LB_BACKENDS";
/// What a socket believes it talks to: [`crate::RevNatKey`] to [`crate::RevNat`].
pub const REV_NAT: &str = "LB_REV_NAT";
/// Client to backend, for session affinity: [`crate::AffinityKey`] to [`crate::Affinity`].
pub const AFFINITY: &str = "LB_AFFINITY";
/// Unconnected UDP socket to backend: same types as [`AFFINITY`].
pub const FLOWS: &str = "LB_FLOWS";
/// Who may use which frontends: [`crate::SourceKey`] to 1.
pub const SOURCES: &str = "LB_SOURCES";
/// What sockets send from: the cookie of a network namespace to [`crate::Client`].
pub const CLIENTS: &str = "LB_CLIENTS";
/// A ring of cookies that [`CLIENTS`] lacks.
pub const NEW_CLIENTS: &str = "LB_NEW_CLIENTS";
/// The node's own addresses (a set): [`crate::Addr`].
pub const NODE_ADDRS: &str = "LB_NODE_ADDRS";
/// Where the node's pods are: [`crate::Addr`] to [`crate::PodPort`].
pub const POD_PORTS: &str = "POD_PORTS";
/// What a pod may send as: the number of the node's end to [`crate::PodSource`].
pub const POD_SOURCES: &str = "POD_SOURCES";
/// The identities of pods: [`crate::Addr`] to [`crate::PolicyIds`].
pub const POLICY_IDS: &str = "POLICY_IDS";
/// The identities of other addresses: [`crate::PolicyCidrKey`] to [`crate::PolicyIds`].
pub const POLICY_CIDRS: &str = "POLICY_CIDRS";
/// What is allowed: [`crate::PolicyRuleKey`] to 1.
pub const POLICY_RULES: &str = "POLICY_RULES";
/// Connections that were allowed: [`crate::PolicyConnKey`] to [`crate::PolicyConn`].
pub const POLICY_CONNS: &str = "POLICY_CONNS";
/// Datagrams in pieces that were allowed: [`crate::PolicyFragKey`] to when.
pub const POLICY_FRAGS: &str = "POLICY_FRAGS";
/// Which of [`crate::PolicyIds`] holds: one number.
pub const POLICY_STATE: &str = "POLICY_STATE";
/// One [`crate::Config`].
pub const CONFIG: &str = "LB_CONFIG";
/// Per-CPU counters, indexed by [`crate::Metric`].
pub const METRICS: &str = "LB_METRICS";
/// Connections (TCP, and UDP by `connect`) by backend set.
pub const CONNECTIONS: &str = "LB_CONNECTIONS";
/// One [`crate::TraceFilter`].
pub const TRACE_FILTER: &str = "TRACE_FILTER";
/// A ring of [`crate::TraceEvent`]s.
pub const TRACE_EVENTS: &str = "TRACE_EVENTS";
/// Connections from outside: [`crate::FlowKey`] to [`crate::Flow`].
pub const NAT_FLOWS: &str = "NAT_FLOWS";
/// Ports of fragmented datagrams, as they lie in memory: [`crate::FragmentKey`] to `u32`.
pub const NAT_FRAGMENTS: &str = "NAT_FRAGMENTS";
/// All of them.
pub const ALL: [&str; 26] = [
    SERVICES,
    SETS,
    SLOTS,
    BACKENDS,
    REV_NAT,
    AFFINITY,
    FLOWS,
    SOURCES,
    CLIENTS,
    NEW_CLIENTS,
    NODE_ADDRS,
    POD_PORTS,
    POD_SOURCES,
    POLICY_IDS,
    POLICY_CIDRS,
    POLICY_RULES,
    POLICY_CONNS,
    POLICY_FRAGS,
    POLICY_STATE,
    CONFIG,
    METRICS,
    CONNECTIONS,
    TRACE_FILTER,
    TRACE_EVENTS,
    NAT_FLOWS,
    NAT_FRAGMENTS,
];
