//! Starting a container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, LifecycleHandler, Pod, Secret};
use skiff_client::{EventKind, chain};
use skiff_runtime::{ContainerConfig, ContainerRef, RuntimeError, Stdin};

use super::image::PreparedImage;
use super::{Outcome, Worker, files, mounts, stop, volumes};
use crate::annotations;
use crate::backoff::Backoff;
use crate::context::NodeContext;
use crate::engine::SpecRequest;
use crate::env::{self, Sources};
use crate::plan::Op;
use crate::probes::{HttpTarget, http_get};

/// Everything that a start needs, so that it can run beside the loop.
struct Start {
    ctx: Arc<NodeContext>,
    pod: Arc<Pod>,
    uid: String,
    container: Container,
    restart_count: u32,
    prepared: PreparedImage,
    places: BTreeMap<String, PathBuf>,
    ips: Vec<std::net::IpAddr>,
    shim_lost: Arc<AtomicBool>,
}

/// A waiting reason and what the user is told.
type Refused = (&'static str, String);

const CONFIG_ERROR: &str = "CreateContainerConfigError";
const CREATE_ERROR: &str = "CreateContainerError";
const RUN_ERROR: &str = "RunContainerError";

impl Worker {
    pub(super) fn begin_start(&mut self, name: &str, restart_count: u32) {
        let Some(container) = self.container(name).cloned() else {
            return;
        };
        let Some(prepared) = self.images.get(name).cloned() else {
            self.observed.images_ready.remove(name);
            return;
        };
        let now = self.ctx.clock.now();
        if self.observed.latest(name).is_some() {
            let backoff = Backoff::next(self.observed.backoffs.get(name).copied(), now);
            self.observed.backoffs.insert(name.to_owned(), backoff);
        }
        let start = Start {
            ctx: Arc::clone(&self.ctx),
            pod: Arc::clone(&self.pod),
            uid: self.uid.clone(),
            container,
            restart_count,
            prepared,
            places: self.places.clone(),
            ips: self.observed.ips.clone(),
            shim_lost: Arc::clone(&self.shim_lost),
        };
        let wake = Arc::clone(&self.wake);
        self.spawn(Op::Start(name.to_owned()), async move {
            match start.run(&wake).await {
                Ok(()) => Outcome::Done,
                Err((reason, message)) => Outcome::Failed(reason, message),
            }
        });
    }
}

impl Start {
    async fn run(self, wake: &tokio::sync::Notify) -> Result<(), Refused> {
        let env = self.env().await?;
        let config = self.config(env).await?;
        let name = &self.container.name;
        let tell = |kind, reason: &str, message| {
            self.ctx
                .container_event(&self.pod, name, kind, reason, message);
        };
        let id = self
            .ctx
            .runtime
            .start_container(config)
            .await
            .map_err(|error| {
                if matches!(error, RuntimeError::ShimLost { .. }) {
                    // It died while no daemon listened.
                    self.shim_lost.store(true, Ordering::Release);
                }
                (RUN_ERROR, chain(&error).to_string())
            })?;
        tell(
            EventKind::Normal,
            "Created",
            format!("Created container: {name}"),
        );
        tell(
            EventKind::Normal,
            "Started",
            format!("Started container {name}"),
        );
        let hook = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref());
        let Some(hook) = hook else { return Ok(()) };
        // The container runs; the status may say so while the hook runs.
        wake.notify_one();
        let ip = self.ips.first().copied();
        if let Err(message) = run_hook(&self.ctx, &self.container, &id, ip, hook).await {
            tell(
                EventKind::Warning,
                "FailedPostStartHook",
                format!("PostStartHook failed: {message}"),
            );
            let grace = Duration::from_secs(2);
            drop(
                self.ctx
                    .runtime
                    .stop_container(&id, stop::SIGTERM, grace)
                    .await,
            );
            return Err((
                "PostStartHookError",
                format!("PostStartHook failed: {message}"),
            ));
        }
        Ok(())
    }

    async fn env(&self) -> Result<Vec<(String, String)>, Refused> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or("default");
        let wanted = env::references(&self.container);
        let client = &self.ctx.client;
        let (config_maps, secrets) = tokio::try_join!(
            volumes::fetch::<ConfigMap>(client, namespace, wanted.config_maps),
            volumes::fetch::<Secret>(client, namespace, wanted.secrets),
        )
        .map_err(|error| (CONFIG_ERROR, chain(&error).to_string()))?;
        let mut services = Vec::new();
        if let Some(informer) = self.ctx.services.get() {
            informer.synced().await;
            services = informer.in_namespace(namespace);
            if namespace != "default" {
                services.extend(informer.get(&skiff_client::Key::new("default", "kubernetes")));
            }
        }
        let sources = Sources {
            config_maps,
            secrets,
            services,
            pod_ips: self.ips.clone(),
            host_ips: self.ctx.host_ips(),
            allocatable: self.ctx.allocatable,
        };
        env::resolve_env(&self.pod, &self.container, &sources)
            .map_err(|error| (CONFIG_ERROR, error.to_string()))
    }

    async fn config(&self, env: Vec<(String, String)>) -> Result<ContainerConfig, Refused> {
        let meta = &self.pod.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let log_dir = self.ctx.config.log_dir(
            namespace,
            meta.name.as_deref().unwrap_or_default(),
            &self.uid,
        );
        let log_path = log_dir
            .join(&self.container.name)
            .join(format!("{}.log", self.restart_count));
        let termination = self
            .ctx
            .config
            .pod_dir(&self.uid)
            .join("containers")
            .join(&self.container.name)
            .join(format!("{}-termination-log", self.restart_count));
        let annotations = self.annotations(&log_path, &termination);
        let lookup = |name: &str| {
            env.iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        let shown = crate::volumes::shown(&self.pod);
        let mounts = mounts::plan(&self.container, &self.places, &shown, lookup)
            .map_err(|message| (CONFIG_ERROR, message))?;
        let ctx = Arc::clone(&self.ctx);
        let (pod, container) = (Arc::clone(&self.pod), self.container.clone());
        let (uid, prepared) = (self.uid.clone(), self.prepared.clone());
        let log_parent = log_path.parent().map(Path::to_owned);
        let build = move || -> Result<oci_spec::runtime::Spec, Refused> {
            let io = |error: std::io::Error| (CREATE_ERROR, error.to_string());
            if let Some(parent) = log_parent {
                std::fs::create_dir_all(parent).map_err(io)?;
            }
            let binds = mounts::resolve(&ctx.config, &uid, &container, mounts, &termination)?;
            let request = SpecRequest {
                pod: &pod,
                container: &container,
                image: &prepared.image.defaults,
                env,
                mounts: binds,
                rootfs: &prepared.rootfs,
                hostname: files::hostname(&pod, &ctx.config.node_name),
            };
            ctx.specs
                .build(&request)
                .map_err(|refused| (refused.reason, refused.message))
        };
        let spec = tokio::task::spawn_blocking(build)
            .await
            .map_err(|error| (CREATE_ERROR, error.to_string()))??;
        Ok(ContainerConfig {
            pod_uid: self.uid.clone(),
            name: self.container.name.clone(),
            restart_count: self.restart_count,
            rootfs: self.prepared.rootfs.clone(),
            spec,
            log_path,
            annotations,
            tty: self.container.tty == Some(true),
            stdin: match (self.container.stdin, self.container.stdin_once) {
                (Some(true), Some(true)) => Stdin::Once,
                (Some(true), _) => Stdin::Open,
                _ => Stdin::Empty,
            },
        })
    }

    fn annotations(&self, log_path: &Path, termination: &Path) -> BTreeMap<String, String> {
        let lifecycle = self.container.lifecycle.as_ref();
        let signal = lifecycle
            .and_then(|lifecycle| lifecycle.stop_signal.clone())
            .or_else(|| self.prepared.image.defaults.stop_signal.clone());
        let facts = [
            (
                annotations::IMAGE,
                self.container.image.clone().unwrap_or_default(),
            ),
            (annotations::IMAGE_ID, self.prepared.image.id.clone()),
            (annotations::SNAPSHOT, self.prepared.key.clone()),
            (annotations::LOG_PATH, log_path.display().to_string()),
            (
                annotations::TERMINATION_LOG,
                termination.display().to_string(),
            ),
            (annotations::STOP_SIGNAL, signal.unwrap_or_default()),
        ];
        facts
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

/// Runs a lifecycle hook.
pub(super) async fn run_hook(
    ctx: &Arc<NodeContext>,
    container: &Container,
    id: &ContainerRef,
    ip: Option<std::net::IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        let text = command.join(" ");
        let (code, output) = crate::probes::exec_output(ctx, id, command).await?;
        if code != 0 {
            return Err(format!("command '{text}' exited with {code}: {output}"));
        }
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        let target = HttpTarget::new(action, container, ip)?;
        let limit = Duration::from_secs(30);
        return match http_get(&ctx.config.node_netns, &target, limit).await? {
            (200..400, _) => Ok(()),
            (status, _) => Err(format!("HTTP status {status}")),
        };
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(action.seconds).unwrap_or(0),
        ))
        .await;
    }
    Ok(())
}
