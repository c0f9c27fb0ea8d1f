//! One request for objects, with all that is known about it before its verb begins.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use skiff_api::resource::{Kind, Resource};
use skiff_api::status::ApiStatus;
use skiff_storage::{KeyValue, Revision};

use crate::cache::{CachedObject, ResourceCache};
use crate::failure::Failure;
use crate::object;
use crate::query::Query;
use crate::request_info::ResourceRequest;
use crate::server::Core;

/// A request for objects of a served resource.
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) resource: &'static Resource,
    pub(crate) request: ResourceRequest,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
}

/// An object as it stands in the store, in the version that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Existing {
    /// With `resourceVersion`.
    pub(crate) value: Value,
    /// Its last change.
    pub(crate) revision: Revision,
    /// The stored bytes, to recognise updates that change nothing.
    pub(crate) stored: Bytes,
}

impl Existing {
    /// Reads a stored pair.
    pub(crate) fn read(resource: &Resource, kv: KeyValue) -> Result<Self, Failure> {
        let mut value: Value = serde_json::from_slice(&kv.value).map_err(|error| {
            Failure::from(ApiStatus::internal(format!(
                "stored object {} is unreadable: {error}",
                kv.key
            )))
        })?;
        resource.from_storage(&mut value);
        object::set_version(&mut value, kv.mod_revision);
        Ok(Self {
            value,
            revision: kv.mod_revision,
            stored: kv.value,
        })
    }
}

impl Call {
    /// The cache of the resource.
    pub(crate) fn cache(&self) -> Result<&Arc<ResourceCache>, Failure> {
        let prefix = self.resource.storage_prefix;
        self.core
            .cache
            .resource(prefix)
            .ok_or_else(|| ApiStatus::internal(format!("no cache of {prefix}")).into())
    }

    /// The storage key of the object of this name.
    pub(crate) fn key(&self, name: &str) -> String {
        self.resource.storage_key(&self.request.namespace, name)
    }

    /// The key below the resource's prefix.
    pub(crate) fn short_key(&self, name: &str) -> String {
        if self.resource.namespaced {
            format!("{}/{name}", self.request.namespace)
        } else {
            name.to_owned()
        }
    }

    /// 404 for the object of the request.
    pub(crate) fn not_found(&self) -> Failure {
        ApiStatus::not_found(self.resource.group_resource(), &self.request.name).into()
    }

    /// The object of the request, as the store has it now.
    pub(crate) async fn load(&self) -> Result<Existing, Failure> {
        let (found, _) = self.core.store.get(&self.key(&self.request.name)).await?;
        Existing::read(self.resource, found.ok_or_else(|| self.not_found())?)
    }

    /// Parses the body as an object.
    pub(crate) async fn body(&self, body: Body) -> Result<Value, Failure> {
        crate::body::object(&self.headers, body).await
    }

    /// Whether cached objects have to be converted before they are served.
    pub(crate) fn converts(&self) -> bool {
        self.resource.id == Kind::Event
    }

    /// A cached object's JSON in the version that was asked for.
    pub(crate) fn json_of(&self, object: &CachedObject) -> Result<Bytes, Failure> {
        if !self.converts() {
            return Ok(object.json());
        }
        Ok(Bytes::from(self.value_of(object)?.to_string()))
    }

    /// A cached object, parsed, in the version that was asked for.
    pub(crate) fn value_of(&self, object: &CachedObject) -> Result<Value, Failure> {
        let mut value: Value = serde_json::from_slice(&object.json())
            .map_err(|error| Failure::from(ApiStatus::internal(error)))?;
        self.resource.from_storage(&mut value);
        Ok(value)
    }
}
