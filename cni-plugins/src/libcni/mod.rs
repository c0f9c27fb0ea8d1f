//! Runs configuration lists, as the reference `libcni` does: plugins in order, `prevResult` handed on, results cached.
//!
//! Entry points: [`Conflist::load_dir`] and [`CniRunner`]; [`delegate`] for plugins that call an IPAM plugin.

mod cache;
mod conflist;
pub mod delegate;
mod error;
mod exec;
mod folder;
mod lock;
mod request;
mod runner;

pub use cache::CachedAttachment;
pub use conflist::{Conflist, PluginConf};
pub use error::RunnerError;
pub use exec::{ExecError, PluginCall, run_plugin};
pub use folder::ConflistError;
pub use runner::{Attachment, CniRunner};

/// What names an attachment of a network.
pub use crate::types::AttachmentKey;
