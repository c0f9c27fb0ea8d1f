//! Registries: which endpoints serve an image, and fetching manifests and blobs from them.

mod config;
mod endpoint;
mod remote;

pub use config::{RegistriesConfig, RegistriesError};
pub use endpoint::{EndpointFailures, FetchError};
pub use remote::RetryPolicy;

pub(crate) use endpoint::{chain, plan_endpoints};
pub(crate) use remote::Remote;
