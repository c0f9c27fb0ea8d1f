//! Which objects of a collection a request is about.

use std::collections::BTreeMap;

use skiff_api::resource::Kind;
use skiff_api::selector::{FieldSelector, LabelSelector};
use skiff_api::status::ApiStatus;

use crate::cache::{CacheEvent, CachedObject, EventType, Field, sparse};
use crate::call::Call;
use crate::failure::Failure;

/// Namespace, name and selectors.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// `namespace/`, or empty for all.
    pub(crate) prefix: String,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Objects are asked for as `events.k8s.io`, whose fields have other names.
    renamed_event: bool,
}

impl Selection {
    /// Reads it from a request. A name in the path selects that one object.
    pub(crate) fn of(call: &Call) -> Result<Self, Failure> {
        let resource = call.resource;
        let labels = LabelSelector::parse(call.query.get("labelSelector"))
            .map_err(|error| Failure::from(ApiStatus::bad_request(error.to_string())))?;
        let mut fields = call.query.get("fieldSelector").to_owned();
        if !call.request.name.is_empty() {
            let separator = if fields.is_empty() { "" } else { "," };
            fields = format!("{fields}{separator}metadata.name={}", call.request.name);
        }
        let fields = FieldSelector::parse(resource, &fields)
            .map_err(|error| Failure::from(ApiStatus::bad_request(error.to_string())))?;
        let namespace = call.request.namespace.as_str();
        let prefix = if resource.namespaced && !namespace.is_empty() {
            format!("{namespace}/")
        } else {
            String::new()
        };
        let renamed_event = resource.id == Kind::Event;
        Ok(Self {
            prefix,
            labels,
            fields,
            renamed_event,
        })
    }

    /// Whether a selector narrows it.
    pub(crate) fn has_selectors(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Whether an object belongs to it. The key is the one below the resource's prefix.
    pub(crate) fn matches(&self, key: &str, object: &CachedObject) -> bool {
        key.starts_with(&self.prefix)
            && self.matches_fields(key, &object.fields)
            && self.matches_labels(object)
    }

    fn matches_labels(&self, object: &CachedObject) -> bool {
        if self.labels.is_empty() {
            return true;
        }
        let labels: BTreeMap<String, String> = object
            .labels
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        self.labels.matches_labels(Some(&labels))
    }

    fn matches_fields(&self, key: &str, fields: &[Field]) -> bool {
        if self.fields.is_empty() {
            return true;
        }
        // The two selectors that matter for speed are decided without building an object.
        if let Some(name) = self.fields.required("metadata.name")
            && key.rsplit('/').next() != Some(name)
        {
            return false;
        }
        if let Some(node) = self.fields.required("spec.nodeName")
            && fields
                .iter()
                .find(|(path, _)| *path == "spec.nodeName")
                .map_or("", |(_, v)| v)
                != node
        {
            return false;
        }
        if self.renamed_event {
            let fields: Vec<Field> = fields
                .iter()
                .map(|(path, value)| (event_path(path), value.clone()))
                .collect();
            return self.fields.matches(&sparse(key, &fields));
        }
        self.fields.matches(&sparse(key, fields))
    }

    /// What a watcher of this selection sees of an event, as upstream has it: beginning to match is being
    /// added, ceasing to match is being deleted in the last state that matched.
    pub(crate) fn transition(&self, event: &CacheEvent) -> Option<EventType> {
        let before = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.matches(&event.key, previous));
        let after = event.kind != EventType::Deleted && self.matches(&event.key, &event.object);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(EventType::Added),
            (true, true) => Some(EventType::Modified),
            (true, false) => Some(EventType::Deleted),
        }
    }
}

fn event_path(stored: &'static str) -> &'static str {
    match stored {
        "involvedObject.kind" => "regarding.kind",
        "involvedObject.namespace" => "regarding.namespace",
        "involvedObject.name" => "regarding.name",
        "involvedObject.uid" => "regarding.uid",
        "involvedObject.apiVersion" => "regarding.apiVersion",
        "involvedObject.resourceVersion" => "regarding.resourceVersion",
        "involvedObject.fieldPath" => "regarding.fieldPath",
        "reportingComponent" => "reportingController",
        other => other,
    }
}
