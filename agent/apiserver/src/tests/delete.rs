//! Deletion: grace, finalizers, preconditions, namespaces, collections.

use serde_json::json;

use super::*;

async fn bind(server: &Server, name: &str) {
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    server
        .post(&format!("{PODS}/{name}/binding"), &binding)
        .await
        .ok();
}

#[tokio::test]
async fn a_bound_pod_waits_for_its_kubelet() {
    let server = Server::start().await;
    server.pod("p").await;
    bind(&server, "p").await;
    let path = format!("{PODS}/p");
    let pending = server.delete(&path).await.ok();
    assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(server.get(&path).await.ok()["metadata"]["deletionTimestamp"].is_string());
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    let answer = server
        .with_body("DELETE", &path, "application/json", &options)
        .await;
    assert!(
        answer
            .fails(409, "Conflict")
            .contains("UID in precondition: other")
    );
    let answer = server.delete(&format!("{path}?gracePeriodSeconds=0")).await;
    assert_eq!(answer.ok()["kind"], "Pod");
    server.get(&path).await.fails(404, "NotFound");
}

#[tokio::test]
async fn an_unscheduled_pod_goes_at_once() {
    let server = Server::start().await;
    server.pod("p").await;
    server.delete(&format!("{PODS}/p")).await.ok();
    server
        .delete(&format!("{PODS}/p"))
        .await
        .fails(404, "NotFound");
}

#[tokio::test]
async fn eviction_deletes() {
    let server = Server::start().await;
    server.pod("p").await;
    bind(&server, "p").await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 3}});
    let status = server
        .post(&format!("{PODS}/p/eviction"), &eviction)
        .await
        .ok();
    assert_eq!(status["status"], "Success");
    let pod = server.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 3);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let server = Server::start().await;
    let mut body = config_map("a", &json!({}));
    body["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(CONFIG_MAPS, &body).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    let held = server.delete(&path).await.ok();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    // A second deletion changes nothing; an ordinary update cannot undo it.
    let again = server.delete(&path).await.ok();
    assert_eq!(
        again["metadata"]["resourceVersion"],
        held["metadata"]["resourceVersion"]
    );
    let patch = json!({"metadata": {"deletionTimestamp": null, "labels": {"a": "b"}}});
    let patched = server.patch("merge", &path, &patch).await.ok();
    assert!(patched["metadata"]["deletionTimestamp"].is_string());
    server
        .patch("merge", &path, &json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    server.get(&path).await.fails(404, "NotFound");
}

#[tokio::test]
async fn propagation_becomes_a_finalizer() {
    let server = Server::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        let name = policy.to_lowercase();
        server.post(DEPLOYMENTS, &deployment(&name)).await.ok();
        let options = json!({"propagationPolicy": policy});
        let path = format!("{DEPLOYMENTS}/{name}");
        let held = server
            .with_body("DELETE", &path, "application/json", &options)
            .await
            .ok();
        assert_eq!(held["metadata"]["finalizers"], json!([finalizer]));
    }
    server.post(DEPLOYMENTS, &deployment("b")).await.ok();
    let status = server
        .delete(&format!("{DEPLOYMENTS}/b?propagationPolicy=Background"))
        .await
        .ok();
    assert_eq!(
        (&status["status"], &status["details"]["name"]),
        (&json!("Success"), &json!("b"))
    );
}

#[tokio::test]
async fn a_namespace_terminates_until_it_is_finalized() {
    let server = Server::start().await;
    let dev = format!("{NAMESPACES}/dev");
    let created = server
        .post(NAMESPACES, &json!({"metadata": {"name": "dev"}}))
        .await
        .ok();
    assert_eq!(
        (&created["status"]["phase"], &created["spec"]["finalizers"]),
        (&json!("Active"), &json!(["kubernetes"]))
    );
    server
        .post(&format!("{dev}/configmaps"), &config_map("a", &json!({})))
        .await
        .ok();
    assert_eq!(
        server.delete(&dev).await.ok()["status"]["phase"],
        "Terminating"
    );
    let answer = server
        .post(&format!("{dev}/configmaps"), &config_map("b", &json!({})))
        .await;
    let message = answer.fails(403, "Forbidden");
    assert!(
        message.contains("because it is being terminated"),
        "{message}"
    );
    let listed = server.get(&format!("{dev}/configmaps")).await.ok();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    server.delete(&format!("{dev}/configmaps")).await.ok();
    let mut namespace = server.get(&dev).await.ok();
    namespace["spec"]["finalizers"] = json!([]);
    server
        .put(&format!("{dev}/finalize"), &namespace)
        .await
        .ok();
    server.get(&dev).await.fails(404, "NotFound");
    let answer = server
        .post(&format!("{dev}/configmaps"), &config_map("b", &json!({})))
        .await;
    assert_eq!(
        answer.fails(404, "NotFound"),
        "namespaces \"dev\" not found"
    );
}

#[tokio::test]
async fn some_namespaces_stay() {
    let server = Server::start().await;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let message = server
            .delete(&format!("{NAMESPACES}/{name}"))
            .await
            .fails(403, "Forbidden");
        assert_eq!(
            message,
            format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted")
        );
    }
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = Server::start().await;
    for (name, app) in [("a", "web"), ("b", "web"), ("c", "db")] {
        server.config_map(name, &json!({"app": app})).await;
    }
    let deleted = server
        .delete(&format!("{CONFIG_MAPS}?labelSelector=app%3Dweb"))
        .await
        .ok();
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = server.get(CONFIG_MAPS).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    server
        .delete("/api/v1/configmaps")
        .await
        .fails(405, "MethodNotAllowed");
}
