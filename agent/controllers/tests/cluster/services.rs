//! EndpointSlices, Endpoints and load balancers.

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, eventually};
use crate::workloads::deployment;

fn load_balancer() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    })
}

#[tokio::test]
async fn a_service_follows_its_pods() {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    cluster
        .create("/api/v1/namespaces/default/services", &load_balancer())
        .await;
    cluster
        .create(
            "/apis/apps/v1/namespaces/default/deployments",
            &deployment(2),
        )
        .await;
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), "default");
    let params = kube::api::ListParams::default().labels("kubernetes.io/service-name=web");
    let ready = || async {
        let list = slices.list(&params).await.unwrap().items;
        assert!(list.len() <= 1, "{} slices for two endpoints", list.len());
        let endpoints = list
            .into_iter()
            .flat_map(|s| s.endpoints.unwrap_or_default());
        endpoints
            .filter(|e| e.conditions.as_ref().unwrap().ready == Some(true))
            .count()
    };
    eventually("two ready endpoints", || async {
        (ready().await == 2).then_some(())
    })
    .await;
    let endpoints: Api<Endpoints> = Api::namespaced(cluster.client.clone(), "default");
    eventually("two addresses", || async {
        let subsets = endpoints.get_opt("web").await.unwrap()?.subsets?;
        (subsets.first()?.addresses.as_ref()?.len() == 2).then_some(())
    })
    .await;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    eventually("a load balancer address", || async {
        let ingress = services
            .get("web")
            .await
            .unwrap()
            .status?
            .load_balancer?
            .ingress?;
        (ingress.first()?.ip.as_deref() == Some("192.0.2.7")).then_some(())
    })
    .await;

    let pod = cluster.pods("default").await[0]
        .metadata
        .name
        .clone()
        .unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> =
        Api::namespaced(cluster.client.clone(), "default");
    let not_ready = Patch::Strategic(json!({"status": {"conditions": [
        {"type": "Ready", "status": "False"},
    ]}}));
    pods.patch_status(&pod, &PatchParams::default(), &not_ready)
        .await
        .unwrap();
    eventually("one ready endpoint", || async {
        (ready().await == 1).then_some(())
    })
    .await;

    services
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    eventually("slices and endpoints gone", || async {
        let left = slices.list(&params).await.unwrap().items.len();
        (left == 0 && endpoints.get_opt("web").await.unwrap().is_none()).then_some(())
    })
    .await;
    cluster.stop().await;
}
