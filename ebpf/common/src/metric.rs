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
}

/// How many [`Metric`]s there are.
pub const METRICS: u32 = 10;
