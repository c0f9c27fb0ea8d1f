//! One API server on a memory store, the controllers, and a pretended node.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_apiserver::{ApiServer, ApiServerOptions, UserInfo};
use skiff_client::{Change, Informer};
use skiff_controllers::ControllersConfig;
use skiff_storage::memory::MemoryStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub(crate) const NODE: &str = "node-1";
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) client: Client,
    token: CancellationToken,
    tasks: JoinSet<()>,
}

pub(crate) fn client_of(server: &ApiServer, name: &str) -> Client {
    let user = UserInfo::component(name);
    let service = server
        .router()
        .map_request(move |r: http::Request<kube::client::Body>| {
            let mut request = r.map(axum::body::Body::new);
            request.extensions_mut().insert(user.clone());
            request
        });
    Client::new(service, "default")
}

impl Cluster {
    pub(crate) async fn start() -> Cluster {
        Self::start_with(ControllersConfig {
            cluster_ca_pem: Some("PEM".to_owned()),
            ..ControllersConfig::default()
        })
        .await
    }

    pub(crate) async fn start_with(config: ControllersConfig) -> Cluster {
        let server = ApiServer::new(Arc::new(MemoryStore::new()), ApiServerOptions::default());
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (running, stop) = (server.clone(), token.clone());
        tasks.spawn(async move { running.run(stop).await.unwrap() });
        eventually("the API server is ready", || async {
            server.is_ready().then_some(())
        })
        .await;
        let controllers = client_of(&server, "system:kube-controller-manager");
        tasks.spawn(skiff_controllers::run(controllers, config, token.clone()));
        let client = client_of(&server, "system:admin");
        let cluster = Cluster {
            client,
            token,
            tasks,
        };
        cluster.add_node(NODE).await;
        cluster
    }

    async fn add_node(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
                "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"},
            },
        });
        nodes
            .create(
                &PostParams::default(),
                &serde_json::from_value(node).unwrap(),
            )
            .await
            .unwrap();
    }

    /// Binds pods, makes them ready and lets them go, as a scheduler and a kubelet would.
    pub(crate) fn start_kubelet(&mut self) {
        let pods = Informer::<Pod>::start(
            Api::all(self.client.clone()),
            kube::runtime::watcher::Config::default(),
            &mut self.tasks,
            &self.token,
        );
        let mut changes = pods.subscribe();
        let client = self.client.clone();
        self.tasks.spawn(async move {
            let mut next_ip = 1;
            while let Some(change) = changes.recv().await {
                if let Change::Applied { new, .. } = change {
                    next_ip += 1;
                    tend(&client, &new, next_ip).await;
                }
            }
        });
    }

    pub(crate) async fn create(&self, path: &str, body: &Value) -> Value {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(body).unwrap())
            .unwrap();
        self.client.request(request).await.unwrap()
    }

    pub(crate) async fn namespace(&self, name: &str) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }

    /// The pods of a namespace that are not on their way out.
    pub(crate) async fn pods(&self, namespace: &str) -> Vec<Pod> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut pods = api.list(&Default::default()).await.unwrap().items;
        pods.retain(|p| p.metadata.deletion_timestamp.is_none());
        pods
    }

    pub(crate) async fn stop(mut self) {
        self.token.cancel();
        self.tasks.shutdown().await;
    }
}

async fn tend(client: &Client, pod: &Pod, ip: u32) {
    let name = pod.metadata.name.as_deref().unwrap();
    let namespace = pod.metadata.namespace.as_deref().unwrap();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    // Each of these may lose a race with a deletion; the next change tells.
    if pod.metadata.deletion_timestamp.is_some() {
        drop(
            api.delete(name, &DeleteParams::default().grace_period(0))
                .await,
        );
    } else if !bound {
        let body = json!({"target": {"kind": "Node", "name": NODE}, "metadata": {"name": name}});
        let request = http::Request::post(format!(
            "/api/v1/namespaces/{namespace}/pods/{name}/binding"
        ))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body).unwrap())
        .unwrap();
        drop(client.request_text(request).await);
    } else if phase != Some("Running") {
        let status = json!({"status": {
            "phase": "Running",
            "podIP": format!("10.244.{}.{}", ip / 250, ip % 250),
            "podIPs": [{"ip": format!("10.244.{}.{}", ip / 250, ip % 250)}],
            "conditions": [{
                "type": "Ready", "status": "True",
                "lastTransitionTime": jiff::Timestamp::now().to_string(),
            }],
        }});
        drop(
            api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                .await,
        );
    }
}

/// Waits until `probe` gives something.
pub(crate) async fn eventually<T, F, P>(what: &str, mut probe: P) -> T
where
    F: Future<Output = Option<T>>,
    P: FnMut() -> F,
{
    let waiting = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(DEADLINE, waiting).await {
        Ok(found) => found,
        Err(_) => panic!("in vain: {what}"),
    }
}
