//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use skiff_runtime::{ContainerRef, ContainerState, RuntimeEvent};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Context, Refusal, find_pod, instances};
use crate::annotations;
use crate::context::NodeContext;
use crate::logs::options::LogOptions;
use crate::logs::stream::{Liveness, LogReader};

/// Texts that may wait for a slow reader.
const QUEUE: usize = 64;

pub(super) async fn container_logs(
    State(ctx): State<Context>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let pod = find_pod(&ctx, &namespace, &name)?;
    let options = LogOptions::parse(&query, ctx.clock.now())
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    let (path, liveness) = find_log(&ctx, &pod, &container, options.previous).await?;
    let reader = LogReader::open(&path, options)
        .await
        .map_err(|error| Refusal::internal(format!("reading the log: {error}")))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    // Owned by the response: it ends when the receiver is dropped.
    tokio::spawn(async move {
        if let Err(error) = reader.run(liveness, sender).await {
            tracing::warn!(path = %path.display(), %error, "reading a container's log");
        }
    });
    let chunks = ReceiverStream::new(receiver);
    let body = Body::from_stream(
        chunks.map(|chunk| Ok::<_, std::convert::Infallible>(Bytes::from(chunk.bytes))),
    );
    Ok(([("content-type", "text/plain")], body).into_response())
}

/// The log of the container's current or previous instance.
pub(super) async fn find_log(
    ctx: &Arc<NodeContext>,
    pod: &Pod,
    container: &str,
    previous: bool,
) -> Result<(PathBuf, RunningContainer), Refusal> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let events = ctx.runtime.events();
    let all = instances(ctx, pod, container).await?;
    let instance = all.get(usize::from(previous));
    let path = instance
        .and_then(|instance| instance.annotations.get(annotations::LOG_PATH))
        .map(PathBuf::from)
        .or_else(|| log_on_disk(ctx, pod, container, previous));
    let Some(path) = path.filter(|path| path.exists()) else {
        let message = if previous {
            format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
        } else {
            format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: {}",
                waiting_reason(pod, container)
            )
        };
        return Err(Refusal::bad_request(message));
    };
    let id = instance
        .map(|instance| instance.id.clone())
        .unwrap_or(ContainerRef {
            pod_uid: uid,
            container_id: String::new(),
        });
    Ok((
        path,
        RunningContainer {
            ctx: Arc::clone(ctx),
            id,
            events,
        },
    ))
}

fn waiting_reason(pod: &Pod, container: &str) -> String {
    let status = pod.status.as_ref();
    let statuses = status.iter().flat_map(|status| {
        status
            .container_statuses
            .iter()
            .flatten()
            .chain(status.init_container_statuses.iter().flatten())
    });
    let waiting = statuses
        .filter(|status| status.name == container)
        .filter_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .next();
    waiting.unwrap_or_else(|| "ContainerCreating".to_owned())
}

/// A pod that ended has no sandbox any more, but its logs stay until it is deleted.
fn log_on_disk(ctx: &NodeContext, pod: &Pod, container: &str, previous: bool) -> Option<PathBuf> {
    let meta = &pod.metadata;
    let directory = ctx
        .config
        .log_dir(
            meta.namespace.as_deref()?,
            meta.name.as_deref()?,
            meta.uid.as_deref()?,
        )
        .join(container);
    let mut numbers: Vec<u32> = std::fs::read_dir(&directory)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".log")?
                .parse()
                .ok()
        })
        .collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let number = numbers.get(usize::from(previous))?;
    Some(directory.join(format!("{number}.log")))
}

/// Follows the life of one container instance.
pub(super) struct RunningContainer {
    ctx: Arc<NodeContext>,
    pub(super) id: ContainerRef,
    events: broadcast::Receiver<RuntimeEvent>,
}

impl Liveness for RunningContainer {
    async fn changed(&mut self) {
        loop {
            match self.events.recv().await {
                Ok(RuntimeEvent::PodChanged { pod_uid } | RuntimeEvent::ShimLost { pod_uid })
                    if pod_uid != self.id.pod_uid => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            }
        }
    }

    async fn is_running(&mut self) -> bool {
        let record = self.ctx.runtime.pod(&self.id.pod_uid).await;
        record.is_ok_and(|record| {
            record.containers.iter().any(|instance| {
                instance.id == self.id && !matches!(instance.state, ContainerState::Exited(_))
            })
        })
    }
}
