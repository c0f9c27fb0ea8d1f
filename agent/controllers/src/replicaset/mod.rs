//! The ReplicaSet controller: keeps as many pods as a ReplicaSet wants.

mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use skiff_client::{
    Change, EventKind, EventRecorder, Key, WorkQueue, is_namespace_terminating, run_workers,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::errors::{Context, ControllerError, unless_gone};
use crate::expectations::Expectations;
use crate::informers::{BY_CONTROLLER, orphans_of};
use crate::owner::{
    adopt_patch, controller_of, controller_reference, plan_claims, release_patch, selector_of,
    selects,
};
use crate::{Shared, pods};
use plan::{Scale, plan_scale, plan_status, status_differs};

const WORKERS: usize = 5;

struct Controller {
    shared: Arc<Shared>,
    queue: WorkQueue<Key>,
    expectations: Expectations,
    recorder: EventRecorder,
}

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let mut tasks = JoinSet::new();
    let recorder = EventRecorder::start(
        shared.client.clone(),
        "replicaset-controller",
        "",
        &mut tasks,
        &token,
    );
    let controller = Arc::new(Controller {
        shared,
        queue: WorkQueue::new(),
        expectations: Expectations::default(),
        recorder,
    });
    controller.watch();
    if !crate::synced(&controller.shared, &token).await {
        return;
    }
    let queue = controller.queue.clone();
    run_workers("replicaset", queue, WORKERS, token, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    })
    .await;
    tasks.shutdown().await;
}

impl Controller {
    fn watch(self: &Arc<Self>) {
        let this = Arc::clone(self);
        self.shared.informers.replica_sets.on_change(move |change| {
            let key = Key::of(&**change.object());
            if matches!(change, Change::Deleted(_)) {
                this.expectations.forget(&key);
            }
            this.queue.add(key);
        });
        let this = Arc::clone(self);
        self.shared
            .informers
            .pods
            .on_change(move |change| this.pod_changed(change));
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let owner = self.owner_key(&pod.metadata);
        match (change, &owner) {
            (Change::Deleted(_), Some(owner)) => self.expectations.deletion_observed(owner, uid),
            (Change::Applied { old, .. }, Some(owner)) => {
                if old.is_none() {
                    self.expectations.creation_observed(owner);
                }
                if pods::is_terminating(pod) {
                    self.expectations.deletion_observed(owner, uid);
                }
            }
            (Change::Applied { .. }, None) if controller_of(&pod.metadata).is_none() => {
                self.enqueue_adopters(pod);
            }
            _ => {}
        }
        if let Change::Applied { old: Some(old), .. } = change {
            let old_owner = self.owner_key(&old.metadata);
            if old_owner != owner
                && let Some(key) = old_owner
            {
                self.queue.add(key);
            }
        }
        if let Some(key) = owner {
            self.queue.add(key);
        }
    }

    fn owner_key(&self, meta: &ObjectMeta) -> Option<Key> {
        let owner = controller_of(meta).filter(|owner| owner.kind == "ReplicaSet")?;
        Some(Key::new(
            meta.namespace.clone().unwrap_or_default(),
            owner.name.clone(),
        ))
    }

    fn enqueue_adopters(&self, pod: &Pod) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for rs in self.shared.informers.replica_sets.in_namespace(namespace) {
            let Some(spec) = &rs.spec else { continue };
            let Ok(selector) = selector_of(&spec.selector, "replica set") else {
                continue;
            };
            if selects(&selector, pod.metadata.labels.as_ref()) {
                self.queue.add(Key::of(&*rs));
            }
        }
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.shared.client.clone(), namespace)
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ControllerError> {
        let Some(rs) = self.shared.informers.replica_sets.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let may_scale = self.expectations.satisfied(key);
        let owned = self.claim(key, &rs).await?;
        let mut failure = None;
        if may_scale && rs.metadata.deletion_timestamp.is_none() {
            failure = self.scale(key, &rs, &owned).await.err();
        }
        let condition = failure.as_ref().map(|(reason, error)| {
            let source = std::error::Error::source(error);
            (
                *reason,
                source.map_or_else(|| error.to_string(), ToString::to_string),
            )
        });
        let wake = self.write_status(key, &rs, &owned, condition).await?;
        match failure {
            Some((_, error)) => Err(error),
            None => Ok(wake),
        }
    }

    /// Adopts and releases pods; returns those that are ours.
    async fn claim(&self, key: &Key, rs: &ReplicaSet) -> Result<Vec<Arc<Pod>>, ControllerError> {
        let Some(spec) = &rs.spec else {
            return Ok(Vec::new());
        };
        let selector = selector_of(&spec.selector, key)?;
        let uid = rs.metadata.uid.clone().unwrap_or_default();
        let informer = &self.shared.informers.pods;
        let mut candidates = informer.by_index(BY_CONTROLLER, &uid);
        candidates.extend(informer.by_index(BY_CONTROLLER, &orphans_of(&key.namespace)));
        let mut claims = plan_claims(&rs.metadata, &selector, candidates);
        claims.adopt.retain(|pod| pods::is_active(pod));
        if claims.adopt.is_empty() && claims.release.is_empty() {
            return Ok(claims.owned);
        }
        let api = self.pods(&key.namespace);
        if !claims.adopt.is_empty() {
            self.check_not_replaced(key, &uid).await?;
        }
        let owner = controller_reference(rs);
        for pod in claims.adopt {
            let name = Key::of(&*pod);
            let patch = Patch::Merge(adopt_patch(&pod.metadata, &owner));
            let result = api.patch(&name.name, &PatchParams::default(), &patch).await;
            if unless_gone(result).context("adopt pod", &name)?.is_some() {
                claims.owned.push(pod);
            }
        }
        for pod in claims.release {
            let name = Key::of(&*pod);
            let patch = Patch::Merge(release_patch(&pod.metadata, &uid));
            let result = api.patch(&name.name, &PatchParams::default(), &patch).await;
            unless_gone(result).context("release pod", &name)?;
        }
        Ok(claims.owned)
    }

    /// The cache may show a ReplicaSet that is gone or a namesake: it must not adopt.
    async fn check_not_replaced(&self, key: &Key, uid: &str) -> Result<(), ControllerError> {
        let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let live = api
            .get_metadata_opt(&key.name)
            .await
            .context("get replica set", key)?;
        let same = live.is_some_and(|live| {
            live.metadata.uid.as_deref() == Some(uid) && live.metadata.deletion_timestamp.is_none()
        });
        if same {
            Ok(())
        } else {
            Err(ControllerError::Stale {
                object: key.to_string(),
            })
        }
    }

    async fn scale(
        &self,
        key: &Key,
        rs: &ReplicaSet,
        owned: &[Arc<Pod>],
    ) -> Result<(), (&'static str, ControllerError)> {
        let active: Vec<_> = owned
            .iter()
            .filter(|p| pods::is_active(p))
            .cloned()
            .collect();
        match plan_scale(rs, &active, &self.related(key, rs, &active)) {
            Scale::Keep => Ok(()),
            Scale::Create(count) => self
                .create_pods(key, rs, count)
                .await
                .map_err(|e| ("FailedCreate", e)),
            Scale::Delete(victims) => self
                .delete_pods(key, rs, victims)
                .await
                .map_err(|e| ("FailedDelete", e)),
        }
    }

    /// The active pods of this ReplicaSet and its siblings.
    fn related(&self, key: &Key, rs: &ReplicaSet, active: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let mut related = active.to_vec();
        let Some(owner) = controller_of(&rs.metadata) else {
            return related;
        };
        let informers = &self.shared.informers;
        for sibling in informers.replica_sets.by_index(BY_CONTROLLER, &owner.uid) {
            if Key::of(&*sibling) == *key {
                continue;
            }
            let uid = sibling.metadata.uid.as_deref().unwrap_or_default();
            let pods = informers.pods.by_index(BY_CONTROLLER, uid);
            related.extend(pods.into_iter().filter(|p| pods::is_active(p)));
        }
        related
    }

    /// Creates in batches of 1, 2, 4...: when the first is refused (quota), few requests are lost.
    async fn create_pods(
        &self,
        key: &Key,
        rs: &ReplicaSet,
        count: usize,
    ) -> Result<(), ControllerError> {
        let pod = pod_from_template(rs);
        let api = self.pods(&key.namespace);
        self.expectations.expect_creations(key, count);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let params = PostParams::default();
            let results = join_all((0..size).map(|_| api.create(&params, &pod))).await;
            left -= size;
            let (mut failed, mut terminating) = (None, false);
            for result in results {
                match result {
                    Ok(created) => {
                        let name = created.metadata.name.unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.recorder
                            .event(rs, EventKind::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) if is_namespace_terminating(&error) => {
                        self.expectations.creation_observed(key);
                        terminating = true;
                    }
                    Err(error) => {
                        self.expectations.creation_observed(key);
                        let message = format!("Error creating: {}", api_message(&error));
                        self.recorder
                            .event(rs, EventKind::Warning, "FailedCreate", message);
                        failed = Some(error);
                    }
                }
            }
            if terminating || failed.is_some() {
                for _ in 0..left {
                    self.expectations.creation_observed(key);
                }
                return match failed {
                    Some(error) => Err(error).context("create pod of", key),
                    None => Ok(()),
                };
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete_pods(
        &self,
        key: &Key,
        rs: &ReplicaSet,
        victims: Vec<Arc<Pod>>,
    ) -> Result<(), ControllerError> {
        let uids: HashSet<String> = victims
            .iter()
            .filter_map(|p| p.metadata.uid.clone())
            .collect();
        self.expectations.expect_deletions(key, uids);
        let api = self.pods(&key.namespace);
        let deletions = victims.iter().map(|pod| {
            let api = &api;
            async move {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let name = pod.metadata.name.clone().unwrap_or_default();
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(uid.clone()),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                let result = unless_gone(api.delete(&name, &params).await);
                match &result {
                    Ok(Some(_)) => {
                        let message = format!("Deleted pod: {name}");
                        self.recorder
                            .event(rs, EventKind::Normal, "SuccessfulDelete", message);
                    }
                    Ok(None) => self.expectations.deletion_observed(key, &uid),
                    Err(error) => {
                        self.expectations.deletion_observed(key, &uid);
                        let message = format!("Error deleting: {}", api_message(error));
                        self.recorder
                            .event(rs, EventKind::Warning, "FailedDelete", message);
                    }
                }
                result
            }
        });
        for result in join_all(deletions).await {
            result.context("delete pod of", key)?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        key: &Key,
        rs: &ReplicaSet,
        owned: &[Arc<Pod>],
        failure: Option<(&'static str, String)>,
    ) -> Result<Option<Duration>, ControllerError> {
        let (status, wake) = plan_status(rs, owned, failure, Timestamp::now());
        if status_differs(rs.status.as_ref(), &status) {
            let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &key.namespace);
            // An absent list would leave the old conditions standing.
            let mut body = serde_json::json!({"status": status});
            if status.conditions.is_none() {
                body["status"]["conditions"] = serde_json::Value::Null;
            }
            let result = api
                .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(body))
                .await;
            unless_gone(result).context("update status of replica set", key)?;
        }
        Ok(wake)
    }
}

fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn pod_from_template(rs: &ReplicaSet) -> Pod {
    let template = rs
        .spec
        .as_ref()
        .and_then(|s| s.template.clone())
        .unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let name = rs.metadata.name.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: rs.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(rs)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
