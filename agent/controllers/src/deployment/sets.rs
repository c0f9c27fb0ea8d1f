//! A Deployment's ReplicaSets: which is the new one, their revisions, annotations and names. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::owner::controller_reference;

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// The ReplicaSets of one Deployment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    pub(crate) new: Option<Arc<ReplicaSet>>,
    /// Oldest first.
    pub(crate) old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    /// Sorts out the one whose template is the Deployment's; the oldest, should there be several.
    pub(crate) fn of(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Sets {
        all.sort_by_key(|rs| age_key(rs));
        let template = template_of(deployment);
        let new = all.iter().position(|rs| {
            let theirs = rs.spec.as_ref().and_then(|s| s.template.as_ref());
            theirs.is_some_and(|theirs| same_template(theirs, &template))
        });
        let new = new.map(|index| all.remove(index));
        Sets { new, old: all }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.as_ref())
    }

    /// Puts a written ReplicaSet in the place of its previous state.
    pub(crate) fn put(&mut self, written: ReplicaSet) {
        let written = Arc::new(written);
        for rs in self.old.iter_mut().chain(self.new.as_mut()) {
            if rs.metadata.uid == written.metadata.uid {
                *rs = Arc::clone(&written);
                return;
            }
        }
        self.new = Some(written);
    }
}

pub(crate) fn age_key(rs: &ReplicaSet) -> impl Ord + use<> {
    (
        rs.metadata.creation_timestamp.as_ref().map(|t| t.0),
        rs.metadata.name.clone(),
    )
}

pub(crate) fn template_of(deployment: &Deployment) -> PodTemplateSpec {
    deployment
        .spec
        .as_ref()
        .map(|s| s.template.clone())
        .unwrap_or_default()
}

pub(crate) fn wanted(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1)
}

pub(crate) fn spec_replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(crate) fn status_replicas(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |s| s.replicas)
}

pub(crate) fn available(rs: &ReplicaSet) -> i32 {
    rs.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

/// Equal but for the label that we put on it.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let labels = |t: &PodTemplateSpec| -> BTreeMap<String, String> {
        let mut labels = t
            .metadata
            .as_ref()
            .and_then(|m| m.labels.clone())
            .unwrap_or_default();
        labels.remove(HASH_LABEL);
        labels
    };
    let annotations = |t: &PodTemplateSpec| {
        t.metadata
            .as_ref()
            .and_then(|m| m.annotations.clone())
            .unwrap_or_default()
    };
    a.spec == b.spec && labels(a) == labels(b) && annotations(a) == annotations(b)
}

/// FNV-1a over the template as JSON (its maps are ordered) and the collision count, in the alphabet
/// in which upstream writes it: no vowels, so no words.
pub(crate) fn template_hash(
    template: &PodTemplateSpec,
    collisions: Option<i32>,
) -> Result<String, serde_json::Error> {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = serde_json::to_vec(template)?;
    if let Some(collisions) = collisions {
        bytes.extend(collisions.to_le_bytes());
    }
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let digits = hash.to_string();
    Ok(digits
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % 27]))
        .collect())
}

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations
        .as_ref()
        .and_then(|a| a.get(key))
        .map(String::as_str)
}

fn number(meta: &ObjectMeta, key: &str) -> Option<i64> {
    annotation(meta, key).and_then(|v| v.parse().ok())
}

pub(crate) fn revision(meta: &ObjectMeta) -> i64 {
    number(meta, REVISION).unwrap_or(0)
}

/// What the Deployment wanted when the set was last scaled.
pub(crate) fn desired_annotation(rs: &ReplicaSet) -> Option<i32> {
    number(&rs.metadata, DESIRED).and_then(|n| i32::try_from(n).ok())
}

pub(crate) fn max_annotation(rs: &ReplicaSet) -> Option<i32> {
    number(&rs.metadata, MAX).and_then(|n| i32::try_from(n).ok())
}

/// The revision that the new set is to have.
pub(crate) fn next_revision(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter()
        .map(|rs| revision(&rs.metadata))
        .max()
        .unwrap_or(0)
        + 1
}

/// The annotations of the new set brought up to date: the Deployment's own, and the revision, which
/// grows when an old set becomes the new one again.
pub(crate) fn plan_annotations(
    deployment: &Deployment,
    current: &ObjectMeta,
    new_revision: i64,
) -> BTreeMap<String, String> {
    let mut result = current.annotations.clone().unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            result.insert(key.clone(), value.clone());
        }
    }
    let old = revision(current);
    if old < new_revision {
        result.insert(REVISION.to_owned(), new_revision.to_string());
        if old > 0 {
            let history = annotation(current, REVISION_HISTORY).filter(|h| !h.is_empty());
            let history = history.map_or(old.to_string(), |h| format!("{h},{old}"));
            result.insert(REVISION_HISTORY.to_owned(), history);
        }
    }
    result
}

/// A ReplicaSet for the Deployment's template.
pub(crate) fn build_new(
    deployment: &Deployment,
    hash: &str,
    revision: i64,
    replicas: i32,
    max_replicas: i32,
) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = spec.template;
    let hash_label = || (HASH_LABEL.to_owned(), hash.to_owned());
    let template_meta = template.metadata.get_or_insert_default();
    template_meta
        .labels
        .get_or_insert_default()
        .extend([hash_label()]);
    let labels = template_meta.labels.clone();
    let mut match_labels = spec.selector.match_labels.unwrap_or_default();
    match_labels.extend([hash_label()]);
    let mut annotations = plan_annotations(deployment, &ObjectMeta::default(), revision);
    annotations.insert(DESIRED.to_owned(), wanted(deployment).to_string());
    annotations.insert(MAX.to_owned(), max_replicas.to_string());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: Some(match_labels),
                match_expressions: spec.selector.match_expressions,
            },
            template: Some(template),
        }),
        status: None,
    }
}

/// Old sets beyond `revisionHistoryLimit`, the oldest revisions, as far as they are empty.
pub(crate) fn plan_clean_up(deployment: &Deployment, sets: &Sets) -> Vec<Arc<ReplicaSet>> {
    let limit = deployment
        .spec
        .as_ref()
        .and_then(|s| s.revision_history_limit);
    let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else {
        return Vec::new();
    };
    let mut alive: Vec<_> = sets
        .old
        .iter()
        .filter(|rs| rs.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    let surplus = alive.len().saturating_sub(limit);
    alive.sort_by_key(|rs| revision(&rs.metadata));
    alive.truncate(surplus);
    alive.retain(|rs| {
        let observed = rs.status.as_ref().and_then(|s| s.observed_generation);
        status_replicas(rs) == 0 && spec_replicas(rs) == 0 && rs.metadata.generation <= observed
    });
    alive
}
