//! Masquerading of what pods send out of the node, by iptables (`nft` or legacy variant, whichever the machine has).
//!
//! ```text
//! POSTROUTING  -s SUBNET -j SKIFF-MASQ-<hash>                     one per network and subnet
//! SKIFF-MASQ-  -d SUBNET -j ACCEPT                                what stays inside keeps its source
//!              -s POD ! -d MULTICAST -j MASQUERADE                one per pod, with its name as a comment
//! ```
//! A packet that is not from a pod meets one rule per network, whatever the number of pods. The chain goes with its
//! last pod. Every change is made under a lock file, since iptables knows no "add if absent".

mod masquerade;

pub use masquerade::{FirewallError, Masquerade};
