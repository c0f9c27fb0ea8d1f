//! The garbage collector on real objects.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::Api;
use kube::api::{DeleteParams, PropagationPolicy};

use crate::harness::{Cluster, eventually};
use crate::workloads::deployment;

async fn with_deployment() -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    cluster
        .create(
            "/apis/apps/v1/namespaces/default/deployments",
            &deployment(2),
        )
        .await;
    eventually("two pods", || async {
        (cluster.pods("default").await.len() == 2).then_some(())
    })
    .await;
    cluster
}

fn policy(policy: PropagationPolicy) -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    }
}

#[tokio::test]
async fn background_and_foreground_take_replica_sets_and_pods() {
    for how in [PropagationPolicy::Background, PropagationPolicy::Foreground] {
        let cluster = with_deployment().await;
        let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
        let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), "default");
        let foreground = how == PropagationPolicy::Foreground;
        deployments.delete("web", &policy(how)).await.unwrap();
        eventually("nothing is left", || async {
            let deployment = deployments.get_opt("web").await.unwrap();
            let sets = sets.list(&Default::default()).await.unwrap().items;
            if foreground {
                assert!(
                    deployment.is_some() || sets.is_empty(),
                    "the owner went first"
                );
            }
            let pods = cluster.pods("default").await;
            (deployment.is_none() && sets.is_empty() && pods.is_empty()).then_some(())
        })
        .await;
        cluster.stop().await;
    }
}

#[tokio::test]
async fn orphans_stay_without_their_owner() {
    let cluster = with_deployment().await;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    deployments
        .delete("web", &policy(PropagationPolicy::Orphan))
        .await
        .unwrap();
    eventually("the deployment is gone", || async {
        deployments
            .get_opt("web")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), "default");
    let left = sets.list(&Default::default()).await.unwrap().items;
    assert_eq!(left.len(), 1);
    assert!(left[0].metadata.owner_references.is_none());
    assert_eq!(cluster.pods("default").await.len(), 2);
    cluster.stop().await;
}
