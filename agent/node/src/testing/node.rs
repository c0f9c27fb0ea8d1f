//! A node made of fakes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use oci_spec::runtime::Spec;
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value, json};
use skiff_netns::NodeNetns;
use skiff_runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{FakeApi, FakeRuntime};
use crate::NodeConfig;
use crate::context::{Clock, NodeContext};
use crate::engine::{SpecBuilder, SpecRefused, SpecRequest};
use crate::env::Allocatable;
use crate::images::{Image, ImageDefaults, Images, ImagesError, PullSecret};
use crate::network::{NetworkError, PodAttachment, PodNetwork};

/// Images that can be pulled are those whose name does not contain "missing".
#[derive(Default)]
pub(crate) struct FakeImages {
    pub(crate) present: Mutex<BTreeSet<String>>,
    pub(crate) roots: Mutex<BTreeSet<String>>,
    /// "missing" images can be pulled, too.
    pub(crate) all_there: std::sync::atomic::AtomicBool,
}

fn image(reference: &str) -> Image {
    Image {
        key: reference.to_owned(),
        id: format!("{reference}@sha256:00"),
        names: vec![reference.to_owned()],
        size: 42,
        defaults: ImageDefaults::default(),
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn get(&self, reference: &str) -> Result<Option<Image>, ImagesError> {
        if reference.contains(' ') {
            let message = "invalid reference format".to_owned();
            return Err(ImagesError {
                reason: "InvalidImageName",
                message,
            });
        }
        Ok(self
            .present
            .lock()
            .contains(reference)
            .then(|| image(reference)))
    }

    async fn pull(&self, reference: &str, _secrets: &[PullSecret]) -> Result<Image, ImagesError> {
        let all = self.all_there.load(std::sync::atomic::Ordering::SeqCst);
        if reference.contains("missing") && !all {
            let message = "manifest unknown".to_owned();
            return Err(ImagesError {
                reason: "ErrImagePull",
                message,
            });
        }
        self.present.lock().insert(reference.to_owned());
        Ok(image(reference))
    }

    async fn prepare(&self, _image: &Image, key: &str) -> Result<PathBuf, ImagesError> {
        self.roots.lock().insert(key.to_owned());
        Ok(PathBuf::from("/fake/rootfs").join(key))
    }

    async fn release(&self, key: &str) -> Result<(), ImagesError> {
        self.roots.lock().remove(key);
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>, ImagesError> {
        Ok(self.roots.lock().iter().cloned().collect())
    }

    async fn list(&self) -> Result<Vec<Image>, ImagesError> {
        Ok(self
            .present
            .lock()
            .iter()
            .map(|reference| image(reference))
            .collect())
    }
}

#[derive(Default)]
pub(crate) struct FakeNetwork {
    pub(crate) attached: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    pub(crate) failures: Mutex<u32>,
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(
        &self,
        pod: &PodAttachment,
        _capability_args: Map<String, Value>,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let mut failures = self.failures.lock();
        if *failures > 0 {
            *failures -= 1;
            return Err(NetworkError("no addresses left".to_owned()));
        }
        let mut attached = self.attached.lock();
        let last = u8::try_from(attached.len() + 2).unwrap();
        let ips = vec![IpAddr::from([10, 244, 0, last])];
        attached.insert(pod.uid.clone(), ips.clone());
        Ok(ips)
    }

    async fn addresses(&self, pod: &PodAttachment) -> Option<Vec<IpAddr>> {
        self.attached.lock().get(&pod.uid).cloned()
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        self.attached.lock().remove(&pod.uid);
        Ok(())
    }

    async fn sweep(&self, uids: &(dyn Fn() -> Vec<String> + Sync)) -> Result<(), NetworkError> {
        let uids = uids();
        self.attached.lock().retain(|uid, _| uids.contains(uid));
        Ok(())
    }
}

/// Container, environment and mount targets.
pub(crate) type SeenSpec = (String, BTreeMap<String, String>, Vec<String>);

/// Keeps the environment of every container that it made a spec for.
#[derive(Default)]
pub(crate) struct FakeSpecs {
    pub(crate) seen: Mutex<Vec<SeenSpec>>,
}

impl SpecBuilder for FakeSpecs {
    fn build(&self, request: &SpecRequest<'_>) -> Result<Spec, SpecRefused> {
        let env = request.env.iter().cloned().collect();
        let mounts = request
            .mounts
            .iter()
            .map(|mount| mount.target.clone())
            .collect();
        self.seen
            .lock()
            .push((request.container.name.clone(), env, mounts));
        Ok(Spec::default())
    }
}

pub(crate) struct TestNode {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) api: FakeApi,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) network: Arc<FakeNetwork>,
    pub(crate) specs: Arc<FakeSpecs>,
    pub(crate) token: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
    data: tempfile::TempDir,
}

impl TestNode {
    /// A new daemon on what an earlier one left.
    pub(crate) async fn again(self) -> Self {
        let Self {
            api,
            runtime,
            images,
            network,
            specs,
            data,
            context,
            ..
        } = self;
        Self::of(data, context.clock, api, runtime, images, network, specs).await
    }

    pub(crate) async fn new() -> Self {
        let base = "2026-01-02T03:04:05Z".parse().unwrap();
        let clock = Clock::Tokio(base, tokio::time::Instant::now());
        let data = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        let runtime = Arc::new(FakeRuntime::new(clock));
        let images = Arc::new(FakeImages::default());
        let network = Arc::new(FakeNetwork::default());
        let specs = Arc::new(FakeSpecs::default());
        Self::of(data, clock, api, runtime, images, network, specs).await
    }

    async fn of(
        data: tempfile::TempDir,
        clock: Clock,
        api: FakeApi,
        runtime: Arc<FakeRuntime>,
        images: Arc<FakeImages>,
        network: Arc<FakeNetwork>,
        specs: Arc<FakeSpecs>,
    ) -> Self {
        let context = Arc::new(NodeContext {
            config: config_in(data.path()),
            client: api.client(),
            runtime: Arc::clone(&runtime) as Arc<dyn Runtime>,
            images: Arc::clone(&images) as Arc<dyn Images>,
            network: Arc::clone(&network) as Arc<dyn PodNetwork>,
            specs: Arc::clone(&specs) as Arc<dyn SpecBuilder>,
            clock,
            allocatable: Allocatable {
                cpu_millis: 4000,
                memory: 1 << 33,
                ephemeral_storage: 0,
            },
            host_ips: RwLock::new(vec![IpAddr::from([192, 0, 2, 1])]),
            services: OnceLock::new(),
            recorder: OnceLock::new(),
            pods: RwLock::default(),
            admission: Mutex::default(),
        });
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        crate::node::start_shared(&context, &mut tasks, &token);
        context.services.get().unwrap().synced().await;
        Self {
            context,
            api,
            runtime,
            images,
            network,
            specs,
            token,
            tasks,
            data,
        }
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.api.get(&pod_path(name)).unwrap_or(Value::Null)
    }

    pub(crate) fn put_pod(&self, pod: &Pod) {
        let name = pod.metadata.name.clone().unwrap();
        self.api
            .put(&pod_path(&name), serde_json::to_value(pod).unwrap());
    }
}

pub(crate) fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

pub(crate) fn config_in(data: &Path) -> NodeConfig {
    NodeConfig {
        node_name: "n1".to_owned(),
        node_netns: NodeNetns::machine(),
        node_ips: Vec::new(),
        data_dir: data.to_owned(),
        run_dir: data.join("run"),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        pod_cidrs: Vec::new(),
        cluster_dns: IpAddr::from([10, 96, 0, 10]),
        cluster_domain: "cluster.local".to_owned(),
        max_pods: 110,
        cni_conf_dir: data.join("cni/net.d"),
        cni_bin_dirs: Vec::new(),
        node_labels: Vec::new(),
        resolv_conf: data.join("resolv.conf"),
        kubelet_port: 0,
    }
}

/// A pod in `default` with this spec and the UID `uid-NAME`.
pub(crate) fn pod_from(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

/// A pod with one container `c`.
pub(crate) fn pod_named(name: &str) -> Pod {
    pod_from(
        name,
        json!({
            "nodeName": "n1", "restartPolicy": "Always",
            "containers": [{"name": "c", "image": "redis:6"}],
        }),
    )
}
