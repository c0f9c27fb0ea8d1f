//! Feeds the pod workers: what the API wants comes from one watch, what happens from the runtime's events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use skiff_client::{Change, Informer};
use skiff_runtime::RuntimeEvent;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::NodeContext;
use crate::pod_worker::{Desired, Worker, WorkerHandle};
use crate::sweep;

/// Workers by UID.
pub(crate) struct Manager {
    ctx: Arc<NodeContext>,
    handles: BTreeMap<String, WorkerHandle>,
    workers: JoinSet<Option<String>>,
    /// Whose worker a task is.
    tasks: HashMap<tokio::task::Id, String>,
    /// Pods that are done with but that the watch has not yet said are gone.
    finished: BTreeSet<String>,
    token: CancellationToken,
}

impl Manager {
    pub(crate) fn new(ctx: Arc<NodeContext>, token: CancellationToken) -> Self {
        Self {
            ctx,
            handles: BTreeMap::new(),
            workers: JoinSet::new(),
            tasks: HashMap::new(),
            finished: BTreeSet::new(),
            token,
        }
    }

    /// Looks after all pods of this node until cancelled.
    pub(crate) async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut events = self.ctx.runtime.events();
        let api: Api<Pod> = Api::all(self.ctx.client.clone());
        let selector = format!("spec.nodeName={}", self.ctx.config.node_name);
        let config = watcher::Config::default().fields(&selector);
        let informer = Informer::start(api, config, &mut tasks, &self.token);
        tokio::select! {
            () = self.token.cancelled() => return,
            synced = informer.synced() => if !synced { return },
        }
        // All pods have their worker before the first sweep looks for those without.
        let mut changes = informer.subscribe();
        while let Ok(change) = changes.try_recv() {
            self.changed(change);
        }
        let first_sweep = {
            let (ctx, token) = (Arc::clone(&self.ctx), self.token.clone());
            async move {
                sweep::sweep(&ctx).await;
                sweep::sweep_loop(ctx, token).await;
            }
        };
        tasks.spawn(first_sweep);
        let mut listening = true;
        loop {
            tokio::select! {
                () = self.token.cancelled() => break,
                change = changes.recv() => match change {
                    Some(change) => self.changed(change),
                    None => break,
                },
                event = events.recv(), if listening => {
                    listening = !matches!(event, Err(RecvError::Closed));
                    self.happened(event);
                }
                Some(ended) = self.workers.join_next_with_id() => self.worker_ended(ended),
            }
        }
        while self.workers.join_next().await.is_some() {}
    }

    fn changed(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { old, new } => {
                let uid = new.metadata.uid.clone().unwrap_or_default();
                if let Some(old) = old
                    && old.metadata.uid != new.metadata.uid
                {
                    // Deleted and made anew under the same name while nobody watched.
                    self.gone(&old);
                }
                match self.handles.get(&uid) {
                    Some(handle) => {
                        handle.desired.send_modify(|desired| desired.pod = new);
                    }
                    None => self.start(uid, new),
                }
            }
            Change::Deleted(last) => self.gone(&last),
        }
    }

    fn gone(&mut self, last: &Arc<Pod>) {
        let uid = last.metadata.uid.as_deref().unwrap_or_default();
        self.finished.remove(uid);
        if let Some(handle) = self.handles.get(uid) {
            handle.desired.send_replace(Desired {
                pod: Arc::clone(last),
                gone: true,
            });
        }
    }

    fn start(&mut self, uid: String, pod: Arc<Pod>) {
        if uid.is_empty() || self.finished.contains(&uid) {
            return;
        }
        self.ctx.pods.write().insert(uid.clone(), Arc::clone(&pod));
        let (worker, handle) = Worker::new(Arc::clone(&self.ctx), pod);
        self.handles.insert(uid.clone(), handle);
        let task = self.workers.spawn(worker.run(self.token.clone()));
        self.tasks.insert(task.id(), uid);
    }

    fn happened(&mut self, event: Result<RuntimeEvent, RecvError>) {
        match event {
            Ok(RuntimeEvent::PodChanged { pod_uid }) => {
                if let Some(handle) = self.handles.get(&pod_uid) {
                    handle.wake.notify_one();
                }
            }
            Ok(RuntimeEvent::ShimLost { pod_uid }) => {
                if let Some(handle) = self.handles.get(&pod_uid) {
                    handle.shim_lost.store(true, Ordering::Release);
                    handle.wake.notify_one();
                }
            }
            Err(RecvError::Lagged(_)) => {
                for handle in self.handles.values() {
                    handle.wake.notify_one();
                }
            }
            // The runtime goes down with the daemon; the token follows.
            Err(RecvError::Closed) => {}
        }
    }

    fn worker_ended(
        &mut self,
        ended: Result<(tokio::task::Id, Option<String>), tokio::task::JoinError>,
    ) {
        match ended {
            Ok((task, Some(uid))) => {
                self.tasks.remove(&task);
                let handle = self.handles.remove(&uid);
                if handle.is_some_and(|handle| !handle.desired.borrow().gone) {
                    self.finished.insert(uid);
                }
            }
            Ok((task, None)) => {
                self.tasks.remove(&task);
            }
            Err(error) => {
                // The pod's next change, or the next daemon, gets a new worker.
                let uid = self.tasks.remove(&error.id()).unwrap_or_default();
                tracing::error!(uid, %error, "a pod worker panicked");
                self.handles.remove(&uid);
            }
        }
    }
}
