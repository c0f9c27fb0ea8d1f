//! Kubernetes object knowledge, without I/O: what the API server, controllers, scheduler and node share.
//!
//! Objects travel as [`serde_json::Value`]; the typed side is [`k8s_openapi`], re-exported here because
//! its types appear in this crate's API. [`resource::Registry`] is the entry point: it finds a
//! [`resource::Resource`], whose methods decode, default, prepare, validate and print objects of its kind.

pub mod decode;
pub mod defaults;
pub mod duration;
mod object;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod resource;
pub mod scale;
pub mod selector;
pub mod status;
pub mod table;
pub mod validation;

pub use k8s_openapi;
