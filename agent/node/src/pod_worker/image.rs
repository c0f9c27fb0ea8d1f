//! Having a container's image and root filesystem ready.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::Api;
use skiff_client::EventKind;

use super::{Outcome, Worker};
use crate::backoff;
use crate::context::NodeContext;
use crate::images::naming::{PullPolicy, pull_policy, snapshot_key};
use crate::images::{Image, ImagesError, PullSecret};
use crate::plan::Op;

/// How long a failed pull is called `ErrImagePull` before it is called `ImagePullBackOff`.
const SHOW_BACK_OFF_AFTER: Duration = Duration::from_secs(3);

/// An image and the root filesystem made from it for one container instance.
#[derive(Debug, Clone)]
pub(crate) struct PreparedImage {
    pub(super) image: Image,
    pub(super) rootfs: PathBuf,
    pub(super) key: String,
}

impl Worker {
    pub(super) fn begin_image(&mut self, name: &str, restart_count: u32) {
        let Some(container) = self.container(name).cloned() else {
            return;
        };
        let (ctx, pod, uid) = (
            Arc::clone(&self.ctx),
            Arc::clone(&self.pod),
            self.uid.clone(),
        );
        let key = snapshot_key(&uid, name, restart_count);
        self.spawn(Op::Image(name.to_owned()), async move {
            match ensure(&ctx, &pod, &container, key).await {
                Ok(prepared) => Outcome::Image(Box::new(prepared)),
                Err(error) => Outcome::Failed(error.reason, error.message),
            }
        });
    }

    /// The next start of the container fetches again, or finds the image present.
    pub(super) fn forget_image(&mut self, container: &str) {
        self.observed.images_ready.remove(container);
        self.images.remove(container);
    }

    /// Calls a failed pull a back-off after a while; when to look again.
    pub(super) fn note_image_back_offs(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut due = Vec::new();
        let mut next = None;
        for (op, failure) in &self.observed.failures {
            let Op::Image(container) = op else { continue };
            let shown = self.observed.image_backoff_shown.contains(container);
            if failure.reason != "ErrImagePull" || shown {
                continue;
            }
            let at = backoff::add(failure.at, SHOW_BACK_OFF_AFTER);
            if at > now {
                next = Some(next.map_or(at, |other: Timestamp| other.min(at)));
            } else {
                due.push(container.clone());
            }
        }
        for name in due {
            self.observed.image_backoff_shown.insert(name.clone());
            let image = self
                .container(&name)
                .and_then(|container| container.image.clone());
            let message = format!("Back-off pulling image \"{}\"", image.unwrap_or_default());
            let pod = Arc::clone(&self.pod);
            self.ctx
                .container_event(&pod, &name, EventKind::Normal, "BackOff", message);
        }
        next
    }
}

async fn ensure(
    ctx: &NodeContext,
    pod: &Pod,
    container: &Container,
    key: String,
) -> Result<PreparedImage, ImagesError> {
    let image = find(ctx, pod, container).await?;
    let rootfs = ctx.images.prepare(&image, &key).await?;
    Ok(PreparedImage { image, rootfs, key })
}

async fn find(ctx: &NodeContext, pod: &Pod, container: &Container) -> Result<Image, ImagesError> {
    let reference = container.image.as_deref().unwrap_or_default();
    let tell = |kind, reason: &str, message| {
        ctx.container_event(pod, &container.name, kind, reason, message);
    };
    let policy = pull_policy(container);
    if policy != PullPolicy::Always {
        let present = match ctx.images.get(reference).await {
            Ok(present) => present,
            Err(error) => {
                if error.reason == "InvalidImageName" {
                    let message = format!(
                        "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {}",
                        error.message
                    );
                    tell(EventKind::Warning, "InspectFailed", message);
                }
                return Err(error);
            }
        };
        if let Some(image) = present {
            let message = format!("Container image \"{reference}\" already present on machine");
            tell(EventKind::Normal, "Pulled", message);
            return Ok(image);
        }
    }
    if policy == PullPolicy::Never {
        let message =
            format!("Container image \"{reference}\" is not present with pull policy of Never");
        tell(EventKind::Warning, "ErrImageNeverPull", message.clone());
        return Err(ImagesError {
            reason: "ErrImageNeverPull",
            message,
        });
    }
    tell(
        EventKind::Normal,
        "Pulling",
        format!("Pulling image \"{reference}\""),
    );
    let started = tokio::time::Instant::now();
    let secrets = pull_secrets(ctx, pod).await;
    match ctx.images.pull(reference, &secrets).await {
        Ok(image) => {
            let took = duration(started.elapsed());
            let message = format!(
                "Successfully pulled image \"{reference}\" in {took} ({took} including waiting). Image size: {} bytes.",
                image.size
            );
            tell(EventKind::Normal, "Pulled", message);
            Ok(image)
        }
        Err(error) => {
            let message = format!("Failed to pull image \"{reference}\": {}", error.message);
            tell(EventKind::Warning, "Failed", message);
            Err(error)
        }
    }
}

/// The pull secrets that exist; one that does not is told and passed over, as upstream does.
async fn pull_secrets(ctx: &NodeContext, pod: &Pod) -> Vec<PullSecret> {
    let names = pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let mut found = Vec::new();
    for reference in names {
        let data = match api.get_opt(&reference.name).await {
            Ok(secret) => secret.and_then(|secret| secret.data).unwrap_or_default(),
            Err(error) => {
                tracing::debug!(error = %skiff_client::chain(&error), "reading a pull secret");
                std::collections::BTreeMap::new()
            }
        };
        if let Some(json) = data.get(".dockerconfigjson") {
            found.push(PullSecret::DockerConfigJson(json.0.clone()));
        } else if let Some(json) = data.get(".dockercfg") {
            found.push(PullSecret::DockerCfg(json.0.clone()));
        } else {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                reference.name
            );
            ctx.pod_event(
                pod,
                EventKind::Warning,
                "FailedToRetrieveImagePullSecret",
                message,
            );
        }
    }
    found
}

/// A duration as upstream writes it.
fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{}ms", duration.as_millis())
    } else {
        let millis = duration.subsec_millis();
        let seconds = duration.as_secs();
        let rest = format!("{}.{millis:03}", seconds % 60);
        let rest = rest.trim_end_matches('0').trim_end_matches('.');
        match seconds / 60 {
            0 => format!("{rest}s"),
            minutes => format!("{minutes}m{rest}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_upstream_does() {
        for (millis, text) in [
            (5, "5ms"),
            (1200, "1.2s"),
            (1000, "1s"),
            (61_034, "1m1.034s"),
            (120_000, "2m0s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
