//! A real API server in this process, reached by the proxy over HTTP in the node's namespace and by the cases directly.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Client,
    api::{Api as Objects, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use skiff_apiserver::{ApiServer, ApiServerOptions, UserInfo};
use skiff_netns::NetNs;
use skiff_storage::memory::MemoryStore;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::who::{NODE_NAME, ZONE};

/// Where it listens in the node's namespace.
const PORT: u16 = 6443;

/// The server, and a client of it.
pub(crate) struct Api {
    runtime: Runtime,
    client: Client,
}

/// The kinds of object that cases write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    Slice,
}

impl Kind {
    fn resource(self) -> ApiResource {
        match self {
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::Slice => ApiResource::erase::<EndpointSlice>(&()),
        }
    }
}

impl Api {
    /// Starts one and writes a kubeconfig for it.
    pub(crate) fn start(node: &NetNs, kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = node.run(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        })??;
        let options = ApiServerOptions {
            service_cidrs: vec!["10.96.0.0/16".parse()?, "fd00:60::/96".parse()?],
            ..ApiServerOptions::default()
        };
        let server = ApiServer::new(Arc::new(MemoryStore::new()), options);
        let routes = server
            .router()
            .map_request(|mut request: http::Request<_>| {
                let user = UserInfo::component("system:tests");
                request.extensions_mut().insert(user);
                request
            });
        let for_client =
            routes
                .clone()
                .map_request(|request: http::Request<kube::client::Body>| {
                    request.map(axum::body::Body::new)
                });
        let in_runtime = runtime.enter();
        let client = Client::new(for_client, "default");
        tokio::spawn(async move { server.run(CancellationToken::new()).await });
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(async move { axum::serve(listener, tower::make::Shared::new(routes)).await });
        drop(in_runtime);
        fs::write(kubeconfig, KUBECONFIG)?;
        let api = Self { runtime, client };
        api.bootstrap()?;
        Ok(api)
    }

    /// The node object, as its kubelet would write it.
    fn bootstrap(&self) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": NODE_NAME,
            "labels": {"topology.kubernetes.io/zone": ZONE, "kubernetes.io/hostname": NODE_NAME},
        }});
        let node: Node = serde_json::from_value(node)?;
        let nodes: Objects<Node> = Objects::all(self.client.clone());
        let create = async {
            // Until the server has made its own first objects.
            loop {
                match nodes.create(&PostParams::default(), &node).await {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let patience = Duration::from_secs(20);
        let created = self
            .runtime
            .block_on(async { tokio::time::timeout(patience, create).await });
        created.context("the API server did not get ready")
    }

    pub(crate) fn create_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Objects<Namespace> = Objects::all(self.client.clone());
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let object: Namespace = serde_json::from_value(object)?;
        self.runtime
            .block_on(namespaces.create(&PostParams::default(), &object))
            .with_context(|| format!("creating namespace {name}"))?;
        Ok(())
    }

    fn objects(&self, kind: Kind, namespace: &str) -> Objects<DynamicObject> {
        Objects::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    pub(crate) fn create(&self, kind: Kind, namespace: &str, object: Value) -> Result<()> {
        let name = object["metadata"]["name"].to_string();
        let object: DynamicObject = serde_json::from_value(object)?;
        let objects = self.objects(kind, namespace);
        self.runtime
            .block_on(objects.create(&PostParams::default(), &object))
            .with_context(|| format!("creating {kind:?} {name}"))?;
        Ok(())
    }

    /// Merges `change` into an object.
    pub(crate) fn patch(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        change: &Value,
    ) -> Result<()> {
        let objects = self.objects(kind, namespace);
        self.runtime
            .block_on(objects.patch(name, &PatchParams::default(), &Patch::Merge(change)))
            .with_context(|| format!("patching {kind:?} {name} by {change}"))?;
        Ok(())
    }

    /// Merges `change` into a Service's status.
    pub(crate) fn patch_status(&self, namespace: &str, name: &str, change: &Value) -> Result<()> {
        let objects = self.objects(Kind::Service, namespace);
        self.runtime
            .block_on(objects.patch_status(name, &PatchParams::default(), &Patch::Merge(change)))
            .with_context(|| format!("patching the status of {name} by {change}"))?;
        Ok(())
    }

    pub(crate) fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        let objects = self.objects(kind, namespace);
        self.runtime
            .block_on(objects.delete(name, &DeleteParams::default()))
            .with_context(|| format!("deleting {kind:?} {name}"))?;
        Ok(())
    }
}

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
clusters:
- name: tests
  cluster: {server: \"http://127.0.0.1:6443\"}
users:
- name: proxy
  user: {}
contexts:
- name: tests
  context: {cluster: tests, user: proxy}
current-context: tests
";
