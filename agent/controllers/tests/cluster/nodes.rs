//! What happens to a node that falls silent.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_controllers::ControllersConfig;

use crate::harness::{Cluster, NODE, eventually};
use crate::workloads::deployment;

fn state(node: &Node) -> (String, Vec<String>) {
    let conditions = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let taints = taints
        .into_iter()
        .map(|t| format!("{}:{}", t.key, t.effect))
        .collect();
    (ready.map(|c| c.status).unwrap_or_default(), taints)
}

#[tokio::test]
async fn a_silent_node_is_unknown_and_tainted_until_it_speaks_again() {
    let mut cluster = Cluster::start_with(ControllersConfig {
        node_monitor_grace_period: Duration::from_millis(800),
        ..ControllersConfig::default()
    })
    .await;
    cluster.start_kubelet();
    cluster
        .create(
            "/apis/apps/v1/namespaces/default/deployments",
            &deployment(1),
        )
        .await;
    let ready = |wanted: &'static str| {
        let cluster = &cluster;
        move || async move {
            let pods = cluster.pods("default").await;
            let conditions = pods.first()?.status.clone()?.conditions?;
            conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == wanted)
                .then_some(())
        }
    };
    eventually("a ready pod", ready("True")).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    eventually("unknown and tainted", || async {
        let (ready, taints) = state(&nodes.get(NODE).await.unwrap());
        let expected = ["unreachable:NoSchedule", "unreachable:NoExecute"]
            .map(|t| format!("node.kubernetes.io/{t}"));
        (ready == "Unknown" && taints == expected).then_some(())
    })
    .await;
    eventually("its pod gets no more traffic", ready("False")).await;
    let back = Patch::Strategic(json!({"status": {"conditions": [{
        "type": "Ready", "status": "True",
        "lastHeartbeatTime": jiff::Timestamp::now().to_string(),
    }]}}));
    nodes
        .patch_status(NODE, &PatchParams::default(), &back)
        .await
        .unwrap();
    eventually("taints gone", || async {
        let (ready, taints) = state(&nodes.get(NODE).await.unwrap());
        (ready == "True" && taints.is_empty()).then_some(())
    })
    .await;
    cluster.stop().await;
}
