//! Giving back what a pod had.

use std::path::Path;
use std::sync::Arc;

use skiff_client::chain;

use super::{Outcome, Worker};
use crate::context::NodeContext;
use crate::images::ImagesError;
use crate::images::naming::owner_of;
use crate::network::PodAttachment;
use crate::plan::Op;
use crate::volumes;

impl Worker {
    pub(super) fn begin_teardown(&mut self) {
        let ctx = Arc::clone(&self.ctx);
        let attachment = (!self.is_host_network()).then(|| self.attachment_of_record());
        let uid = self.uid.clone();
        self.spawn(Op::Teardown, async move {
            match tear_down(&ctx, &uid, attachment).await {
                Ok(()) => Outcome::Done,
                Err(message) => Outcome::Failed("FailedKillPod", message),
            }
        });
    }

    pub(super) fn torn_down(&mut self) {
        self.observed.torn_down = true;
        self.observed.images_ready.clear();
        self.images.clear();
        self.ctx.admission.lock().release(&self.uid);
    }

    /// The pod is no more: its logs and directory go, too.
    pub(super) async fn finish(&mut self) {
        let config = &self.ctx.config;
        let logs = config.log_dir(self.namespace(), self.name(), &self.uid);
        for directory in [logs, config.pod_dir(&self.uid)] {
            remove_dir(&directory).await;
        }
        self.ctx.admission.lock().release(&self.uid);
        self.ctx.pods.write().remove(&self.uid);
    }
}

/// Removes a directory; what stays is for the sweep.
pub(crate) async fn remove_dir(directory: &Path) {
    match tokio::fs::remove_dir_all(directory).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "removing a pod's directory");
        }
        _ => {}
    }
}

/// Gives back network, sandbox, root filesystems and volumes. Goes on after an error; the errors of all
/// steps on one line.
pub(crate) async fn tear_down(
    ctx: &NodeContext,
    uid: &str,
    attachment: Option<PodAttachment>,
) -> Result<(), String> {
    let mut errors = Vec::new();
    if let Some(attachment) = attachment
        && let Err(error) = ctx.network.detach(&attachment).await
    {
        errors.push(format!("network: {error}"));
    }
    if let Err(error) = ctx.runtime.remove_sandbox(uid).await {
        errors.push(format!("sandbox: {}", chain(&error)));
    }
    if let Err(error) = release_snapshots(ctx, uid).await {
        errors.push(format!("root filesystems: {error}"));
    }
    let root = ctx.config.pod_dir(uid).join("volumes");
    match tokio::task::spawn_blocking(move || volumes::tear_down(&root)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => errors.push(format!("volumes: {}", chain(&error))),
        Err(error) => errors.push(format!("volumes: {error}")),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

/// Unmounts and removes all root filesystems of a pod.
pub(super) async fn release_snapshots(ctx: &NodeContext, uid: &str) -> Result<(), ImagesError> {
    let mut result = Ok(());
    for key in ctx.images.keys().await? {
        if owner_of(&key) == uid
            && let Err(error) = ctx.images.release(&key).await
        {
            result = Err(error);
        }
    }
    result
}
