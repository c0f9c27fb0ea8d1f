//! One module per verb.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod delete_collection;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod prepare;
pub(crate) mod update;
pub(crate) mod watch;
