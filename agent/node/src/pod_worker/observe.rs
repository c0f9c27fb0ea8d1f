//! Learning what is on the node: the runtime's record, probe verdicts, termination messages.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::{Container, ContainerStatus as ApiStatus};
use skiff_client::chain;
use skiff_runtime::{ContainerRef, ContainerState, ContainerStatus as Instance, RuntimeError};

use super::Worker;
use crate::annotations;
use crate::logs;
use crate::plan::{Op, ProbeVerdict, SandboxState, is_ended};
use crate::probes::{ProbeTarget, has_probes};
use crate::status::api_container_id;

/// Longest termination message.
const MAX_MESSAGE: usize = 4096;
/// Longest one that is made from the log.
const MAX_FROM_LOG: usize = 2048;
const MAX_LINES_FROM_LOG: usize = 80;

impl Worker {
    /// Brings `observed` up to date. Once everything was given back the last knowledge stays.
    pub(super) async fn observe(&mut self) {
        if self.shim_lost.swap(false, Ordering::AcqRel)
            && self.observed.sandbox == SandboxState::Ready
        {
            self.observed.sandbox = SandboxState::Lost;
        }
        if self.volumes_dirty.load(Ordering::Acquire) {
            // What was missing may be there now.
            self.observed.failures.remove(&Op::Volumes);
        }
        self.observed.probes = self.probes.verdicts();
        if self.observed.torn_down || !std::mem::replace(&mut self.stale, false) {
            return;
        }
        match self.ctx.runtime.pod(&self.uid).await {
            Ok(record) => {
                self.netns = record.sandbox.netns;
                self.observed.instances = record.containers;
                self.read_messages().await;
            }
            Err(RuntimeError::NotFound { .. }) => {
                if self.observed.sandbox == SandboxState::Ready {
                    self.observed.sandbox = SandboxState::Lost;
                }
            }
            Err(RuntimeError::ShimLost { .. }) => self.observed.sandbox = SandboxState::Lost,
            Err(error) => {
                tracing::warn!(uid = self.uid, error = %chain(&error), "reading the pod's record");
            }
        }
    }

    /// Reads what ended containers left to say.
    async fn read_messages(&mut self) {
        let unread: Vec<Instance> = self
            .observed
            .instances
            .iter()
            .filter(|i| is_ended(i) && !self.observed.messages.contains_key(&i.id.container_id))
            .cloned()
            .collect();
        for instance in unread {
            let id = instance.id.container_id.clone();
            let fallback = self.container(&instance.name).is_some_and(|container| {
                container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
            });
            let read = tokio::task::spawn_blocking(move || message(&instance, fallback)).await;
            if let Ok(Some(message)) = read {
                self.observed.messages.insert(id, message);
            }
        }
        let ids: Vec<&String> = self
            .observed
            .instances
            .iter()
            .map(|i| &i.id.container_id)
            .collect();
        self.observed.messages.retain(|id, _| ids.contains(&id));
    }

    /// Has a probe task for each container that runs and has probes.
    pub(super) fn sync_probes(&mut self, ending: bool) {
        let mut targets = Vec::new();
        let containers: Vec<Container> = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| {
                spec.init_containers
                    .iter()
                    .flatten()
                    .chain(&spec.containers)
            })
            .filter(|container| has_probes(container))
            .cloned()
            .collect();
        for container in containers {
            if self
                .observed
                .busy
                .contains(&Op::Start(container.name.clone()))
            {
                continue;
            }
            let Some(latest) = self.observed.latest(&container.name) else {
                continue;
            };
            let ContainerState::Running { started_at, .. } = latest.state else {
                continue;
            };
            let mut container = container;
            if ending {
                // Readiness still matters while the pod ends; being restarted does not.
                container.liveness_probe = None;
                container.startup_probe = None;
            }
            targets.push(ProbeTarget {
                pod: Arc::clone(&self.pod),
                id: latest.id.clone(),
                ip: self.observed.ips.first().copied(),
                started_at,
                container,
            });
        }
        let status = self.pod.status.clone().unwrap_or_default();
        let known: Vec<ApiStatus> = status
            .container_statuses
            .into_iter()
            .flatten()
            .chain(status.init_container_statuses.into_iter().flatten())
            .collect();
        self.probes.sync(&self.ctx, targets, |id| seed(&known, id));
        self.observed.probes = self.probes.verdicts();
    }
}

/// What an earlier daemon told the API of this very container.
fn seed(known: &[ApiStatus], id: &ContainerRef) -> Option<ProbeVerdict> {
    let full = api_container_id(&id.container_id);
    let status = known
        .iter()
        .find(|status| status.container_id.as_ref() == Some(&full))?;
    (status.started == Some(true)).then_some(ProbeVerdict {
        started: true,
        ready: status.ready,
        failed: None,
    })
}

/// The termination message of an ended container. Blocking.
fn message(instance: &Instance, fallback: bool) -> Option<String> {
    let ContainerState::Exited(exit) = &instance.state else {
        return None;
    };
    let path = instance
        .annotations
        .get(annotations::TERMINATION_LOG)
        .map(PathBuf::from);
    let text = path
        .and_then(|path| logs::read_prefix(&path, MAX_MESSAGE).ok())
        .unwrap_or_default();
    if !text.is_empty() {
        return Some(String::from_utf8_lossy(&text).into_owned());
    }
    if fallback && exit.exit_code != 0 {
        let log = instance.annotations.get(annotations::LOG_PATH)?;
        let tail = logs::tail_text(&PathBuf::from(log), MAX_LINES_FROM_LOG, MAX_FROM_LOG).ok()?;
        return (!tail.is_empty()).then_some(tail);
    }
    None
}
