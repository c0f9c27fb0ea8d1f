//! The kubelet's job: everything that makes the pods bound to a node run on it.
//!
//! ```text
//! kube::Client ── Manager ── one Worker per pod ──┬─ Runtime (sandbox, containers; skiff-runtime)
//!   (pods of      │          plan_pod, apply,     ├─ Images (skiff-image)
//!    this node)   │          status patch         ├─ PodNetwork (CNI conflist; skiff-cni)
//!                 │                               └─ volumes, probes, logs
//!                 ├─ sweep: what no pod owns
//! register, status_loop, lease_loop: the Node object and its Lease
//! kubelet_http: logs, exec, attach, stats for the API server
//! ```
//! Entry points: [`Node::new`], [`Node::run`], [`Node::kubelet_service`]. The node sees nothing of the control
//! plane but its `kube::Client`. When it stops, containers go on; [`Node::run`] of the next daemon adopts
//! them.

mod admission;
mod annotations;
mod backoff;
mod config;
mod context;
mod engine;
mod env;
mod images;
mod kubelet_http;
mod lease;
mod logs;
mod manager;
mod network;
mod node;
mod plan;
mod pod_worker;
mod probes;
mod register;
mod status;
mod sweep;
mod system;
#[cfg(test)]
mod testing;
mod volumes;

pub use crate::config::NodeConfig;
pub use crate::network::{MasqueradeError, PodPaths, PodPort, TeardownError, remove_network};
pub use crate::node::{Node, NodeError};
pub use crate::volumes::remove_volumes;
