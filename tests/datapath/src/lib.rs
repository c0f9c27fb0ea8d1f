//! Tests of the datapath with real sockets: a node is a child cgroup, a network namespace and a folder for pins.
//!
//! [`TestNode`] makes one and removes it, also after a failure. [`Probe`] is a process of a node (or beside it) that opens
//! sockets on command. Needs root; everything has a name of its own, so tests run beside each other.

pub mod api;
mod bridged;
mod fixture;
mod node;
pub mod packet;
mod pod;

pub use skiff_test_harness::probe::{Probe, protocol};

pub use crate::{
    bridged::{BridgedNode, OUTSIDE, UPLINK, UPLINK6, pod6},
    fixture::{
        EMPTY, EMPTY6, TARGET, VIP, VIP6, names, only, pod_names, pods, program, servers, spec,
        tables, tables6, tcp, udp, web,
    },
    node::{NODE, NODE6, PODS, PODS6, TestNode, ip},
    pod::{POD_PORT, Pod, addr_v6, bridge},
};
