//! The vxlan plugin: hosts are network namespaces with a bridge of their own, joined by a switch that is another one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

mod attach;
mod cluster;
mod input;
mod reach;
mod reconcile;
mod traffic;
