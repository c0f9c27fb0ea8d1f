//! Deployments and ReplicaSets down to pods.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

pub(crate) fn deployment(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    })
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn images(pods: &[Pod]) -> Vec<&str> {
    let specs = pods.iter().filter_map(|p| p.spec.as_ref());
    specs
        .filter_map(|s| s.containers[0].image.as_deref())
        .collect()
}

async fn rolled_out(cluster: &Cluster, image: &str, replicas: usize) -> Deployment {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    eventually(&format!("{replicas} of {image}"), || async {
        let d = api.get("web").await.unwrap();
        let status = d.status.clone().unwrap_or_default();
        let wanted = i32::try_from(replicas).ok();
        let pods = cluster.pods("default").await;
        let done = status.observed_generation == d.metadata.generation
            && status.available_replicas.or(Some(0)) == wanted
            && status.updated_replicas.or(Some(0)) == wanted
            && status.replicas.or(Some(0)) == wanted
            && images(&pods) == vec![image; replicas];
        done.then_some(d)
    })
    .await
}

#[tokio::test]
async fn a_deployment_becomes_pods_rolls_scales_and_rolls_back() {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    cluster.create(DEPLOYMENTS, &deployment(3)).await;
    let first = rolled_out(&cluster, "web:1", 3).await;
    let conditions = first.status.unwrap().conditions.unwrap();
    let reasons: Vec<_> = conditions
        .iter()
        .filter_map(|c| c.reason.as_deref())
        .collect();
    assert!(reasons.contains(&"MinimumReplicasAvailable"), "{reasons:?}");

    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    let image = |image: &str| {
        Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [
            {"name": "c", "image": image},
        ]}}}}))
    };
    let params = PatchParams::default();
    api.patch("web", &params, &image("web:2")).await.unwrap();
    let second = rolled_out(&cluster, "web:2", 3).await;
    let revision = |d: &Deployment| {
        d.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"].clone()
    };
    assert_eq!(revision(&second), "2");

    api.patch(
        "web",
        &params,
        &Patch::Merge(json!({"spec": {"replicas": 5}})),
    )
    .await
    .unwrap();
    rolled_out(&cluster, "web:2", 5).await;

    api.patch("web", &params, &image("web:1")).await.unwrap();
    let third = rolled_out(&cluster, "web:1", 5).await;
    assert_eq!(revision(&third), "3");
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), "default");
    assert_eq!(
        sets.list(&Default::default()).await.unwrap().items.len(),
        2,
        "the old set is back"
    );

    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let events = events.list(&Default::default()).await.unwrap().items;
    let messages: Vec<_> = events.iter().filter_map(|e| e.message.as_deref()).collect();
    let scaled =
        |m: &&str| m.starts_with("Scaled up replica set web-") && m.ends_with("from 0 to 3");
    assert!(messages.iter().any(scaled), "{messages:?}");
    assert!(
        messages.iter().any(|m| m.starts_with("Created pod: web-")),
        "{messages:?}"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn recreate_never_runs_old_and_new_together() {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    let mut body = deployment(2);
    body["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create(DEPLOYMENTS, &body).await;
    rolled_out(&cluster, "web:1", 2).await;
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "web:2"}]}}}});
    api.patch("web", &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    eventually("only new pods", || async {
        let all = pods.list(&Default::default()).await.unwrap().items;
        let images = images(&all);
        assert!(
            !(images.contains(&"web:1") && images.contains(&"web:2")),
            "old and new together: {images:?}"
        );
        (images == ["web:2", "web:2"]).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_set_replaces_what_is_deleted_and_never_makes_too_many() {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    cluster.create(DEPLOYMENTS, &deployment(4)).await;
    rolled_out(&cluster, "web:1", 4).await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    for _ in 0..5 {
        let victim = cluster.pods("default").await[0]
            .metadata
            .name
            .clone()
            .unwrap();
        pods.delete(&victim, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        eventually("four again, never five", || async {
            let alive = cluster.pods("default").await;
            assert!(alive.len() <= 4, "{} pods", alive.len());
            let other = alive
                .iter()
                .all(|p| p.metadata.name.as_ref() != Some(&victim));
            (alive.len() == 4 && other).then_some(())
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_matching_orphan_is_adopted_and_a_relabelled_pod_released() {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    let orphan = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orphan", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "web:1"}]},
    });
    cluster
        .create("/api/v1/namespaces/default/pods", &orphan)
        .await;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": deployment(0)["spec"]["template"],
        },
    });
    cluster
        .create("/apis/apps/v1/namespaces/default/replicasets", &set)
        .await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let owned = |p: &Pod| {
        p.metadata
            .owner_references
            .as_ref()
            .is_some_and(|o| !o.is_empty())
    };
    eventually("orphan adopted, one pod made", || async {
        let orphan = pods.get("orphan").await.unwrap();
        (owned(&orphan) && cluster.pods("default").await.len() == 2).then_some(())
    })
    .await;
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"app": "debug"}}}));
    pods.patch("orphan", &PatchParams::default(), &relabel)
        .await
        .unwrap();
    eventually("released and replaced", || async {
        let orphan = pods.get("orphan").await.unwrap();
        (!owned(&orphan) && cluster.pods("default").await.len() == 3).then_some(())
    })
    .await;
    cluster.stop().await;
}
