//! Runs configuration lists, as the reference `libcni` does: plugins in order, `prevResult` handed on, results cached.
//!
//! Entry points: [`Conflist::load_dir`] and [`CniRunner`]; [`delegate`] for plugins that call an IPAM plugin.

mod cache;
mod conflist;
pub mod delegate;
mod exec;
mod runner;

pub use conflist::{Conflist, ConflistError, PluginConf};
pub use exec::{ExecError, PluginCall, run_plugin};
pub use runner::{Attachment, CniRunner, RunnerError};

/// What names an attachment of a network.
pub use crate::types::AttachmentKey;
