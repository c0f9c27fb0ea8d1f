//! What the server itself demands of objects, and adds to them, before they are stored.

pub(crate) mod namespace;
pub(crate) mod service;
