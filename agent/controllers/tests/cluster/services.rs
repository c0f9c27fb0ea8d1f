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

#[tokio::test]
async fn load_balancers_have_addresses_of_the_pool_and_wait_when_it_is_empty() {
    let cluster = Cluster::start_with(skiff_controllers::ControllersConfig {
        load_balancer_ranges: vec!["203.0.113.8/30".parse().unwrap()],
        ..Default::default()
    })
    .await;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    let address = |name: &'static str| {
        let services = services.clone();
        async move {
            let status = services.get(name).await.unwrap().status?;
            status.load_balancer?.ingress?.first()?.ip.clone()
        }
    };
    let mut wanted = load_balancer();
    for (name, ask, expected) in [
        ("first", "203.0.113.10", "203.0.113.10"),
        ("second", "", "203.0.113.9"),
    ] {
        wanted["metadata"]["name"] = json!(name);
        wanted["spec"]["loadBalancerIP"] = json!(ask);
        let path = "/api/v1/namespaces/default/services";
        cluster.create(path, &wanted).await;
        eventually("an address of the pool", || async {
            address(name).await.filter(|ip| ip == expected)
        })
        .await;
    }
    wanted["metadata"]["name"] = json!("third");
    cluster
        .create("/api/v1/namespaces/default/services", &wanted)
        .await;
    let events: Api<k8s_openapi::api::core::v1::Event> =
        Api::namespaced(cluster.client.clone(), "default");
    eventually("an Event that says why", || async {
        let list = events.list(&kube::api::ListParams::default()).await;
        let told = list.unwrap().items.into_iter().any(|event| {
            event.reason.as_deref() == Some("SyncLoadBalancerFailed")
                && event.involved_object.name.as_deref() == Some("third")
        });
        told.then_some(())
    })
    .await;
    assert_eq!(address("third").await, None);
    // What another one gives back is given to it, without anybody asking again.
    services
        .delete("first", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the address of the deleted Service", || async {
        address("third").await.filter(|ip| ip == "203.0.113.10")
    })
    .await;
    // Another type gives it back, too.
    let patch = Patch::Merge(json!({"spec": {"type": "ClusterIP"}}));
    services
        .patch("second", &PatchParams::default(), &patch)
        .await
        .unwrap();
    eventually(
        "no address of a Service without a load balancer",
        || async { address("second").await.is_none().then_some(()) },
    )
    .await;
    cluster.stop().await;
}
