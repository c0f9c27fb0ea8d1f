//! Controller references: who owns whom, and what an owner may claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use kube::core::{Selector, SelectorExt};

use crate::errors::ControllerError;

/// The owner that controls the object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// A reference to `owner` as its controller.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn selector_of(
    selector: &LabelSelector,
    object: impl std::fmt::Display,
) -> Result<Selector, ControllerError> {
    Selector::try_from(selector.clone()).map_err(|source| ControllerError::Selector {
        object: object.to_string(),
        source,
    })
}

/// Whether the selector selects these labels. The empty selector selects nothing here, as
/// upstream's controllers have it.
pub(crate) fn selects(selector: &Selector, labels: Option<&BTreeMap<String, String>>) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    !selector.selects_all() && selector.matches(labels.unwrap_or(&NONE))
}

/// What `plan_claims` found.
#[derive(Debug)]
pub(crate) struct Claims<K> {
    /// Ours already, and still selected.
    pub(crate) owned: Vec<Arc<K>>,
    /// Nobody's, and selected: to be adopted.
    pub(crate) adopt: Vec<Arc<K>>,
    /// Ours, but selected no longer: to be released.
    pub(crate) release: Vec<Arc<K>>,
}

/// Sorts candidates by what the owner is to do with them. An owner that is being deleted claims
/// nothing new and releases nothing.
pub(crate) fn plan_claims<K: Resource>(
    owner: &ObjectMeta,
    selector: &Selector,
    candidates: impl IntoIterator<Item = Arc<K>>,
) -> Claims<K> {
    let mut claims = Claims {
        owned: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    let deleting = owner.deletion_timestamp.is_some();
    for object in candidates {
        let meta = object.meta();
        let selected = selects(selector, meta.labels.as_ref());
        match controller_of(meta) {
            Some(controller) if Some(&controller.uid) == owner.uid.as_ref() => {
                if selected {
                    claims.owned.push(object);
                } else if !deleting {
                    claims.release.push(object);
                }
            }
            Some(_) => {}
            None => {
                if selected && !deleting && meta.deletion_timestamp.is_none() {
                    claims.adopt.push(object);
                }
            }
        }
    }
    claims
}

/// The merge patch by which `owner` adopts an object. The UID keeps it from adopting a namesake.
pub(crate) fn adopt_patch(object: &ObjectMeta, owner: &OwnerReference) -> serde_json::Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.push(owner.clone());
    serde_json::json!({"metadata": {
        "uid": object.uid, "resourceVersion": object.resource_version, "ownerReferences": owners,
    }})
}

/// The merge patch by which the owner of that UID lets an object go.
pub(crate) fn release_patch(object: &ObjectMeta, owner_uid: &str) -> serde_json::Value {
    let owners: Vec<_> = object
        .owner_references
        .iter()
        .flatten()
        .filter(|o| o.uid != owner_uid)
        .collect();
    let owners = if owners.is_empty() {
        None
    } else {
        Some(owners)
    };
    serde_json::json!({"metadata": {
        "uid": object.uid, "resourceVersion": object.resource_version, "ownerReferences": owners,
    }})
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str, app: &str, owner: Option<&str>, deleting: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.labels = Some(BTreeMap::from([("app".to_owned(), app.to_owned())]));
        pod.metadata.owner_references = owner.map(|uid| {
            vec![OwnerReference {
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]
        });
        if deleting {
            pod.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH.into());
        }
        Arc::new(pod)
    }

    #[test]
    fn claims_follow_selector_and_controller() {
        let owner = ObjectMeta {
            uid: Some("me".to_owned()),
            ..ObjectMeta::default()
        };
        let selector: Selector = [("app", "a")].into_iter().collect();
        let pods = vec![
            pod("mine", "a", Some("me"), false),
            pod("relabelled", "b", Some("me"), false),
            pod("orphan", "a", None, false),
            pod("dying-orphan", "a", None, true),
            pod("other", "a", Some("you"), false),
            pod("stranger", "b", None, false),
        ];
        let names = |pods: &[Arc<Pod>]| -> Vec<String> {
            pods.iter()
                .filter_map(|p| p.metadata.name.clone())
                .collect()
        };
        let claims = plan_claims(&owner, &selector, pods.clone());
        assert_eq!(names(&claims.owned), ["mine"]);
        assert_eq!(names(&claims.adopt), ["orphan"]);
        assert_eq!(names(&claims.release), ["relabelled"]);

        let dying = ObjectMeta {
            deletion_timestamp: Some(jiff::Timestamp::UNIX_EPOCH.into()),
            ..owner
        };
        let claims = plan_claims(&dying, &selector, pods);
        assert_eq!(names(&claims.owned), ["mine"]);
        assert!(claims.adopt.is_empty() && claims.release.is_empty());
    }

    #[test]
    fn the_last_release_removes_the_field() {
        let pod = pod("p", "a", Some("me"), false);
        let patch = release_patch(&pod.metadata, "me");
        assert!(patch["metadata"]["ownerReferences"].is_null());
    }
}
