//! Lists, pages, tables, discovery, health.

use axum::body::Body;
use serde_json::{Value, json};

use super::*;

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn selectors_narrow_a_list() {
    let server = Server::start().await;
    server
        .config_map("a", &json!({"app": "web", "tier": "front"}))
        .await;
    server.config_map("b", &json!({"app": "web"})).await;
    server.config_map("c", &json!({"app": "db"})).await;
    for (query, expected) in [
        ("", vec!["a", "b", "c"]),
        ("labelSelector=app%3Dweb", vec!["a", "b"]),
        ("labelSelector=app%3Dweb,tier%21%3Dfront", vec!["b"]),
        ("labelSelector=app+in+(web,db),%21tier", vec!["b", "c"]),
        ("fieldSelector=metadata.name%3Dc", vec!["c"]),
        (
            "fieldSelector=metadata.name%21%3Dc&labelSelector=app%3Dweb",
            vec!["a", "b"],
        ),
    ] {
        let list = server.get(&format!("{CONFIG_MAPS}?{query}")).await.ok();
        assert_eq!(names(&list), expected, "{query}");
        assert_eq!(list["kind"], "ConfigMapList");
    }
    for path in [
        format!("{CONFIG_MAPS}?labelSelector=a%3D%3D%3Db"),
        format!("{CONFIG_MAPS}?fieldSelector=spec.x%3Dy"),
    ] {
        server.get(&path).await.fails(400, "BadRequest");
    }
}

#[tokio::test]
async fn pods_are_selected_by_node() {
    let server = Server::start().await;
    for name in ["a", "b"] {
        server.pod(name).await;
    }
    let binding = json!({"target": {"name": "n1"}});
    server
        .post(&format!("{PODS}/a/binding"), &binding)
        .await
        .ok();
    let on = |node: &str| format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    assert_eq!(names(&server.get(&on("n1")).await.ok()), ["a"]);
    assert_eq!(names(&server.get(&on("")).await.ok()), ["b"]);
}

#[tokio::test]
async fn pages_show_one_state() {
    let server = Server::start().await;
    for n in 0..5 {
        server.config_map(&format!("m{n}"), &json!({})).await;
    }
    let first = server.get(&format!("{CONFIG_MAPS}?limit=2")).await.ok();
    assert_eq!(names(&first), ["m0", "m1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();
    // What changes meanwhile does not show.
    server.delete(&format!("{CONFIG_MAPS}/m2")).await.ok();
    server.config_map("m21", &json!({})).await;
    let second = server
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    assert_eq!(names(&second), ["m2", "m3"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = server
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    assert_eq!(names(&third), ["m4"]);
    assert_eq!(third["metadata"]["continue"], Value::Null);
    server
        .get(&format!("{CONFIG_MAPS}?continue=nonsense"))
        .await
        .fails(400, "BadRequest");
}

#[tokio::test]
async fn a_page_of_forgotten_history_has_expired() {
    let server = Server::start().await;
    for n in 0..3 {
        server.config_map(&format!("m{n}"), &json!({})).await;
    }
    let first = server.get(&format!("{CONFIG_MAPS}?limit=1")).await.ok();
    server.config_map("later", &json!({})).await;
    server.get(CONFIG_MAPS).await.ok();
    let core = server.server.core();
    core.cache.trim(core.store.current_revision());
    let token = first["metadata"]["continue"].as_str().unwrap();
    server
        .get(&format!("{CONFIG_MAPS}?limit=1&continue={token}"))
        .await
        .fails(410, "Expired");
}

#[tokio::test]
async fn an_exact_version_is_served() {
    let server = Server::start().await;
    let a = server.config_map("a", &json!({})).await;
    let version = a["metadata"]["resourceVersion"].as_str().unwrap();
    server.config_map("b", &json!({})).await;
    server.delete(&format!("{CONFIG_MAPS}/a")).await.ok();
    let path = format!("{CONFIG_MAPS}?resourceVersionMatch=Exact&resourceVersion={version}");
    assert_eq!(names(&server.get(&path).await.ok()), ["a"]);
    let path = format!("{CONFIG_MAPS}?resourceVersionMatch=NotOlderThan&resourceVersion={version}");
    assert_eq!(names(&server.get(&path).await.ok()), ["b"]);
    for bad in [
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Exact&resourceVersion=0",
        "resourceVersionMatch=Some&resourceVersion=1",
    ] {
        server
            .get(&format!("{CONFIG_MAPS}?{bad}"))
            .await
            .fails(422, "Invalid");
    }
}

#[tokio::test]
async fn a_version_that_does_not_exist_yet_times_out() {
    let server = Server::start().await;
    let message = server
        .get(&format!("{CONFIG_MAPS}?resourceVersion=1000000"))
        .await
        .fails(504, "Timeout");
    assert!(
        message.contains("Too large resource version: 1000000"),
        "{message}"
    );
}

#[tokio::test]
async fn tables_and_partial_metadata() {
    let server = Server::start().await;
    server.pod("p").await;
    let accept = [(
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )];
    for path in [PODS.to_owned(), format!("{PODS}/p")] {
        let table = server.send("GET", &path, &accept, Body::empty()).await.ok();
        assert_eq!(table["kind"], "Table", "{path}");
        assert_eq!(table["columnDefinitions"][0]["name"], "Name");
        assert_eq!(table["rows"][0]["cells"][0], "p");
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
    let path = format!("{PODS}?includeObject=Object");
    let table = server.send("GET", &path, &accept, Body::empty()).await.ok();
    assert_eq!(table["rows"][0]["object"]["kind"], "Pod");
    let accept = [(
        "accept",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    )];
    let list = server.send("GET", PODS, &accept, Body::empty()).await.ok();
    assert_eq!(
        (&list["kind"], &list["items"][0]["spec"]),
        (&json!("PartialObjectMetadataList"), &Value::Null)
    );
    let accept = [("accept", "application/vnd.kubernetes.protobuf")];
    server
        .send("GET", PODS, &accept, Body::empty())
        .await
        .fails(406, "NotAcceptable");
}

#[tokio::test]
async fn discovery_says_what_is_served() {
    let server = Server::start().await;
    assert_eq!(server.get("/api").await.ok()["versions"], json!(["v1"]));
    let groups = server.get("/apis").await.ok();
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|g| g["name"] == "apps")
    );
    let apps = server.get("/apis/apps/v1").await.ok();
    let listed: Vec<_> = apps["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert!(
        listed.contains(&"deployments") && listed.contains(&"deployments/scale"),
        "{listed:?}"
    );
    assert_eq!(
        server.get("/apis/apps").await.ok()["preferredVersion"]["version"],
        "v1"
    );
    let accept = [(
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    )];
    let answer = server.send("GET", "/api", &accept, Body::empty()).await;
    assert!(
        answer.headers["content-type"]
            .to_str()
            .unwrap()
            .contains("as=APIGroupDiscoveryList")
    );
    let list = answer.ok();
    let pods = list["items"][0]["versions"][0]["resources"]
        .as_array()
        .unwrap();
    let pods = pods.iter().find(|r| r["resource"] == "pods").unwrap();
    assert_eq!(pods["responseKind"]["kind"], "Pod");
    assert!(
        pods["subresources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["subresource"] == "exec")
    );
    server
        .get("/apis/nope.example.com/v1")
        .await
        .fails(404, "NotFound");
}

#[tokio::test]
async fn every_listed_resource_can_be_listed() {
    let server = Server::start().await;
    for resource in skiff_api::resource::Registry::iter() {
        let root = if resource.group.is_empty() {
            "/api".to_owned()
        } else {
            format!("/apis/{}", resource.group)
        };
        let list = server
            .get(&format!("{root}/{}/{}", resource.version, resource.plural))
            .await
            .ok();
        assert_eq!(list["kind"], resource.list_kind);
    }
}

#[tokio::test]
async fn health_version_and_metrics() {
    let server = Server::start().await;
    assert_eq!(server.get("/readyz").await.ok(), "ok");
    let verbose = server.get("/readyz?verbose").await.ok();
    assert!(
        verbose.as_str().unwrap().ends_with("readyz check passed\n"),
        "{verbose}"
    );
    assert_eq!(server.get("/livez/ping").await.ok(), "ok");
    assert!(
        server.get("/version").await.ok()["gitVersion"]
            .as_str()
            .unwrap()
            .starts_with("v1.36.")
    );
    let metrics = server.get("/metrics").await.ok();
    let metrics = metrics.as_str().unwrap();
    assert!(
        metrics.contains("apiserver_request_total{verb=\"GET\",resource=\"\",code=\"200\"}"),
        "{metrics}"
    );
    assert!(
        metrics.contains("apiserver_resource_objects{group=\"\",resource=\"namespaces\"} 4"),
        "{metrics}"
    );
}

#[tokio::test]
async fn before_the_cache_is_filled_it_is_not_ready() {
    let server = ApiServer::new(Arc::new(MemoryStore::new()), ApiServerOptions::default());
    let request = Request::builder()
        .uri("/readyz")
        .body(Body::empty())
        .unwrap();
    let response = server.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 500);
}
