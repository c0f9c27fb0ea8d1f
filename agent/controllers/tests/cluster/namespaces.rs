//! Namespaces: what is put into them and how they end.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{Cluster, eventually};

#[tokio::test]
async fn every_namespace_has_a_service_account_and_the_root_ca() {
    let cluster = Cluster::start().await;
    cluster.namespace("dev").await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "dev");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "dev");
    eventually("default account and root CA", || async {
        let account = accounts.get_opt("default").await.unwrap();
        let map = maps.get_opt("kube-root-ca.crt").await.unwrap()?;
        (account.is_some() && map.data?["ca.crt"] == "PEM").then_some(())
    })
    .await;
    maps.delete("kube-root-ca.crt", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the root CA is back", || async {
        maps.get_opt("kube-root-ca.crt").await.unwrap()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_deleted_namespace_is_emptied_and_goes() {
    let mut cluster = Cluster::start().await;
    cluster.start_kubelet();
    cluster.namespace("dev").await;
    let mut deployment = crate::workloads::deployment(3);
    deployment["metadata"]["namespace"] = json!("dev");
    cluster
        .create("/apis/apps/v1/namespaces/dev/deployments", &deployment)
        .await;
    eventually("three pods", || async {
        (cluster.pods("dev").await.len() == 3).then_some(())
    })
    .await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces
        .delete("dev", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the namespace is gone", || async {
        namespaces
            .get_opt("dev")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(cluster.pods("dev").await.is_empty());
    cluster.stop().await;
}
