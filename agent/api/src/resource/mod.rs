//! The table of served resources: names, verbs, subresources, storage keys and per-kind hooks.

use std::fmt;

use serde_json::Value;

use crate::decode::{DecodeError, Decoded, Strictness};
use crate::validation::FieldError;

mod convert;
mod list;
pub(crate) mod service;
mod strategy;

pub use list::RESOURCES;
pub(crate) use strategy::same;

/// A resource name qualified by its group, printed as upstream does: `pods`, `deployments.apps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupResource<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
}

impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_qualified(f, self.resource, self.group)
    }
}

/// A kind qualified by its group, printed as upstream does: `Pod`, `Deployment.apps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupKind<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Kind.
    pub kind: &'a str,
}

impl fmt::Display for GroupKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_qualified(f, self.kind, self.group)
    }
}

fn write_qualified(f: &mut fmt::Formatter<'_>, name: &str, group: &str) -> fmt::Result {
    if group.is_empty() {
        f.write_str(name)
    } else {
        write!(f, "{name}.{group}")
    }
}

/// A subresource as discovery lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Last path segment, such as `status`.
    pub name: &'static str,
    /// Group of its kind (differs from the parent's for `scale`, `eviction`, `token`).
    pub group: &'static str,
    /// Version of its kind.
    pub version: &'static str,
    /// Kind that it reads and writes.
    pub kind: &'static str,
    /// Verbs as discovery lists them.
    pub verbs: &'static [&'static str],
}

/// The kinds that this crate has special knowledge of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the kind of that name")]
pub enum Kind {
    Pod,
    Service,
    Endpoints,
    Node,
    Namespace,
    ConfigMap,
    Secret,
    ServiceAccount,
    /// `v1` Event, also the stored form of both.
    CoreEvent,
    /// `events.k8s.io/v1` Event.
    Event,
    Deployment,
    ReplicaSet,
    EndpointSlice,
    Lease,
    NetworkPolicy,
}

/// One served resource.
#[derive(Debug)]
pub struct Resource {
    /// Which kind, for exhaustive matches.
    pub id: Kind,
    /// API group, empty for core.
    pub group: &'static str,
    /// API version within the group.
    pub version: &'static str,
    /// `v1` or `group/version`, as objects carry it.
    pub api_version: &'static str,
    /// Kind of one object.
    pub kind: &'static str,
    /// Kind of a list.
    pub list_kind: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Lower-case singular.
    pub singular: &'static str,
    /// What kubectl users type.
    pub short_names: &'static [&'static str],
    /// Such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs as discovery lists them.
    pub verbs: &'static [&'static str],
    /// Subresources as discovery lists them.
    pub subresources: &'static [Subresource],
    /// Key prefix in storage, with both slashes: `/registry/pods/`.
    pub storage_prefix: &'static str,
    pub(crate) decode: decode_fn::Decode,
}

pub(crate) mod decode_fn {
    //! Type of the per-kind decoding hook.
    use super::{DecodeError, Value};
    /// Decodes and normalises; pushes the paths of unknown fields.
    pub(crate) type Decode = fn(&Value, &mut Vec<String>) -> Result<Value, DecodeError>;
}

impl Resource {
    /// Its plural name with the group.
    pub fn group_resource(&self) -> GroupResource<'static> {
        GroupResource {
            group: self.group,
            resource: self.plural,
        }
    }

    /// Its kind with the group.
    pub fn group_kind(&self) -> GroupKind<'static> {
        GroupKind {
            group: self.group,
            kind: self.kind,
        }
    }

    /// The subresource of that name, if it has one.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether discovery lists `verb`.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Storage key of one object. `namespace` is ignored for cluster-scoped kinds.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.storage_prefix)
        } else {
            format!("{}{name}", self.storage_prefix)
        }
    }

    /// Storage prefix of a list: one namespace, or everything.
    pub fn storage_list_prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(ns) if self.namespaced => format!("{}{ns}/", self.storage_prefix),
            _ => self.storage_prefix.to_owned(),
        }
    }

    /// Checks an object against its type, drops unknown fields and brings it to the canonical form.
    /// A missing `apiVersion` or `kind` is filled in.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong kind, a wrong type or (strict) an unknown field.
    pub fn decode(&self, object: &Value, strictness: Strictness) -> Result<Decoded, DecodeError> {
        crate::decode::decode_resource(self, object, strictness)
    }

    /// Fills in what upstream's defaulting fills in.
    pub fn default(&self, object: &mut Value) {
        crate::defaults::apply(self.id, object);
    }

    /// Resets what a client may not set on creation (status), sets generation 1. Names, uid and
    /// timestamps are the API server's business.
    pub fn prepare_for_create(&self, object: &mut Value) {
        strategy::prepare_for_create(self, object);
    }

    /// Keeps status and system metadata of `old`, bumps the generation if the spec changed.
    pub fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        strategy::prepare_for_update(self, new, old);
    }

    /// Keeps everything but status (and what else the kind lets a status update change) of `old`.
    pub fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        strategy::prepare_for_status_update(self, new, old);
    }

    /// All that is wrong with a (defaulted) object.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        crate::validation::validate(self, object)
    }

    /// All that is wrong with the new object in itself and as a successor of the old one.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        crate::validation::validate_update(self, new, old)
    }

    /// As [`validate_update`](Self::validate_update) for the `status` subresource.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        crate::validation::validate_status_update(self, new, old)
    }

    /// Turns this version's form into the stored form (both Event versions share one).
    pub fn to_storage(&self, object: &mut Value) {
        convert::to_storage(self.id, object);
    }

    /// Turns the stored form into this version's.
    pub fn from_storage(&self, object: &mut Value) {
        convert::from_storage(self.id, object);
    }
}

/// Finds resources in the static table.
#[derive(Debug, Clone, Copy)]
pub struct Registry;

impl Registry {
    /// By group, version and plural name.
    pub fn get(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        Self::iter().find(|r| r.plural == plural && r.group == group && r.version == version)
    }

    /// By group, version and kind.
    pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
        Self::iter().find(|r| r.kind == kind && r.group == group && r.version == version)
    }

    /// By `apiVersion` and kind as objects carry them.
    pub fn by_api_version(api_version: &str, kind: &str) -> Option<&'static Resource> {
        Self::iter().find(|r| r.kind == kind && r.api_version == api_version)
    }

    /// The resource of a kind.
    pub fn of(kind: Kind) -> Option<&'static Resource> {
        Self::iter().find(|r| r.id == kind)
    }

    /// All of them, grouped by group and version.
    pub fn iter() -> std::slice::Iter<'static, Resource> {
        RESOURCES.iter()
    }

    /// Each served group and version once: `("", "v1")`, `("apps", "v1")`, ...
    pub fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
        let mut last = None;
        Self::iter().filter_map(move |r| {
            let gv = (r.group, r.version);
            (last.replace(gv) != Some(gv)).then_some(gv)
        })
    }
}

#[cfg(test)]
mod tests;
