//! The Deployment controller: a ReplicaSet per template, sized so that a rollout never takes more
//! away than it may.

mod rolling;
mod sets;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use skiff_client::{
    Change, EventKind, EventRecorder, Key, WorkQueue, is_already_exists, run_workers,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::errors::{Context, ControllerError, unless_gone};
use crate::informers::{BY_CONTROLLER, orphans_of};
use crate::owner::{
    adopt_patch, controller_of, controller_reference, plan_claims, release_patch, selector_of,
    selects,
};
use crate::{Shared, pods};
use rolling::{is_rolling, is_scaling, max_total, new_set_size, plan_scaling, plan_shrink_old};
use sets::{
    DESIRED, MAX, REVISION, Sets, annotation, build_new, next_revision, plan_annotations,
    plan_clean_up, same_template, spec_replicas, status_replicas, template_hash, template_of,
    wanted,
};
use status::{is_complete, is_paused, plan_status, status_differs};

const WORKERS: usize = 5;

struct Controller {
    shared: Arc<Shared>,
    queue: WorkQueue<Key>,
    recorder: EventRecorder,
}

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let mut tasks = JoinSet::new();
    let recorder = EventRecorder::start(
        shared.client.clone(),
        "deployment-controller",
        "",
        &mut tasks,
        &token,
    );
    let controller = Arc::new(Controller {
        shared,
        queue: WorkQueue::new(),
        recorder,
    });
    controller.watch();
    if !crate::synced(&controller.shared, &token).await {
        return;
    }
    let queue = controller.queue.clone();
    run_workers("deployment", queue, WORKERS, token, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    })
    .await;
    tasks.shutdown().await;
}

/// One reconcile's view, brought up to date as it writes.
struct Rollout<'a> {
    controller: &'a Controller,
    key: &'a Key,
    deployment: Arc<Deployment>,
    sets: Sets,
    created: bool,
}

impl Controller {
    fn watch(self: &Arc<Self>) {
        let informers = &self.shared.informers;
        let queue = self.queue.clone();
        informers
            .deployments
            .on_change(move |change| queue.add(Key::of(&**change.object())));
        let this = Arc::clone(self);
        informers
            .replica_sets
            .on_change(move |change| this.replica_set_changed(change));
        let this = Arc::clone(self);
        informers.pods.on_change(move |change| {
            // Recreate waits until the last old pod is gone.
            if let Change::Deleted(pod) = change {
                this.pod_gone(pod);
            }
        });
    }

    fn replica_set_changed(&self, change: &Change<ReplicaSet>) {
        let rs = change.object();
        let namespace = rs.metadata.namespace.clone().unwrap_or_default();
        match controller_of(&rs.metadata) {
            Some(owner) if owner.kind == "Deployment" => {
                self.queue.add(Key::new(namespace, owner.name.clone()));
            }
            Some(_) => {}
            None => {
                for deployment in self.shared.informers.deployments.in_namespace(&namespace) {
                    let Some(spec) = &deployment.spec else {
                        continue;
                    };
                    let selector = selector_of(&spec.selector, "deployment");
                    if selector.is_ok_and(|s| selects(&s, rs.metadata.labels.as_ref())) {
                        self.queue.add(Key::of(&*deployment));
                    }
                }
            }
        }
        if let Change::Applied { old: Some(old), .. } = change
            && let Some(owner) = controller_of(&old.metadata).filter(|o| o.kind == "Deployment")
            && controller_of(&rs.metadata) != Some(owner)
        {
            let namespace = old.metadata.namespace.clone().unwrap_or_default();
            self.queue.add(Key::new(namespace, owner.name.clone()));
        }
    }

    fn pod_gone(&self, pod: &Pod) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") else {
            return;
        };
        let rs = self
            .shared
            .informers
            .replica_sets
            .get(&Key::new(&namespace, &owner.name));
        let Some(rs) = rs else { return };
        let Some(owner) = controller_of(&rs.metadata) else {
            return;
        };
        let key = Key::new(namespace, owner.name.clone());
        let deployment = self.shared.informers.deployments.get(&key);
        if deployment.is_some_and(|d| !is_rolling(&d)) {
            self.queue.add(key);
        }
    }

    fn replica_sets(&self, namespace: &str) -> Api<ReplicaSet> {
        Api::namespaced(self.shared.client.clone(), namespace)
    }

    fn deployments(&self, namespace: &str) -> Api<Deployment> {
        Api::namespaced(self.shared.client.clone(), namespace)
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ControllerError> {
        let Some(deployment) = self.shared.informers.deployments.get(key) else {
            return Ok(None);
        };
        let Some(spec) = &deployment.spec else {
            return Ok(None);
        };
        let selector = selector_of(&spec.selector, key)?;
        if selector.selects_all() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder
                .event(&*deployment, EventKind::Warning, "SelectingAll", text);
            return Ok(None);
        }
        let owned = self.claim(key, &deployment, &selector).await?;
        let sets = Sets::of(&deployment, owned);
        let mut rollout = Rollout {
            controller: self,
            key,
            deployment,
            sets,
            created: false,
        };
        rollout.sync().await
    }

    /// Adopts and releases ReplicaSets; returns those that are ours.
    async fn claim(
        &self,
        key: &Key,
        deployment: &Deployment,
        selector: &kube::core::Selector,
    ) -> Result<Vec<Arc<ReplicaSet>>, ControllerError> {
        let uid = deployment.metadata.uid.clone().unwrap_or_default();
        let informer = &self.shared.informers.replica_sets;
        let mut candidates = informer.by_index(BY_CONTROLLER, &uid);
        candidates.extend(informer.by_index(BY_CONTROLLER, &orphans_of(&key.namespace)));
        let mut claims = plan_claims(&deployment.metadata, selector, candidates);
        let api = self.replica_sets(&key.namespace);
        if !claims.adopt.is_empty() {
            let live = self
                .deployments(&key.namespace)
                .get_metadata_opt(&key.name)
                .await;
            let live = live.context("get deployment", key)?;
            let same = live.is_some_and(|live| {
                live.metadata.uid.as_deref() == Some(&uid)
                    && live.metadata.deletion_timestamp.is_none()
            });
            if !same {
                return Err(ControllerError::Stale {
                    object: key.to_string(),
                });
            }
        }
        let owner = controller_reference(deployment);
        for rs in claims.adopt {
            let name = Key::of(&*rs);
            let patch = Patch::Merge(adopt_patch(&rs.metadata, &owner));
            let result = api.patch(&name.name, &PatchParams::default(), &patch).await;
            if let Some(adopted) = unless_gone(result).context("adopt replica set", &name)? {
                claims.owned.push(Arc::new(adopted));
            }
        }
        for rs in claims.release {
            let name = Key::of(&*rs);
            let patch = Patch::Merge(release_patch(&rs.metadata, &uid));
            let result = api.patch(&name.name, &PatchParams::default(), &patch).await;
            unless_gone(result).context("release replica set", &name)?;
        }
        Ok(claims.owned)
    }
}

impl Rollout<'_> {
    async fn sync(&mut self) -> Result<Option<Duration>, ControllerError> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status().await;
        }
        if is_paused(&self.deployment) || is_scaling(&self.deployment, &self.sets) {
            self.refresh_new_set().await?;
            self.resize_all(plan_scaling(&self.deployment, &self.sets))
                .await?;
            if is_paused(&self.deployment) {
                self.clean_up().await?;
            }
            return self.write_status().await;
        }
        if is_rolling(&self.deployment) {
            self.roll().await?
        } else {
            self.recreate().await?
        }
        let (status, _) = plan_status(&self.deployment, &self.sets, self.created, Timestamp::now());
        if is_complete(&self.deployment, &status) {
            self.clean_up().await?;
        }
        self.write_status().await
    }

    async fn roll(&mut self) -> Result<(), ControllerError> {
        self.ensure_new_set().await?;
        let size = new_set_size(&self.deployment, &self.sets);
        if let Some(new) = self.sets.new.clone()
            && spec_replicas(&new) != size
        {
            return self.resize(&new, size).await;
        }
        self.resize_all(plan_shrink_old(&self.deployment, &self.sets))
            .await
    }

    async fn recreate(&mut self) -> Result<(), ControllerError> {
        self.refresh_new_set().await?;
        let old: Vec<_> = self
            .sets
            .old
            .iter()
            .filter(|rs| spec_replicas(rs) > 0)
            .map(|rs| (Arc::clone(rs), 0))
            .collect();
        if !old.is_empty() {
            return self.resize_all(old).await;
        }
        if self.old_pods_running() {
            return Ok(());
        }
        self.ensure_new_set().await?;
        if let Some(new) = self.sets.new.clone() {
            self.resize(&new, wanted(&self.deployment)).await?;
        }
        Ok(())
    }

    fn old_pods_running(&self) -> bool {
        let informer = &self.controller.shared.informers.pods;
        self.sets.old.iter().any(|rs| {
            let uid = rs.metadata.uid.as_deref().unwrap_or_default();
            status_replicas(rs) > 0
                || informer
                    .by_index(BY_CONTROLLER, uid)
                    .iter()
                    .any(|p| !pods::is_finished(p))
        })
    }

    /// Revision and annotations of the new set, if there is one, and of the Deployment.
    async fn refresh_new_set(&mut self) -> Result<(), ControllerError> {
        let Some(new) = self.sets.new.clone() else {
            return Ok(());
        };
        let revision = next_revision(&self.sets.old);
        let annotations = plan_annotations(&self.deployment, &new.metadata, revision);
        let min_ready = self
            .deployment
            .spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds);
        let same_min_ready = new
            .spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds)
            .unwrap_or(0)
            == min_ready.unwrap_or(0);
        let rs = if new.metadata.annotations.as_ref() == Some(&annotations) && same_min_ready {
            new
        } else {
            let patch = json!({
                "metadata": {
                    "resourceVersion": new.metadata.resource_version,
                    "annotations": annotations,
                },
                "spec": {"minReadySeconds": min_ready.unwrap_or(0)},
            });
            let name = new.metadata.name.clone().unwrap_or_default();
            let api = self.controller.replica_sets(&self.key.namespace);
            let written = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .context("annotate replica set", &name)?;
            self.sets.put(written);
            match &self.sets.new {
                Some(rs) => Arc::clone(rs),
                None => new,
            }
        };
        self.write_revision(annotation(&rs.metadata, REVISION))
            .await
    }

    async fn write_revision(&mut self, revision: Option<&str>) -> Result<(), ControllerError> {
        let Some(revision) = revision else {
            return Ok(());
        };
        if annotation(&self.deployment.metadata, REVISION) == Some(revision) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
        let api = self.controller.deployments(&self.key.namespace);
        let result = api
            .patch(
                &self.key.name,
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await;
        unless_gone(result).context("annotate deployment", self.key)?;
        Ok(())
    }

    async fn ensure_new_set(&mut self) -> Result<(), ControllerError> {
        if self.sets.new.is_some() {
            return self.refresh_new_set().await;
        }
        let deployment = Arc::clone(&self.deployment);
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = template_hash(&template_of(&deployment), collisions).map_err(|source| {
            ControllerError::Encode {
                object: self.key.to_string(),
                source,
            }
        })?;
        let revision = next_revision(&self.sets.old);
        let size = new_set_size(&deployment, &self.sets);
        let rs = build_new(&deployment, &hash, revision, size, max_total(&deployment));
        let api = self.controller.replica_sets(&self.key.namespace);
        match api.create(&PostParams::default(), &rs).await {
            Ok(written) => {
                self.created = true;
                if size > 0 {
                    self.scaled_event(&written, "up", 0, size);
                }
                self.sets.put(written);
            }
            Err(error) if is_already_exists(&error) => {
                let name = rs.metadata.name.clone().unwrap_or_default();
                self.resolve_collision(&api, &name, collisions).await?;
            }
            Err(error) => return Err(error).context("create replica set of", self.key),
        }
        self.write_revision(Some(&revision.to_string())).await
    }

    /// A set of that name is there. Ours, if the cache is merely late; else the next attempt takes
    /// another hash.
    async fn resolve_collision(
        &mut self,
        api: &Api<ReplicaSet>,
        name: &str,
        collisions: Option<i32>,
    ) -> Result<(), ControllerError> {
        let live = api.get(name).await.context("get replica set", name)?;
        let ours =
            controller_of(&live.metadata).map(|o| &o.uid) == self.deployment.metadata.uid.as_ref();
        let theirs = live.spec.as_ref().and_then(|s| s.template.as_ref());
        if ours && theirs.is_some_and(|t| same_template(t, &template_of(&self.deployment))) {
            self.sets.put(live);
            return Ok(());
        }
        let patch = json!({"status": {"collisionCount": collisions.unwrap_or(0) + 1}});
        let deployments = self.controller.deployments(&self.key.namespace);
        deployments
            .patch_status(
                &self.key.name,
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
            .context("count hash collision of", self.key)?;
        Err(ControllerError::Stale {
            object: self.key.to_string(),
        })
    }

    async fn resize_all(&mut self, resizes: Vec<rolling::Resize>) -> Result<(), ControllerError> {
        for (rs, size) in resizes {
            self.resize(&rs, size).await?;
        }
        Ok(())
    }

    /// Sets size and size annotations, unless they are right already.
    async fn resize(&mut self, rs: &ReplicaSet, size: i32) -> Result<(), ControllerError> {
        let before = spec_replicas(rs);
        let desired = wanted(&self.deployment).to_string();
        let max = max_total(&self.deployment).to_string();
        if before == size
            && annotation(&rs.metadata, DESIRED) == Some(&desired)
            && annotation(&rs.metadata, MAX) == Some(&max)
        {
            return Ok(());
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": rs.metadata.resource_version,
                "annotations": {DESIRED: desired, MAX: max},
            },
            "spec": {"replicas": size},
        });
        let name = rs.metadata.name.clone().unwrap_or_default();
        let api = self.controller.replica_sets(&self.key.namespace);
        let result = api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        let written = result.context("scale replica set", &name)?;
        if before != size {
            let direction = if size > before { "up" } else { "down" };
            self.scaled_event(&written, direction, before, size);
        }
        self.sets.put(written);
        Ok(())
    }

    fn scaled_event(&self, rs: &ReplicaSet, direction: &str, from: i32, to: i32) {
        let name = rs.metadata.name.as_deref().unwrap_or_default();
        let text = format!("Scaled {direction} replica set {name} from {from} to {to}");
        let recorder = &self.controller.recorder;
        recorder.event(
            &*self.deployment,
            EventKind::Normal,
            "ScalingReplicaSet",
            text,
        );
    }

    async fn clean_up(&self) -> Result<(), ControllerError> {
        let api = self.controller.replica_sets(&self.key.namespace);
        for rs in plan_clean_up(&self.deployment, &self.sets) {
            let name = rs.metadata.name.clone().unwrap_or_default();
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: rs.metadata.uid.clone(),
                    resource_version: rs.metadata.resource_version.clone(),
                }),
                ..DeleteParams::background()
            };
            unless_gone(api.delete(&name, &params).await).context("delete replica set", &name)?;
        }
        Ok(())
    }

    async fn write_status(&self) -> Result<Option<Duration>, ControllerError> {
        let (status, wake) =
            plan_status(&self.deployment, &self.sets, self.created, Timestamp::now());
        if status_differs(self.deployment.status.as_ref(), &status) {
            let api = self.controller.deployments(&self.key.namespace);
            let patch = Patch::Merge(json!({"status": status}));
            let result = api
                .patch_status(&self.key.name, &PatchParams::default(), &patch)
                .await;
            unless_gone(result).context("update status of deployment", self.key)?;
        }
        Ok(wake)
    }
}
