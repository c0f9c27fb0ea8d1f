//! The CNI specification's types: versions, names, configuration, results and errors. Pure.
//!
//! <https://github.com/containernetworking/cni/blob/main/SPEC.md>

mod config;
mod error;
mod names;
mod result;
mod version;

pub use config::{AttachmentKey, NetConf, decode};
pub use error::{CniError, code};
pub use names::{ContainerId, IfName, InvalidName, NetworkName, PluginType};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::{CniVersion, UnknownVersion};
