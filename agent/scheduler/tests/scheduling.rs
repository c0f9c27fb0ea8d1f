//! The scheduler against the real API server, in process.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends at the first surprise, also in its helpers"
)]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, Pod, PodCondition};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_apiserver::{ApiServer, ApiServerOptions, UserInfo};
use skiff_storage::memory::MemoryStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

struct Cluster {
    client: Client,
    token: CancellationToken,
    tasks: JoinSet<()>,
}

fn client_of(server: &ApiServer, name: &str) -> Client {
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
    async fn start() -> Cluster {
        let server = ApiServer::new(Arc::new(MemoryStore::new()), ApiServerOptions::default());
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (running, stop) = (server.clone(), token.clone());
        tasks.spawn(async move { running.run(stop).await.unwrap() });
        eventually("the API server is ready", || async {
            server.is_ready().then_some(())
        })
        .await;
        let scheduler = client_of(&server, "system:kube-scheduler");
        tasks.spawn(skiff_scheduler::run(scheduler, token.clone()));
        Cluster {
            client: client_of(&server, "system:admin"),
            token,
            tasks,
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    async fn node(&self, name: &str, cpu: &str, spec: Value) {
        let node = json!({
            "metadata": {"name": name},
            "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
        });
        let node = serde_json::from_value(node).unwrap();
        self.nodes()
            .create(&PostParams::default(), &node)
            .await
            .unwrap();
    }

    async fn pod(&self, name: &str, cpu: &str) {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [
                {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}},
            ]},
        });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap();
    }

    async fn node_of(&self, pod: &str) -> Option<String> {
        self.pods().get(pod).await.unwrap().spec.unwrap().node_name
    }

    async fn scheduled(&self, pod: &str) -> Option<PodCondition> {
        let conditions = self.pods().get(pod).await.unwrap().status?.conditions?;
        conditions.into_iter().find(|c| c.type_ == "PodScheduled")
    }

    async fn message(&self, reason: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        eventually(reason, || async {
            let all = events.list(&Default::default()).await.unwrap().items;
            all.into_iter()
                .find(|e| e.reason.as_deref() == Some(reason))?
                .message
        })
        .await
    }

    async fn stop(mut self) {
        self.token.cancel();
        self.tasks.shutdown().await;
    }
}

async fn eventually<T, F, P>(what: &str, mut probe: P) -> T
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
    match tokio::time::timeout(Duration::from_secs(20), waiting).await {
        Ok(found) => found,
        Err(_) => panic!("in vain: {what}"),
    }
}

#[tokio::test]
async fn a_pod_is_bound_and_told_so() {
    let cluster = Cluster::start().await;
    cluster.node("n1", "4", json!({})).await;
    cluster.pod("p", "1").await;
    let node = eventually("bound", || cluster.node_of("p")).await;
    assert_eq!(node, "n1");
    assert_eq!(cluster.scheduled("p").await.unwrap().status, "True");
    let message = cluster.message("Scheduled").await;
    assert_eq!(message, "Successfully assigned default/p to n1");
    cluster.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_waits_until_something_goes() {
    let cluster = Cluster::start().await;
    cluster.node("n1", "1", json!({})).await;
    cluster.pod("first", "800m").await;
    eventually("first is bound", || cluster.node_of("first")).await;
    cluster.pod("second", "800m").await;
    let message = cluster.message("FailedScheduling").await;
    assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu.");
    let condition = eventually("the condition", || cluster.scheduled("second")).await;
    assert_eq!(
        (
            condition.status.as_str(),
            condition.reason.as_deref(),
            condition.message.as_deref()
        ),
        ("False", Some("Unschedulable"), Some(message.as_str()))
    );
    let now = DeleteParams::default().grace_period(0);
    cluster.pods().delete("first", &now).await.unwrap();
    eventually("second is bound", || cluster.node_of("second")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_cordoned_node_takes_pods_again_when_uncordoned() {
    let cluster = Cluster::start().await;
    cluster
        .node("n1", "4", json!({"unschedulable": true}))
        .await;
    cluster.pod("p", "1").await;
    let message = cluster.message("FailedScheduling").await;
    assert_eq!(
        message,
        "0/1 nodes are available: 1 node(s) were unschedulable."
    );
    let uncordon = Patch::Merge(json!({"spec": {"unschedulable": null}}));
    cluster
        .nodes()
        .patch("n1", &PatchParams::default(), &uncordon)
        .await
        .unwrap();
    eventually("bound", || cluster.node_of("p")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_burst_fills_the_nodes_and_overcommits_none() {
    let cluster = Cluster::start().await;
    for n in 0..4 {
        cluster.node(&format!("n{n}"), "5", json!({})).await;
    }
    for p in 0..25 {
        cluster.pod(&format!("p{p}"), "1").await;
    }
    let per_node = eventually("twenty are bound", || async {
        let pods = cluster
            .pods()
            .list(&Default::default())
            .await
            .unwrap()
            .items;
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for node in pods.into_iter().filter_map(|p| p.spec?.node_name) {
            *counts.entry(node).or_default() += 1;
        }
        (counts.values().sum::<usize>() == 20).then_some(counts)
    })
    .await;
    assert!(per_node.values().all(|n| *n == 5), "{per_node:?}");
    cluster.stop().await;
}
