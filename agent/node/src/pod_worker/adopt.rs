//! Taking over a pod that an earlier daemon, or nobody yet, looked after.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus as ApiStatus, Pod};
use skiff_client::EventKind;
use skiff_runtime::{ContainerRef, ContainerState, ContainerStatus as Instance, ExitStatus};

use super::Worker;
use crate::backoff::Backoff;
use crate::plan::{Carried, SandboxState};
use crate::status::Phase;

impl Worker {
    /// Finds what there is of the pod: on the node, and in its last status.
    pub(super) async fn adopt(&mut self) {
        let now = self.ctx.clock.now();
        let status = self.pod.status.clone();
        self.observed.start_time = status
            .as_ref()
            .and_then(|s| s.start_time.as_ref())
            .map(|t| t.0)
            .or(Some(now));
        self.observed.final_phase = Phase::final_of(status.as_ref());
        let record = self.ctx.runtime.pod(&self.uid).await.ok();
        let found = record.is_some();
        if let Some(record) = record {
            self.netns = record.sandbox.netns;
            self.observed.instances = record.containers;
            let known = if self.is_host_network() {
                Some(self.ctx.host_ips())
            } else {
                self.ctx
                    .network
                    .addresses(&self.attachment_of_record())
                    .await
            };
            if let Some(ips) = known {
                self.observed.ips = ips;
                self.observed.sandbox = SandboxState::Ready;
            }
            self.rebuild_backoffs();
        } else {
            let volumes = self.ctx.config.pod_dir(&self.uid).join("volumes");
            self.observed.torn_down = self.observed.final_phase.is_some() && !volumes.exists();
        }
        let mut carried = carried(&self.pod, now);
        carried.retain(|name, _| self.observed.latest(name).is_none());
        self.observed.carried = carried;
        self.stale = true;
        self.admit(found);
    }

    /// A container that crashed often is not started at once because the daemon is new.
    fn rebuild_backoffs(&mut self) {
        let names: Vec<String> = self
            .observed
            .instances
            .iter()
            .map(|instance| instance.name.clone())
            .collect();
        for name in names {
            let Some(latest) = self.observed.latest(&name) else {
                continue;
            };
            let entry = Backoff::after_restarts(latest.restart_count, latest.created_at);
            if let Some(entry) = entry {
                self.observed.backoffs.insert(name, entry);
            }
        }
    }

    fn admit(&mut self, found: bool) {
        if self.observed.final_phase.is_some() {
            return;
        }
        let (config, allocatable) = (&self.ctx.config, self.ctx.allocatable);
        let mut admission = self.ctx.admission.lock();
        if found || self.pod.metadata.deletion_timestamp.is_some() {
            admission.adopt(&self.uid, &self.pod);
            return;
        }
        let admitted = admission.admit(&self.uid, &self.pod, allocatable, config.max_pods);
        drop(admission);
        if let Err(rejection) = admitted {
            let message = rejection.message.clone();
            self.event(EventKind::Warning, &rejection.reason, message);
            self.observed.rejected = Some(rejection);
        }
    }
}

/// What the last status tells of containers that are not on the node any more, by name.
fn carried(pod: &Pod, now: Timestamp) -> std::collections::BTreeMap<String, Carried> {
    let status = pod.status.as_ref();
    let statuses = status.iter().flat_map(|status| {
        status
            .container_statuses
            .iter()
            .flatten()
            .chain(status.init_container_statuses.iter().flatten())
    });
    statuses
        .filter_map(|status| Some((status.name.clone(), carried_one(pod, status, now)?)))
        .collect()
}

fn carried_one(pod: &Pod, status: &ApiStatus, now: Timestamp) -> Option<Carried> {
    let id = status.container_id.as_deref()?.strip_prefix("skiff://")?;
    let restarts = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.as_ref();
    let last = status.last_state.as_ref();
    let terminated = state
        .and_then(|state| state.terminated.as_ref())
        .or_else(|| last.and_then(|last| last.terminated.as_ref()));
    let running = state.and_then(|state| state.running.as_ref());
    let exit = match (running, terminated) {
        (None, Some(terminated)) => ExitStatus {
            started_at: terminated.started_at.as_ref().map(|time| time.0),
            finished_at: terminated.finished_at.as_ref().map_or(now, |time| time.0),
            exit_code: terminated.exit_code,
            signal: terminated.signal,
            oom_killed: terminated.reason.as_deref() == Some("OOMKilled"),
            message: terminated.message.clone(),
        },
        _ => ExitStatus {
            started_at: running
                .and_then(|r| r.started_at.as_ref())
                .map(|time| time.0),
            finished_at: now,
            exit_code: 137,
            signal: None,
            oom_killed: false,
            message: Some(
                "The container could not be located when the pod was restarted".to_owned(),
            ),
        },
    };
    let id = ContainerRef {
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        container_id: id.to_owned(),
    };
    let instance = Instance {
        id,
        name: status.name.clone(),
        restart_count: restarts,
        created_at: exit.started_at.unwrap_or(now),
        state: ContainerState::Exited(exit),
        annotations: [(
            crate::annotations::IMAGE_ID.to_owned(),
            status.image_id.clone(),
        )]
        .into(),
    };
    Some(Carried {
        next_restart: restarts + 1,
        last: Some(instance),
    })
}
