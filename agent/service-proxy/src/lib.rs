//! Services and EndpointSlices as the API has them, turned into the datapath's tables.
//!
//! ```text
//! watch Services ───┐                     plan (pure)              diff              ebpf/loader
//! watch EndpointSlices ┴─> [`Tracker`] ─> what a Service needs ─> `TableDiff` ─> maps of the kernel
//!                                                                       or: [`Iptables`] ─> rules of the kernel
//! ```
//!
//! One task ([`ServiceProxy::run`]), no polling, no debounce: a change is applied when it arrives, together with whatever queued up
//! meanwhile. A change of one Service plans and writes that Service only. Nothing is written before both lists are
//! complete, so a restart changes nothing that is still wanted.

mod clients;
mod dataplane;
mod health;
mod iptables;
mod objects;
mod plan;
pub mod policy;
mod proxy;
mod retry;
mod sweep;
mod tracker;
mod warn;

pub use crate::{
    dataplane::{Dataplane, DataplaneError},
    health::NodeListeners,
    iptables::{Iptables, IptablesConfig, IptablesError, RuleWrites},
    objects::{
        EndpointInfo, Hints, PortInfo, ServiceInfo, ServiceName, SliceInfo, SlicePort, zone_of,
    },
    plan::{HealthCheck, ServicePlan, plan_service, plan_tables},
    proxy::{ProxyConfig, ProxyCounters, ProxyError, ProxyHandle, ServiceProxy},
    sweep::NodeNamespaces,
    tracker::{TableView, Tracker},
};
