//! Fakes for the unit tests of this crate.

mod api;
mod node;
mod runtime;

pub(crate) use self::api::FakeApi;
pub(crate) use self::node::{TestNode, config_in, pod_from, pod_named, pod_path};
pub(crate) use self::runtime::FakeRuntime;
