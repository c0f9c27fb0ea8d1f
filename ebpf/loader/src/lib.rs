//! Loads, attaches and pins the kernel programs of `ebpf/programs`, and writes their tables. The only user of aya.
//!
//! [`Datapath::open`] brings a node's datapath up or adopts the one that is there; [`Datapath::apply`] changes its tables;
//! [`teardown`] removes it. The kernel objects live in a folder of the BPF file system, not in this process: when the
//! daemon dies nothing changes for the node's connections.
//!
//! Tables are values ([`DesiredTables`], [`TableDiff`]); which set lies where in the maps is known only here.
#![expect(
    unsafe_code,
    reason = "bpf(2), shared mappings and socket options that no crate offers"
)]

mod bpffs;
mod clients;
mod datapath;
mod error;
mod flows;
#[cfg(feature = "bench")]
mod generator;
mod inspect;
mod limits;
mod pods;
mod policy;
mod programs;
mod stale;
mod sys;
mod tables;
mod test_run;
mod trace;
mod uplink;

#[cfg(feature = "bench")]
pub use crate::generator::PacketGenerator;
pub use crate::{
    bpffs::teardown,
    clients::{ClientTable, netns_client},
    datapath::{Counters, Datapath, DatapathConfig, NodeSettings, netns_cookie},
    error::DatapathError,
    flows::{FlowState, FlowTable, NatFlow, Swept},
    inspect::{Inspector, Pressure, SeenFrontend, SocketPeer},
    limits::Limits,
    pods::{PodPaths, PodPort},
    policy::{
        AllowedPorts, Policies, PolicyChange, PolicyDirection, PolicyInspector, PolicyLink,
        PolicyRuleKey, PolicyTables, PolicyVerdict, Prefix, SeenRule,
    },
    programs::attached_programs,
    stale::{Ended, StalePeer, end_sockets},
    tables::{
        Backend, DesiredTables, Frontend, FrontendSpec, IpFamily, Protocol, SetId, TableDiff,
        TableState, Writes,
    },
    test_run::{TestRun, test_run, test_run_xdp},
    trace::{TraceHook, TraceVerdict, Traced, Tracer, Want},
    uplink::Uplinks,
};
