//! The controllers against the real API server, in process, with a kubelet that only pretends.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends at the first surprise, also in its helpers"
)]

mod gc;
mod harness;
mod namespaces;
mod nodes;
mod services;
mod workloads;
