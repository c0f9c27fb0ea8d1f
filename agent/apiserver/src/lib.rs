//! The Kubernetes API server.
//!
//! Owns everything that speaks HTTP about objects: verbs, watch cache and fan-out, discovery, admission,
//! authentication and authorisation, and the proxy to the kubelets. It keeps its objects in a
//! [`skiff_storage::Store`] and knows of them what [`skiff_api`] says.
//!
//! [`ApiServer::router`] is a tower service for clients in this process, [`ApiServer::serve`] the same over
//! HTTPS, [`ApiServer::run`] what has to go on in the background for both.

mod admission;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod cache;
mod call;
mod discovery;
mod failure;
mod health;
mod maintenance;
mod metrics;
mod negotiate;
mod node_proxy;
mod object;
mod openapi;
mod protobuf;
mod query;
mod request_info;
mod respond;
mod reviews;
mod router;
mod selection;
mod server;
mod subresources;
#[cfg(test)]
mod tests;
mod tls;
mod verbs;
mod write;

pub use authn::UserInfo;
pub use node_proxy::{NodeDialer, NodeStream};
pub use server::{ApiServer, ApiServerError, ApiServerOptions};
