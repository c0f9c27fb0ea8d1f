//! Watches: from a revision, with initial state, bookmarks, transitions; none missed, none twice.

use std::collections::BTreeMap;

use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use serde_json::{Value, json};

use super::*;

/// A watch being read.
struct Events {
    stream: BodyDataStream,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.buffer
                .extend_from_slice(&self.stream.next().await?.unwrap());
        }
    }

    /// The next event as `TYPE name`.
    async fn short(&mut self) -> String {
        let event = self.next().await.unwrap();
        let name = event["object"]["metadata"]["name"]
            .as_str()
            .unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

impl Server {
    async fn watch(&self, path: &str) -> Events {
        self.watch_as("application/json", path).await
    }

    async fn watch_as(&self, accept: &str, path: &str) -> Events {
        let response = self
            .raw("GET", path, &[("accept", accept)], Body::empty())
            .await;
        assert_eq!(response.status(), 200);
        Events {
            stream: response.into_body().into_data_stream(),
            buffer: Vec::new(),
        }
    }
}

/// Longer than any event takes on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_watch_tells_the_state_and_then_the_changes() {
    let server = Server::start().await;
    server.config_map("a", &json!({})).await;
    let mut events = server.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    assert_eq!(events.short().await, "ADDED a");
    let b = server.config_map("b", &json!({})).await;
    assert_eq!(
        events.next().await.unwrap(),
        json!({"type": "ADDED", "object": b})
    );
    server
        .patch(
            "merge",
            &format!("{CONFIG_MAPS}/a"),
            &json!({"data": {"x": "y"}}),
        )
        .await
        .ok();
    assert_eq!(events.short().await, "MODIFIED a");
    server.delete(&format!("{CONFIG_MAPS}/b")).await.ok();
    let gone = events.next().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["data"]),
        (&json!("DELETED"), &b["data"])
    );
    assert!(version(&gone["object"]) > version(&b));
}

#[tokio::test]
async fn a_watch_from_a_version_tells_what_came_later() {
    let server = Server::start().await;
    let a = server.config_map("a", &json!({})).await;
    server.config_map("b", &json!({})).await;
    server.delete(&format!("{CONFIG_MAPS}/a")).await.ok();
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version(&a));
    let mut events = server.watch(&path).await;
    assert_eq!(events.short().await, "ADDED b");
    assert_eq!(events.short().await, "DELETED a");
    // Right after one's own write nothing is repeated.
    let c = server.config_map("c", &json!({})).await;
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version(&c));
    let mut events = server.watch(&path).await;
    server.config_map("d", &json!({})).await;
    assert_eq!(events.short().await, "ADDED d");
}

#[tokio::test]
async fn forgotten_history_is_gone() {
    let server = Server::start().await;
    let a = server.config_map("a", &json!({})).await;
    server.config_map("b", &json!({})).await;
    server.get(CONFIG_MAPS).await.ok();
    server
        .server
        .core()
        .cache
        .trim(server.server.core().store.current_revision());
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version(&a));
    let mut events = server.watch(&path).await;
    let event = events.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    server.config_map("a", &json!({})).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let mut events = server.watch(&path).await;
    assert_eq!(events.short().await, "ADDED a");
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        version(&bookmark["object"]),
        server.server.cached_revision().0
    );
    server.config_map("b", &json!({})).await;
    assert_eq!(events.short().await, "ADDED b");
    for bad in [
        "sendInitialEvents=true",
        "resourceVersionMatch=NotOlderThan",
    ] {
        server
            .get(&format!("{CONFIG_MAPS}?watch=true&{bad}"))
            .await
            .fails(422, "Invalid");
    }
}

#[tokio::test]
async fn a_bookmark_comes_before_the_end() {
    let server = Server::start().await;
    let path = format!(
        "{CONFIG_MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=1&resourceVersion={}",
        server.server.cached_revision()
    );
    let mut events = server.watch(&path).await;
    // A change elsewhere moves the revision without an event here.
    server.pod("p").await;
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        version(&bookmark["object"]),
        server.server.cached_revision().0
    );
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn beginning_and_ceasing_to_match_is_coming_and_going() {
    let server = Server::start().await;
    let path = format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dweb");
    let mut events = server.watch(&path).await;
    let object = format!("{CONFIG_MAPS}/a");
    server.config_map("a", &json!({"app": "db"})).await;
    let label = |app: &str| json!({"metadata": {"labels": {"app": app}}});
    server.patch("merge", &object, &label("web")).await.ok();
    assert_eq!(events.short().await, "ADDED a");
    server
        .patch("merge", &object, &json!({"data": {"x": "y"}}))
        .await
        .ok();
    assert_eq!(events.short().await, "MODIFIED a");
    let moved = server.patch("merge", &object, &label("db")).await.ok();
    let gone = events.next().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["metadata"]["labels"]["app"], "web");
    assert_eq!(version(&gone["object"]), version(&moved));
    server.delete(&object).await.ok();
    server.config_map("b", &json!({"app": "web"})).await;
    assert_eq!(events.short().await, "ADDED b");
}

#[tokio::test]
async fn a_pod_appears_to_its_node_when_it_is_bound() {
    let server = Server::start().await;
    let mut events = server
        .watch("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dn1")
        .await;
    server.pod("p").await;
    server
        .post(
            &format!("{PODS}/p/binding"),
            &json!({"target": {"name": "n1"}}),
        )
        .await
        .ok();
    assert_eq!(events.short().await, "ADDED p");
}

#[tokio::test]
async fn a_table_is_watched_with_columns_once() {
    let server = Server::start().await;
    server.pod("p").await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut events = server.watch_as(accept, &format!("{PODS}?watch=true")).await;
    let first = events.next().await.unwrap();
    assert_eq!(
        (&first["type"], &first["object"]["rows"][0]["cells"][0]),
        (&json!("ADDED"), &json!("p"))
    );
    assert!(
        !first["object"]["columnDefinitions"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    server.delete(&format!("{PODS}/p")).await.ok();
    let second = events.next().await.unwrap();
    assert_eq!(second["type"], "DELETED");
    assert!(
        second["object"]["columnDefinitions"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
}

/// A replica follows from a list and any number of watches, while writers change, add and remove.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_and_nothing_is_told_twice() {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 40;
    let server = Arc::new(Server::start().await);
    let mut followers = Vec::new();
    for cut in [3, 7, 1000] {
        // Listed before anything is written: a list that shows `end` already would wait for it in vain.
        let list = server.get(CONFIG_MAPS).await.ok();
        let server = Arc::clone(&server);
        followers.push(tokio::spawn(
            async move { follow(&server, &list, cut).await },
        ));
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let name = format!("w{writer}-{}", round % 5);
                    let path = format!("{CONFIG_MAPS}/{name}");
                    match round % 3 {
                        0 => drop(
                            server
                                .post(CONFIG_MAPS, &config_map(&name, &json!({})))
                                .await,
                        ),
                        1 => drop(
                            server
                                .patch("merge", &path, &json!({"data": {"r": round.to_string()}}))
                                .await,
                        ),
                        _ => drop(server.delete(&path).await),
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    server.config_map("end", &json!({})).await;
    let list = server.get(CONFIG_MAPS).await.ok();
    let expected: BTreeMap<String, Value> = by_name(&list);
    for follower in followers {
        assert_eq!(follower.await.unwrap(), expected);
    }
}

fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|o| {
            (
                o["metadata"]["name"].as_str().unwrap().to_owned(),
                o.clone(),
            )
        })
        .collect()
}

/// Follows until `end` shows up, beginning a new watch after every `cut` events.
async fn follow(server: &Server, list: &Value, cut: usize) -> BTreeMap<String, Value> {
    let mut replica = by_name(list);
    let mut last = version(list);
    loop {
        let mut events = server
            .watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={last}"))
            .await;
        for _ in 0..cut {
            let told = tokio::time::timeout(PATIENCE, events.next()).await;
            let Ok(Some(mut event)) = told else {
                panic!(
                    "nothing after {last}, cache at {}",
                    server.server.cached_revision()
                )
            };
            let object = event["object"].take();
            assert!(
                version(&object) > last,
                "{} is told again after {last}",
                version(&object)
            );
            last = version(&object);
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let before = match event["type"].as_str().unwrap() {
                "DELETED" => replica.remove(&name).is_some(),
                "ADDED" => replica.insert(name.clone(), object).is_none(),
                _ => replica.insert(name.clone(), object).is_some(),
            };
            assert!(
                before,
                "{} of {name} does not follow from what was told before",
                event["type"]
            );
            if name == "end" {
                return replica;
            }
        }
    }
}

#[tokio::test]
async fn watches_end_with_the_server() {
    let server = Server::start().await;
    let mut events = server.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    drop(server);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_kube_client_lists_and_watches() {
    use kube::runtime::watcher::{self, Event};
    use skiff_api::k8s_openapi::api::core::v1::ConfigMap;
    let server = Server::start().await;
    let service = server
        .router
        .clone()
        .map_request(|request: Request<kube::client::Body>| {
            let mut request = request.map(Body::new);
            request
                .extensions_mut()
                .insert(UserInfo::component("system:test"));
            request
        });
    let client = kube::Client::new(service, "default");
    let api: kube::Api<ConfigMap> = kube::Api::default_namespaced(client);
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let name = format!("m-{}", server.server.cached_revision());
        api.create(
            &Default::default(),
            &ConfigMap {
                metadata: kube::core::ObjectMeta {
                    name: Some(name.clone()),
                    ..Default::default()
                },
                ..Default::default()
            },
        )
        .await
        .unwrap();
        let stream = watcher::watcher(api.clone(), config);
        futures::pin_mut!(stream);
        let mut seen = false;
        loop {
            match stream.next().await.unwrap().unwrap() {
                Event::InitApply(object) => seen |= object.metadata.name.as_deref() == Some(&*name),
                Event::InitDone => break,
                _ => {}
            }
        }
        assert!(seen);
        api.delete(&name, &Default::default()).await.unwrap();
        assert!(matches!(
            stream.next().await.unwrap().unwrap(),
            Event::Delete(_)
        ));
    }
    let error = api.get("none").await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 404));
}
