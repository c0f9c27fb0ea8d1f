//! Creating, reading, replacing, patching.

use axum::body::Body;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn an_object_is_created_with_its_system_metadata() {
    let server = Server::start().await;
    let created = server.config_map("a", &json!({})).await;
    let metadata = &created["metadata"];
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert_eq!(metadata["namespace"], "default");
    assert!(
        metadata["creationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    let read = server.get(&format!("{CONFIG_MAPS}/a")).await.ok();
    assert_eq!(read, created);
    let message = server
        .post(CONFIG_MAPS, &config_map("a", &json!({})))
        .await
        .fails(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"a\" already exists");
    let message = server
        .get(&format!("{CONFIG_MAPS}/b"))
        .await
        .fails(404, "NotFound");
    assert_eq!(message, "configmaps \"b\" not found");
}

#[tokio::test]
async fn names_are_generated() {
    let server = Server::start().await;
    let body = json!({"metadata": {"generateName": "web-"}});
    let first = server.post(CONFIG_MAPS, &body).await.ok();
    let second = server.post(CONFIG_MAPS, &body).await.ok();
    assert!(
        first["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("web-")
    );
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
}

#[tokio::test]
async fn yaml_is_read_too() {
    let server = Server::start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: from-yaml\ndata:\n  a: \"1\"\n";
    let headers = [("content-type", "application/yaml")];
    let created = server
        .send("POST", CONFIG_MAPS, &headers, Body::from(yaml))
        .await
        .ok();
    assert_eq!(created["data"], json!({"a": "1"}));
    let answer = server
        .send("POST", CONFIG_MAPS, &headers, Body::from("a: ["))
        .await;
    answer.fails(400, "BadRequest");
}

#[tokio::test]
async fn an_update_of_an_old_version_conflicts() {
    let server = Server::start().await;
    let mut first = server.config_map("a", &json!({})).await;
    let path = format!("{CONFIG_MAPS}/a");
    first["data"]["key"] = "second".into();
    let second = server.put(&path, &first).await.ok();
    assert_ne!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    first["data"]["key"] = "third".into();
    let message = server.put(&path, &first).await.fails(409, "Conflict");
    assert!(
        message.contains("the object has been modified"),
        "{message}"
    );
    // Without a version it is unconditional; a wrong uid is never right.
    first["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    server.put(&path, &first).await.ok();
    first["metadata"]["uid"] = "other".into();
    server.put(&path, &first).await.fails(409, "Conflict");
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing() {
    let server = Server::start().await;
    let created = server.config_map("a", &json!({})).await;
    let before = server.server.core().store.current_revision();
    let again = server.put(&format!("{CONFIG_MAPS}/a"), &created).await.ok();
    assert_eq!(again, created);
    assert_eq!(server.server.core().store.current_revision(), before);
}

#[tokio::test]
async fn the_three_patches() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web");
    let merged = server
        .patch("merge", &path, &json!({"spec": {"replicas": 2}}))
        .await
        .ok();
    assert_eq!(merged["spec"]["replicas"], 2);
    assert_eq!(merged["metadata"]["generation"], 2);
    let ops = json!([{"op": "test", "path": "/spec/replicas", "value": 2}, {"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(
        server.patch("json", &path, &ops).await.ok()["spec"]["replicas"],
        3
    );
    server
        .patch("json", &path, &ops)
        .await
        .fails(422, "Invalid");
    let sidecar =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "other"}]}}}});
    let strategic = server.patch("strategic-merge", &path, &sidecar).await.ok();
    assert_eq!(
        strategic["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 9}});
    server
        .patch("merge", &path, &stale)
        .await
        .fails(409, "Conflict");
    let answer = server
        .with_body("PATCH", &path, "application/apply-patch+yaml", &json!({}))
        .await;
    let message = answer.fails(415, "UnsupportedMediaType");
    assert!(
        message.contains("accepted media types include: application/json-patch+json"),
        "{message}"
    );
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let server = Server::start().await;
    server.config_map("a", &json!({})).await;
    let path = format!("{CONFIG_MAPS}/a");
    let writers = (0..10).map(|n| {
        let (server, path) = (&server, &path);
        async move {
            server
                .patch("merge", path, &json!({"data": {format!("k{n}"): "v"}}))
                .await
                .ok()
        }
    });
    futures::future::join_all(writers).await;
    let read = server.get(&path).await.ok();
    assert_eq!(read["data"].as_object().unwrap().len(), 11);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let server = Server::start().await;
    server.pod("p").await;
    let path = format!("{PODS}/p");
    let status =
        json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}, "spec": {"nodeName": "n"}});
    let patched = server
        .patch("merge", &format!("{path}/status"), &status)
        .await
        .ok();
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched["spec"]["nodeName"], Value::Null);
    let spec = json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"a": "b"}}});
    let patched = server.patch("merge", &path, &spec).await.ok();
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched["metadata"]["labels"]["a"], "b");
    assert_eq!(
        server.get(&format!("{path}/status")).await.ok()["status"]["phase"],
        "Running"
    );
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let server = Server::start().await;
    server
        .post(
            &format!("{CONFIG_MAPS}?dryRun=All"),
            &config_map("a", &json!({})),
        )
        .await
        .ok();
    server
        .get(&format!("{CONFIG_MAPS}/a"))
        .await
        .fails(404, "NotFound");
    server.config_map("a", &json!({})).await;
    let path = format!("{CONFIG_MAPS}/a?dryRun=All");
    let patched = server
        .patch("merge", &path, &json!({"data": {"x": "y"}}))
        .await
        .ok();
    assert_eq!(patched["data"]["x"], "y");
    server.delete(&path).await.ok();
    assert_eq!(
        server.get(&format!("{CONFIG_MAPS}/a")).await.ok()["data"]["x"],
        Value::Null
    );
    let answer = server
        .post(
            &format!("{CONFIG_MAPS}?dryRun=All"),
            &config_map("a", &json!({})),
        )
        .await;
    answer.fails(409, "AlreadyExists");
}

#[tokio::test]
async fn scale_changes_replicas_only() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = server.get(&path).await.ok();
    assert_eq!(
        (&scale["kind"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!("app=web"))
    );
    scale["spec"]["replicas"] = 5.into();
    assert_eq!(server.put(&path, &scale).await.ok()["spec"]["replicas"], 5);
    server.put(&path, &scale).await.fails(409, "Conflict");
    let patched = server
        .patch("merge", &path, &json!({"spec": {"replicas": 4}}))
        .await
        .ok();
    assert_eq!(patched["spec"]["replicas"], 4);
    assert_eq!(
        server.get(&format!("{DEPLOYMENTS}/web")).await.ok()["spec"]["replicas"],
        4
    );
    server
        .patch("merge", &path, &json!({"spec": {"replicas": -1}}))
        .await
        .fails(422, "Invalid");
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let server = Server::start().await;
    server.pod("p").await;
    let path = format!("{PODS}/p/binding");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(server.post(&path, &binding).await.ok()["status"], "Success");
    let pod = server.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    let message = server.post(&path, &binding).await.fails(409, "Conflict");
    assert!(
        message.contains("already assigned to node \"n1\""),
        "{message}"
    );
}

#[tokio::test]
async fn both_versions_of_event_are_one() {
    let server = Server::start().await;
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "hello", "type": "Normal",
    });
    server
        .post("/api/v1/namespaces/default/events", &event)
        .await
        .ok();
    let newer = server
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .ok();
    assert_eq!(
        (&newer["note"], &newer["regarding"]["name"]),
        (&json!("hello"), &json!("p"))
    );
    let list = server
        .get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp")
        .await
        .ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let list = server
        .get("/api/v1/events?fieldSelector=involvedObject.name%3Dother")
        .await
        .ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn events_expire() {
    let server = Server::start().await;
    for (name, seen) in [
        ("old", "2999-01-01T00:00:00Z"),
        ("new", "2999-01-01T01:30:00Z"),
    ] {
        let event = json!({
            "metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
            "reason": "Started", "type": "Normal", "lastTimestamp": seen,
        });
        server
            .post("/api/v1/namespaces/default/events", &event)
            .await
            .ok();
    }
    server.get("/api/v1/events").await.ok();
    let now = "2999-01-01T02:00:00Z".parse().unwrap();
    crate::maintenance::expire_events(server.server.core(), now)
        .await
        .unwrap();
    let left = server.get("/api/v1/events").await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "new");
}
