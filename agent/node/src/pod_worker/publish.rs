//! Showing the pod's status in the API: one patch at a time, only when something changed.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use skiff_client::{chain, status_code};

use super::{Outcome, Worker};
use crate::plan::Op;
use crate::status::{compute_status, status_patch};

impl Worker {
    /// Begins to write the status if it differs from what was written last; when to try again if it must
    /// wait.
    pub(super) fn publish(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.observed.gone || self.observed.deleted || self.observed.busy.contains(&Op::Status) {
            return None;
        }
        let basis = self.basis();
        let status = compute_status(&basis, &self.observed, &self.ctx.host_ips(), now);
        if self.shown.as_ref().or(self.pod.status.as_ref()) == Some(&status) {
            return None;
        }
        if let Some(failure) = self.observed.failures.get(&Op::Status)
            && failure.retry_at > now
        {
            return Some(failure.retry_at);
        }
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), self.namespace());
        let (name, uid) = (self.name().to_owned(), self.uid.clone());
        self.spawn(Op::Status, async move {
            let patch = Patch::Merge(status_patch(&uid, &status));
            match api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => Outcome::Status(Box::new(status)),
                // The object is gone or another one has its name: nobody to tell.
                Err(error) if matches!(status_code(&error), Some(404 | 409)) => {
                    Outcome::Status(Box::new(status))
                }
                Err(error) => Outcome::Failed("StatusPatch", chain(&error).to_string()),
            }
        });
        None
    }

    /// The pod with the status shown last, and in it the conditions that others wrote since.
    fn basis(&self) -> Pod {
        let mut basis = Pod::clone(&self.pod);
        let Some(shown) = &self.shown else {
            return basis;
        };
        let mut status: PodStatus = shown.clone();
        let own = shown.conditions.as_deref().unwrap_or_default();
        let latest = self
            .pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref());
        let is_ours = |kind: &str| OWN_CONDITIONS.contains(&kind);
        let mut conditions: Vec<_> = own
            .iter()
            .filter(|condition| is_ours(&condition.type_))
            .cloned()
            .collect();
        let foreign = latest.unwrap_or_default().iter();
        conditions.extend(
            foreign
                .filter(|condition| !is_ours(&condition.type_))
                .cloned(),
        );
        status.conditions = Some(conditions);
        basis.status = Some(status);
        basis
    }

    pub(super) fn begin_delete(&mut self) {
        if self.observed.busy.contains(&Op::Status) {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), self.namespace());
        let (name, uid) = (self.name().to_owned(), self.uid.clone());
        let log = Arc::clone(&self.ctx);
        self.spawn(Op::Delete, async move {
            let params = kube::api::DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(kube::api::Preconditions {
                    uid: Some(uid),
                    resource_version: None,
                }),
                ..kube::api::DeleteParams::default()
            };
            match api.delete(&name, &params).await {
                Ok(_) => Outcome::Done,
                Err(error) if matches!(status_code(&error), Some(404 | 409)) => Outcome::Done,
                Err(error) => {
                    tracing::warn!(node = log.config.node_name, pod = name, error = %chain(&error), "deleting a pod that ended");
                    Outcome::Failed("Delete", chain(&error).to_string())
                }
            }
        });
    }
}

/// Conditions that the node writes.
const OWN_CONDITIONS: [&str; 5] = [
    "PodScheduled",
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
];
