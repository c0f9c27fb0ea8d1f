//! What the inner users of the API share on top of [`kube::Client`].
//!
//! - [`Informer`]: a typed, in-memory copy of a collection, kept up to date by one watch, with
//!   indexes and change notifications. One task per informer, owned by the caller's `JoinSet`.
//! - [`WorkQueue`]: a deduplicating queue of keys with per-key exponential back-off, and
//!   [`run_workers`], which drains it.
//! - [`EventRecorder`]: core/v1 Events, aggregated as client-go does, sent by one task so that the
//!   caller never waits.
//! - [`status_code`] and friends: what an API error means.
//!
//! It holds no Kubernetes policy of its own and knows no controller.

mod errors;
mod events;
mod informer;
mod workqueue;

pub use errors::{
    chain, is_already_exists, is_conflict, is_namespace_terminating, is_not_found, status_code,
};
pub use events::{EventKind, EventRecorder, object_reference};
pub use informer::{Change, Informer, InformerBuilder, Key};
pub use workqueue::{WorkQueue, run_workers};
