//! Counters.

/// What is counted, per CPU.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Connections (TCP, and UDP by `connect`) sent to a backend.
    Connects = 0,
    /// Datagrams of unconnected sockets sent to a backend.
    Datagrams = 1,
    /// Refused because the Service has no backend.
    Refused = 2,
    /// Of the above, how many kept their backend by session affinity.
    AffinityHits = 3,
    /// Replies whose source was turned back.
    Replies = 4,
    /// The name of the Service was given as the peer's.
    PeerNames = 5,
    /// A table could not be written because it is full.
    TableFull = 6,
    /// A set could not be read consistently in all attempts; refused.
    Inconsistent = 7,
    /// Packets from pod to pod that went around the bridge.
    PodDirect = 8,
    /// Packets of pods with a source that is not theirs; dropped.
    PodSpoofed = 9,
    /// Packets from clients outside, towards a backend.
    NatPackets = 10,
    /// Their bytes.
    NatBytes = 11,
    /// Packets of backends, towards a client outside.
    NatReplyPackets = 12,
    /// Their bytes.
    NatReplyBytes = 13,
    /// Connections from outside sent to a backend.
    NatFlows = 14,
    /// Packets from outside refused because the Service has no backend.
    NatRefused = 15,
    /// Dropped: `externalTrafficPolicy: Local` and no backend on this node.
    NatNoLocal = 16,
    /// Dropped: no free port of the node for a backend on another one, or no way there.
    NatNoWay = 17,
    /// Dropped: has been on its way for too long.
    NatExpired = 18,
    /// Packets that a pod's policies do not let out; dropped.
    PolicyEgress = 19,
    /// Packets that a pod's policies do not let in; dropped.
    PolicyIngress = 20,
    /// Packets to or from a pod whose policies are not known yet; dropped.
    PolicyUnknown = 21,
    /// Dropped: the client is not in the Service's source ranges.
    NatSource = 22,
}

/// How many [`Metric`]s there are.
pub const METRICS: u32 = 23;
