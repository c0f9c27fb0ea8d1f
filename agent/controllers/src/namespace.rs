//! The namespace controller: empties a terminating namespace, kind by kind as discovery names them,
//! and takes the finalizer `kubernetes` off when nothing is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::{Change, Key, WorkQueue, is_conflict, is_not_found, run_workers, status_code};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::errors::{Context, ControllerError, unless_gone};

const FINALIZER: &str = "kubernetes";
/// Look again though no deletion woke us: what is left may be of a kind that we do not watch.
const RECHECK: Duration = Duration::from_millis(500);

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let add = queue.clone();
    shared.informers.namespaces.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && new.metadata.deletion_timestamp.is_some()
        {
            add.add(Key::of(&**new));
        }
    });
    // Pods take longest to go; the last one wakes its namespace.
    let add = queue.clone();
    let namespaces = shared.informers.namespaces.clone();
    shared.informers.pods.on_change(move |change| {
        if let Change::Deleted(pod) = change {
            let key = Key::new("", pod.metadata.namespace.clone().unwrap_or_default());
            if namespaces
                .get(&key)
                .is_some_and(|n| n.metadata.deletion_timestamp.is_some())
            {
                add.add(key);
            }
        }
    });
    if !crate::synced(&shared, &token).await {
        return;
    }
    run_workers("namespace", queue, 2, token, move |key| {
        let shared = Arc::clone(&shared);
        async move { reconcile(&shared, &key).await }
    })
    .await;
}

/// What is left of one kind after everything in it was told to go.
#[derive(Debug)]
struct Remaining {
    kind: String,
    count: usize,
    finalizers: Vec<String>,
}

async fn reconcile(shared: &Shared, key: &Key) -> Result<Option<Duration>, ControllerError> {
    let Some(namespace) = shared.informers.namespaces.get(key) else {
        return Ok(None);
    };
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|s| s.finalizers.clone())
        .unwrap_or_default();
    if namespace.metadata.deletion_timestamp.is_none() || finalizers.is_empty() {
        return Ok(None);
    }
    let kinds = namespaced_kinds(&shared.client).await?;
    let work = kinds.iter().map(|(resource, capabilities)| {
        empty_kind(&shared.client, &key.name, resource, capabilities)
    });
    let mut remaining = Vec::new();
    let mut failures = Vec::new();
    for result in join_all(work).await {
        match result {
            Ok(left) => remaining.extend(left),
            Err(error) => failures.push(error),
        }
    }
    let failure = failures.first().map(|error| {
        std::error::Error::source(error).map_or(error.to_string(), ToString::to_string)
    });
    if remaining.is_empty() && failures.is_empty() {
        return finalize(shared, key, &namespace).await;
    }
    write_conditions(shared, key, &namespace, &remaining, failure).await?;
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(Some(RECHECK)),
    }
}

/// Every kind that lives in namespaces and can be listed and deleted.
async fn namespaced_kinds(
    client: &Client,
) -> Result<Vec<(ApiResource, ApiCapabilities)>, ControllerError> {
    let discovery = Discovery::new(client.clone())
        .run()
        .await
        .context("discover", "API resources")?;
    let mut kinds = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let deletable = capabilities.supports_operation("delete")
                || capabilities.supports_operation("deletecollection");
            if capabilities.scope == Scope::Namespaced
                && deletable
                && capabilities.supports_operation("list")
            {
                kinds.push((resource, capabilities));
            }
        }
    }
    Ok(kinds)
}

async fn empty_kind(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
    capabilities: &ApiCapabilities,
) -> Result<Option<Remaining>, ControllerError> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let list = ListParams::default();
    let before = list_or_nothing(&api, &list)
        .await
        .context("list", &resource.plural)?;
    if before.is_empty() {
        return Ok(None);
    }
    let params = DeleteParams::background();
    let collection = capabilities.supports_operation("deletecollection");
    if collection {
        api.delete_collection(&params, &list)
            .await
            .context("delete", &resource.plural)?;
    } else {
        for object in &before {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let result = unless_gone(api.delete(name, &params).await);
            result.context("delete", format!("{}/{name}", resource.plural))?;
        }
    }
    let left = list_or_nothing(&api, &list)
        .await
        .context("list", &resource.plural)?;
    if left.is_empty() {
        return Ok(None);
    }
    let group = if resource.group.is_empty() {
        String::new()
    } else {
        format!(".{}", resource.group)
    };
    Ok(Some(Remaining {
        kind: format!("{}{group}", resource.plural),
        count: left.len(),
        finalizers: left
            .into_iter()
            .flat_map(|o| o.metadata.finalizers.unwrap_or_default())
            .collect(),
    }))
}

/// A kind that vanished since discovery, or that only looked listable, holds nothing.
async fn list_or_nothing(
    api: &Api<DynamicObject>,
    params: &ListParams,
) -> kube::Result<Vec<kube::core::PartialObjectMeta<DynamicObject>>> {
    match api.list_metadata(params).await {
        Ok(list) => Ok(list.items),
        Err(error) if is_not_found(&error) || status_code(&error) == Some(405) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

async fn finalize(
    shared: &Shared,
    key: &Key,
    namespace: &Namespace,
) -> Result<Option<Duration>, ControllerError> {
    let mut namespace = namespace.clone();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let body = serde_json::to_vec(&namespace).map_err(|source| ControllerError::Encode {
        object: key.to_string(),
        source,
    })?;
    let request = http::Request::put(format!("/api/v1/namespaces/{}/finalize", key.name))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|source| ControllerError::Request {
            object: key.to_string(),
            source,
        })?;
    match shared.client.request::<serde_json::Value>(request).await {
        // A conflict comes from our own conditions; the newer namespace is on its way to us.
        Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
            Err(error).context("finalize namespace", key)
        }
        Err(error) if is_conflict(&error) => Ok(Some(Duration::from_millis(20))),
        _ => Ok(None),
    }
}

async fn write_conditions(
    shared: &Shared,
    key: &Key,
    namespace: &Namespace,
    remaining: &[Remaining],
    failure: Option<String>,
) -> Result<(), ControllerError> {
    let current = namespace
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let wanted = plan_conditions(&current, remaining, failure, Timestamp::now());
    if wanted == current {
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(shared.client.clone());
    let patch = Patch::Merge(json!({"status": {"conditions": wanted}}));
    let result = api
        .patch_status(&key.name, &PatchParams::default(), &patch)
        .await;
    unless_gone(result).context("update status of namespace", key)?;
    Ok(())
}

/// The five conditions upstream shows of a namespace that is being emptied.
fn plan_conditions(
    current: &[NamespaceCondition],
    remaining: &[Remaining],
    failure: Option<String>,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let counts: Vec<_> = remaining
        .iter()
        .map(|r| format!("{} has {} resource instances", r.kind, r.count))
        .collect();
    let counts = Some(counts.join(", ")).filter(|text| !text.is_empty());
    let holding = Some(finalizer_counts(remaining)).filter(|text| !text.is_empty());
    let rows = [
        row(
            "NamespaceDeletionDiscoveryFailure",
            "ResourcesDiscovered",
            "All resources successfully discovered",
            None,
        ),
        row(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
            None,
        ),
        row(
            "NamespaceDeletionContentFailure",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
            failure.map(|text| ("ContentDeletionFailed", text)),
        ),
        row(
            "NamespaceContentRemaining",
            "ContentRemoved",
            "All content successfully removed",
            counts.map(|c| {
                (
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {c}"),
                )
            }),
        ),
        row(
            "NamespaceFinalizersRemaining",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
            holding.map(|h| {
                let text = format!("Some content in the namespace has finalizers remaining: {h}");
                ("SomeFinalizersRemain", text)
            }),
        ),
    ];
    let dated = rows.into_iter().map(|mut new| {
        let old = current
            .iter()
            .find(|c| c.type_ == new.type_ && c.status == new.status);
        new.last_transition_time = old
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(now.into()));
        new
    });
    dated.collect()
}

/// A condition that is False with the first reason and message, or True with `problem`.
fn row(
    kind: &str,
    reason: &str,
    message: &str,
    problem: Option<(&str, String)>,
) -> NamespaceCondition {
    let status = if problem.is_some() { "True" } else { "False" };
    let (reason, message) = problem.unwrap_or((reason, message.to_owned()));
    NamespaceCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: None,
    }
}

fn finalizer_counts(remaining: &[Remaining]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for finalizer in remaining.iter().flat_map(|r| &r.finalizers) {
        *counts.entry(finalizer).or_default() += 1;
    }
    let texts: Vec<_> = counts
        .iter()
        .map(|(name, n)| format!("{name} in {n} resource instances"))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_is_left_and_keep_their_times() {
        let left = [Remaining {
            kind: "pods".to_owned(),
            count: 2,
            finalizers: vec!["example.com/x".to_owned(), "example.com/x".to_owned()],
        }];
        let first = plan_conditions(&[], &left, None, Timestamp::UNIX_EPOCH);
        let message = |c: &[NamespaceCondition], i: usize| c[i].message.clone().unwrap();
        assert_eq!(
            message(&first, 3),
            "Some resources are remaining: pods has 2 resource instances"
        );
        assert!(message(&first, 4).ends_with("example.com/x in 2 resource instances"));
        let again = plan_conditions(&first, &left, None, Timestamp::now());
        assert_eq!(first, again);
    }
}
