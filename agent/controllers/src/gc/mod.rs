//! The garbage collector: deletes what is owned only by what is gone, waits for dependents of
//! owners deleted in the foreground, and cuts the ties of owners deleted with orphaning.
//!
//! It watches the metadata of every kind that discovery names; discovery is asked again at
//! intervals, as kinds come and go.

mod graph;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{ApiResource, Discovery, Scope};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Change, Informer, WorkQueue, chain, run_workers};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::errors::{Context, ControllerError, unless_gone};
use graph::{FOREGROUND, Graph, Identity, ORPHAN, Object, Owners, Verdict, judge};

const WORKERS: usize = 5;
/// Nobody owns these, nor do they own anything.
const IGNORED: [&str; 2] = ["Event", "Lease"];

/// Name of a kind: `apiVersion` and `kind`.
type Kind = (String, String);

struct Watched {
    resource: ApiResource,
    namespaced: bool,
    /// None for kinds that cannot be watched; they may still be owners.
    informer: Option<Informer<PartialObjectMeta<DynamicObject>>>,
    token: CancellationToken,
}

struct Collector {
    client: Client,
    queue: WorkQueue<String>,
    graph: Mutex<Graph>,
    kinds: Mutex<HashMap<Kind, Watched>>,
}

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let collector = Arc::new(Collector {
        client: shared.client.clone(),
        queue: WorkQueue::new(),
        graph: Mutex::default(),
        kinds: Mutex::default(),
    });
    let mut informers = JoinSet::new();
    let mut workers = JoinSet::new();
    let mut retry = Duration::from_millis(200);
    loop {
        let discovered = tokio::select! {
            () = token.cancelled() => break,
            discovered = collector.discover(&mut informers, &token) => discovered,
        };
        if let Err(error) = discovered {
            tracing::warn!(error = %chain(&error), "kinds not discovered");
            tokio::select! {
                () = token.cancelled() => break,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(shared.config.discovery_interval);
            continue;
        }
        // An owner in a collection that is not listed yet only looks gone; but no object is ever
        // deleted on that ground alone: the API is asked.
        if workers.is_empty() {
            let this = Arc::clone(&collector);
            let queue = collector.queue.clone();
            let token = token.clone();
            workers.spawn(run_workers(
                "gc",
                queue,
                WORKERS,
                token,
                move |uid: String| {
                    let this = Arc::clone(&this);
                    async move { this.process(&uid).await }
                },
            ));
        }
        tokio::select! {
            () = token.cancelled() => break,
            () = tokio::time::sleep(shared.config.discovery_interval) => {}
        }
    }
    while workers.join_next().await.is_some() {}
    informers.shutdown().await;
}

impl Collector {
    /// Watches kinds that are new and lets go of those that vanished.
    async fn discover(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Result<(), ControllerError> {
        let discovery = Discovery::new(self.client.clone()).run().await;
        let discovery = discovery.context("discover", "API resources")?;
        let mut found = HashMap::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if !IGNORED.contains(&resource.kind.as_str()) {
                    let kind = (resource.api_version.clone(), resource.kind.clone());
                    found.insert(kind, (resource, capabilities));
                }
            }
        }
        let mut kinds = self.kinds.lock();
        kinds.retain(|kind, watched| {
            let stays = found.contains_key(kind);
            if !stays {
                watched.token.cancel();
                let objects = watched.informer.iter().flat_map(Informer::list);
                for uid in objects.filter_map(|o| o.metadata.uid.clone()) {
                    self.graph.lock().remove(&uid);
                }
            }
            stays
        });
        for (kind, (resource, capabilities)) in found {
            if kinds.contains_key(&kind) {
                continue;
            }
            let collectable = ["list", "watch", "delete"]
                .iter()
                .all(|verb| capabilities.supports_operation(verb));
            let own_token = token.child_token();
            let informer =
                collectable.then(|| self.watch(kind.clone(), &resource, tasks, &own_token));
            let namespaced = capabilities.scope == Scope::Namespaced;
            kinds.insert(
                kind,
                Watched {
                    resource,
                    namespaced,
                    informer,
                    token: own_token,
                },
            );
        }
        Ok(())
    }

    fn watch(
        self: &Arc<Self>,
        (api_version, kind): Kind,
        resource: &ApiResource,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Informer<PartialObjectMeta<DynamicObject>> {
        let api = Api::all_with(self.client.clone(), resource);
        let informer = Informer::builder()
            .transform(|object: &mut PartialObjectMeta<DynamicObject>| {
                object.types = None;
                object.metadata.labels = None;
                object.metadata.annotations = None;
            })
            .config(Config::default())
            .start(api, tasks, token);
        let this = Arc::clone(self);
        informer.on_change(move |change| {
            let meta = &change.object().metadata;
            let uid = meta.uid.as_deref().unwrap_or_default();
            let touched = match change {
                Change::Applied { .. } => this
                    .graph
                    .lock()
                    .apply(uid, Object::new(&api_version, &kind, meta)),
                Change::Deleted(_) => this.graph.lock().remove(uid),
            };
            for uid in touched {
                this.queue.add(uid);
            }
        });
        informer
    }

    /// The API of an object's kind; none for kinds that are not (or no longer) served.
    fn api(&self, identity: &Identity) -> Option<Api<DynamicObject>> {
        let kinds = self.kinds.lock();
        let watched = kinds
            .get(&(identity.api_version.clone(), identity.kind.clone()))
            .or_else(|| {
                // An owner reference may name another version of the group.
                let group = group_of(&identity.api_version);
                kinds
                    .iter()
                    .find(|((v, kind), _)| *kind == identity.kind && group_of(v) == group)
                    .map(|(_, watched)| watched)
            })?;
        let client = self.client.clone();
        Some(if watched.namespaced {
            Api::namespaced_with(client, &identity.namespace, &watched.resource)
        } else {
            Api::all_with(client, &watched.resource)
        })
    }

    async fn process(&self, uid: &str) -> Result<Option<Duration>, ControllerError> {
        let Some(object) = self.graph.lock().get(uid).cloned() else {
            return Ok(None);
        };
        if object.deleting && object.orphan {
            self.orphan_dependents(uid, &object).await?;
        } else if object.waits_for_dependents() {
            self.delete_dependents(uid, &object).await?;
        }
        let owners = self.resolve_owners(&object).await?;
        let has_dependents = self.graph.lock().dependents(uid).next().is_some();
        match judge(&object, &owners, has_dependents) {
            Verdict::Keep => {}
            Verdict::DropOwners(drop) => {
                self.drop_owners(&object.identity, uid, &drop).await?;
            }
            Verdict::Delete(policy) => self.delete(uid, &object.identity, policy).await?,
        }
        Ok(None)
    }

    async fn resolve_owners(&self, object: &Object) -> Result<Owners, ControllerError> {
        let mut result = Owners::default();
        if object.deleting {
            return Ok(result);
        }
        for owner in &object.owners {
            let known = self
                .graph
                .lock()
                .get(&owner.uid)
                .map(Object::waits_for_dependents);
            let list = match known {
                Some(true) => &mut result.waiting,
                Some(false) => &mut result.solid,
                // Never said to be gone without having asked.
                None if self.is_gone(owner, &object.identity.namespace).await? => {
                    &mut result.dangling
                }
                None => &mut result.solid,
            };
            list.push(owner.uid.clone());
        }
        Ok(result)
    }

    async fn is_gone(
        &self,
        owner: &OwnerReference,
        namespace: &str,
    ) -> Result<bool, ControllerError> {
        let identity = Identity {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            namespace: namespace.to_owned(),
            name: owner.name.clone(),
        };
        // Of a kind that we do not know we cannot say that it is gone.
        let Some(api) = self.api(&identity) else {
            return Ok(false);
        };
        let live = api
            .get_metadata_opt(&owner.name)
            .await
            .context("get owner", &owner.name)?;
        Ok(live.is_none_or(|live| live.metadata.uid.as_deref() != Some(&owner.uid)))
    }

    async fn delete(
        &self,
        uid: &str,
        identity: &Identity,
        policy: &str,
    ) -> Result<(), ControllerError> {
        let Some(api) = self.api(identity) else {
            return Ok(());
        };
        let live = api
            .get_metadata_opt(&identity.name)
            .await
            .context("get", &identity.name)?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(uid)) else {
            return Ok(());
        };
        // It may have been adopted since: then its watch brings us here again.
        let cached = self
            .graph
            .lock()
            .get(uid)
            .map(|o| o.owners.clone())
            .unwrap_or_default();
        if live.metadata.owner_references.unwrap_or_default() != cached {
            return Err(ControllerError::Stale {
                object: identity.name.clone(),
            });
        }
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                "Orphan" => PropagationPolicy::Orphan,
                "Foreground" => PropagationPolicy::Foreground,
                _ => PropagationPolicy::Background,
            }),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let result = api.delete(&identity.name, &params).await;
        unless_gone(result).context("collect", &identity.name)?;
        Ok(())
    }

    /// Foreground: dependents go first; those that do not block are not waited for.
    async fn delete_dependents(&self, uid: &str, object: &Object) -> Result<(), ControllerError> {
        let mut blocked = false;
        for (dependent, state) in self.graph.lock().dependents(uid) {
            blocked |= state
                .owners
                .iter()
                .any(|o| o.uid == uid && o.block_owner_deletion == Some(true));
            if !state.deleting {
                self.queue.add(dependent.to_owned());
            }
        }
        if blocked {
            return Ok(());
        }
        self.drop_finalizer(uid, &object.identity, FOREGROUND).await
    }

    async fn orphan_dependents(&self, uid: &str, object: &Object) -> Result<(), ControllerError> {
        let dependents: Vec<(String, Identity)> = self
            .graph
            .lock()
            .dependents(uid)
            .map(|(uid, object)| (uid.to_owned(), object.identity.clone()))
            .collect();
        for (dependent, identity) in dependents {
            self.drop_owners(&identity, &dependent, &[uid.to_owned()])
                .await?;
        }
        self.drop_finalizer(uid, &object.identity, ORPHAN).await
    }

    async fn drop_owners(
        &self,
        identity: &Identity,
        uid: &str,
        drop: &[String],
    ) -> Result<(), ControllerError> {
        let keep = |owner: &OwnerReference| !drop.contains(&owner.uid);
        self.edit(identity, uid, |meta| {
            let owners = meta.owner_references.as_ref()?;
            let left: Vec<_> = owners.iter().filter(|o| keep(o)).collect();
            (left.len() < owners.len()).then(|| {
                let left = if left.is_empty() { None } else { Some(left) };
                json!({"ownerReferences": left})
            })
        })
        .await
    }

    async fn drop_finalizer(
        &self,
        uid: &str,
        identity: &Identity,
        finalizer: &str,
    ) -> Result<(), ControllerError> {
        self.edit(identity, uid, |meta| {
            let finalizers = meta.finalizers.as_ref()?;
            let left: Vec<_> = finalizers.iter().filter(|f| *f != finalizer).collect();
            (left.len() < finalizers.len()).then(|| {
                let left = if left.is_empty() { None } else { Some(left) };
                json!({"finalizers": left})
            })
        })
        .await
    }

    /// Patches the live object's metadata, unless another writer comes between.
    async fn edit(
        &self,
        identity: &Identity,
        uid: &str,
        change: impl Fn(&kube::api::ObjectMeta) -> Option<serde_json::Value>,
    ) -> Result<(), ControllerError> {
        let Some(api) = self.api(identity) else {
            return Ok(());
        };
        let name = &identity.name;
        let live = api.get_metadata_opt(name).await.context("get", name)?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(uid)) else {
            return Ok(());
        };
        let Some(mut metadata) = change(&live.metadata) else {
            return Ok(());
        };
        metadata["uid"] = json!(uid);
        metadata["resourceVersion"] = json!(live.metadata.resource_version);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let result = api.patch(name, &PatchParams::default(), &patch).await;
        unless_gone(result).context("patch", name)?;
        Ok(())
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}
