//! The pod's sandbox and its network.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use skiff_client::{EventKind, chain};
use skiff_runtime::{ContainerState, ContainerStatus as Instance, ExitStatus, SandboxConfig};

use super::{Outcome, Worker, files};
use crate::context::NodeContext;
use crate::network::{PodAttachment, capability_args};
use crate::plan::{Carried, Op, SandboxState};

impl Worker {
    pub(super) fn sandbox_config(&self) -> SandboxConfig {
        SandboxConfig {
            pod_uid: self.uid.clone(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            hostname: files::hostname(&self.pod, &self.ctx.config.node_name),
            host_network: self.is_host_network(),
        }
    }

    pub(super) fn is_host_network(&self) -> bool {
        self.pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.host_network == Some(true))
    }

    pub(super) fn begin_sandbox(&mut self) {
        let (ctx, pod, config) = (
            Arc::clone(&self.ctx),
            Arc::clone(&self.pod),
            self.sandbox_config(),
        );
        self.spawn(Op::Sandbox, async move {
            let ips = match make(&ctx, &pod, config).await {
                Ok(ips) => ips,
                Err(message) => return Outcome::Failed("FailedCreatePodSandBox", message),
            };
            let for_files = ips.clone();
            let write = move || files::write(&pod, &for_files, &ctx.config);
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => Outcome::Sandbox(ips),
                Ok(Err(error)) => Outcome::Failed("FailedCreatePodSandBox", error.to_string()),
                Err(error) => Outcome::Failed("FailedCreatePodSandBox", error.to_string()),
            }
        });
    }

    pub(super) fn sandbox_made(&mut self, ips: Vec<IpAddr>) {
        self.observed.ips = ips;
        self.observed.sandbox = SandboxState::Ready;
        self.stale = true;
    }

    /// Removes the sandbox whose shim is gone, so that a new one can be made.
    pub(super) fn begin_reset(&mut self) {
        self.event(
            EventKind::Normal,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.".to_owned(),
        );
        let (ctx, config) = (Arc::clone(&self.ctx), self.sandbox_config());
        let attachment = self.attachment_of_record();
        self.spawn(Op::Reset, async move {
            if !config.host_network
                && let Err(error) = ctx.network.detach(&attachment).await
            {
                return Outcome::Failed("FailedKillPod", error.to_string());
            }
            if let Err(error) = ctx.runtime.remove_sandbox(&config.pod_uid).await {
                return Outcome::Failed("FailedKillPod", chain(&error).to_string());
            }
            match super::finish::release_snapshots(&ctx, &config.pod_uid).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed("FailedKillPod", error.to_string()),
            }
        });
    }

    /// The next instances go on counting where the lost ones stopped.
    pub(super) fn sandbox_reset(&mut self) {
        let now = self.ctx.clock.now();
        let names: Vec<String> = self
            .observed
            .instances
            .iter()
            .map(|instance| instance.name.clone())
            .collect();
        for name in names {
            let next_restart = self.observed.next_restart(&name);
            if let Some(latest) = self.observed.latest(&name).cloned() {
                let last = Some(lost(latest, now));
                self.observed
                    .carried
                    .insert(name, Carried { next_restart, last });
            }
        }
        // What failed in the old sandbox may go well in the new one.
        self.observed
            .failures
            .retain(|op, _| !matches!(op, Op::Start(_)));
        self.observed.instances.clear();
        self.observed.images_ready.clear();
        self.images.clear();
        self.observed.ips.clear();
        self.observed.sandbox = SandboxState::Absent;
    }

    /// Names the pod to the network, by the namespace that the runtime made for it.
    pub(super) fn attachment_of_record(&self) -> PodAttachment {
        PodAttachment {
            uid: self.uid.clone(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            netns: self.netns.clone(),
        }
    }
}

async fn make(ctx: &NodeContext, pod: &Pod, config: SandboxConfig) -> Result<Vec<IpAddr>, String> {
    let host_network = config.host_network;
    let capability_args = if host_network {
        serde_json::Map::new()
    } else {
        capability_args(pod)?
    };
    let (uid, namespace, name) = (
        config.pod_uid.clone(),
        config.namespace.clone(),
        config.name.clone(),
    );
    let sandbox = ctx
        .runtime
        .run_sandbox(config)
        .await
        .map_err(|error| chain(&error).to_string())?;
    if host_network {
        return Ok(ctx.host_ips());
    }
    let attachment = PodAttachment {
        uid,
        namespace,
        name,
        netns: sandbox.netns,
    };
    if let Some(ips) = ctx.network.addresses(&attachment).await {
        return Ok(ips);
    }
    let attached = ctx.network.attach(&attachment, capability_args).await;
    attached.map_err(|error| {
        format!(
            "plugin failed to set up pod \"{}_{}\" network: {error}",
            attachment.name, attachment.namespace
        )
    })
}

/// What is known of an instance that vanished with its shim.
fn lost(instance: Instance, now: Timestamp) -> Instance {
    if matches!(instance.state, ContainerState::Exited(_)) {
        return instance;
    }
    let started_at = match instance.state {
        ContainerState::Running { started_at, .. } => Some(started_at),
        _ => None,
    };
    let exit = ExitStatus {
        started_at,
        finished_at: now,
        exit_code: 137,
        signal: None,
        oom_killed: false,
        message: Some("The container could not be located when the pod was terminated".to_owned()),
    };
    Instance {
        state: ContainerState::Exited(exit),
        ..instance
    }
}
