//! Removing what no pod owns: sandboxes, attachments, root filesystems, volumes, logs.
//!
//! Runs once at start, when the pods of the API are known, and every minute. A pod that a worker looks after
//! is never touched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use skiff_client::chain;
use skiff_runtime::PodRecord;
use tokio_util::sync::CancellationToken;

use crate::context::NodeContext;
use crate::images::naming::owner_of;
use crate::network::PodAttachment;
use crate::pod_worker;

const PERIOD: Duration = Duration::from_secs(60);
/// Time that containers without a pod get to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);
const SIGTERM: i32 = 15;

/// Sweeps every minute until cancelled. The first sweep is the caller's.
pub(crate) async fn sweep_loop(ctx: Arc<NodeContext>, token: CancellationToken) {
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        sweep(&ctx).await;
    }
}

/// Removes everything of pods that no worker looks after.
pub(crate) async fn sweep(ctx: &Arc<NodeContext>) {
    // What is found first and known afterwards is not swept: workers register before they make anything.
    let records = match ctx.runtime.list().await {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "sweep: listing sandboxes");
            return;
        }
    };
    let keys = ctx.images.keys().await.unwrap_or_default();
    let directories = entries(&ctx.config.data_dir.join("pods")).await;
    let logs = entries(&ctx.config.logs_root()).await;
    let known: BTreeSet<String> = ctx.pods.read().keys().cloned().collect();

    let orphans = records
        .iter()
        .filter(|record| !known.contains(&record.sandbox.config.pod_uid));
    join_all(orphans.map(|record| remove_orphan(ctx, record))).await;
    for key in keys.iter().filter(|key| !known.contains(owner_of(key))) {
        if let Err(error) = ctx.images.release(key).await {
            tracing::warn!(key, %error, "sweep: releasing a root filesystem");
        }
    }
    for uid in directories.iter().filter(|uid| !known.contains(*uid)) {
        let volumes = ctx.config.pod_dir(uid).join("volumes");
        let removed =
            tokio::task::spawn_blocking(move || crate::volumes::tear_down(&volumes)).await;
        match removed {
            Ok(Ok(())) => pod_worker::remove_dir(&ctx.config.pod_dir(uid)).await,
            Ok(Err(error)) => tracing::warn!(uid, error = %chain(&error), "sweep: volumes"),
            Err(error) => tracing::warn!(uid, %error, "sweep: volumes"),
        }
    }
    for name in logs {
        let uid = name.rsplit('_').next().unwrap_or_default();
        if !known.contains(uid) {
            pod_worker::remove_dir(&ctx.config.logs_root().join(&name)).await;
        }
    }
    let valid = || ctx.pods.read().keys().cloned().collect();
    if let Err(error) = ctx.network.sweep(&valid).await {
        tracing::warn!(%error, "sweep: network");
    }
}

/// Ends and removes a sandbox whose pod the API does not have any more.
async fn remove_orphan(ctx: &Arc<NodeContext>, record: &PodRecord) {
    let config = &record.sandbox.config;
    tracing::info!(
        namespace = config.namespace,
        pod = config.name,
        uid = config.pod_uid,
        "removing a pod that the API has no more"
    );
    let stops = record
        .containers
        .iter()
        .filter(|instance| !crate::plan::is_ended(instance))
        .map(|instance| {
            ctx.runtime
                .stop_container(&instance.id, SIGTERM, ORPHAN_GRACE)
        });
    for stopped in join_all(stops).await {
        if let Err(error) = stopped {
            tracing::warn!(uid = config.pod_uid, error = %chain(&error), "stopping an orphan");
        }
    }
    let attachment = (!config.host_network).then(|| PodAttachment {
        uid: config.pod_uid.clone(),
        namespace: config.namespace.clone(),
        name: config.name.clone(),
        netns: record.sandbox.netns.clone(),
    });
    if let Err(error) = pod_worker::tear_down(ctx, &config.pod_uid, attachment).await {
        tracing::warn!(uid = config.pod_uid, error, "removing an orphan");
    }
}

async fn entries(directory: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(directory).await else {
        return names;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        names.extend(entry.file_name().into_string().ok());
    }
    names
}
