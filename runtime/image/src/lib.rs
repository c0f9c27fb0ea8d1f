//! The OCI image store of a node: pull, verify, unpack, overlay snapshots and their removal.
//!
//! [`ImageStore`] owns one directory:
//!
//! ```text
//! images/<config digest>.json     one record for each image
//! layers/<diff id>/diff           the unpacked layer, in overlayfs form
//! layers/<diff id>/layer.json     written last: a layer without it is not there
//! containers/<key>/               a container's writable layer and mounted root
//! ingest/                         downloads and half unpacked layers, emptied at open
//! ```
//!
//! A pull goes reference -> endpoints ([`registries`](RegistriesConfig), mirrors first) -> manifest -> config -> layers.
//! Every blob is checked against its digest and size while it streams to `ingest/`, every layer against its
//! diff id while it is unpacked; only then is it renamed into place. Nothing runs in the background: a pull lives in
//! the future that [`ImageStore::pull`] returns, and pulls of the same image share it.
//!
//! Not supported, and refused with a message: schema 1 manifests, sparse tar entries, TLS client certificates
//! and identity tokens.

mod auth;
mod digest;
mod error;
mod manifest;
mod overlay;
mod reference;
mod registry;
mod snapshot;
mod store;
mod unpack;
mod user;

pub use auth::{AuthError, PullAuth};
pub use digest::{Digest, DigestError, ImageId};
pub use error::{PullError, PullErrorClass, PullFailure, StoreError};
pub use manifest::RunConfig;
pub use reference::{ImageReference, InvalidReference};
pub use registry::{EndpointFailures, FetchError, RegistriesConfig, RegistriesError, RetryPolicy};
pub use snapshot::{Mount, Snapshot, SnapshotError};
pub use store::{GcReport, ImageConfig, ImageRecord, ImageStore, ProgressFn, PullProgress};
pub use unpack::{UnpackError, UnpackLimits};
pub use user::{ResolvedUser, UserError, resolve_user};
