//! An API server in a map: get, list, watch, create, merge-patch, delete. Selectors: only `metadata.name`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures::StreamExt;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::wrappers::BroadcastStream;
use tower::ServiceExt;

#[derive(Clone)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Told after every write.
    version: watch::Sender<u64>,
    events: tokio::sync::broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    requests: Vec<String>,
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            version: watch::channel(1).0,
            events: tokio::sync::broadcast::channel(1024).0,
        }
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let router = Router::new().fallback(move |request: Request| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        let service =
            router.map_request(|request: http::Request<kube::client::Body>| request.map(Body::new));
        Client::new(service, "default")
    }

    /// The object at that path, such as `/api/v1/namespaces/default/pods/web`.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.write(path, Some(object));
    }

    pub(crate) fn remove(&self, path: &str) {
        self.write(path, None);
    }

    /// Reasons and messages of all events about pods, in the order of arrival.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let state = self.state.lock();
        let mut events: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(path, _)| path.contains("/events/"))
            .map(|(_, o)| o)
            .collect();
        events.sort_by_key(|event| {
            event["metadata"]["resourceVersion"]
                .as_str()
                .and_then(|v| v.parse::<u64>().ok())
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events
            .into_iter()
            .map(|event| (text(&event["reason"]), text(&event["message"])))
            .collect()
    }

    /// Method and path of every request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    /// Waits until `condition` holds of the API; panics with what there is after a (virtual) time.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let mut version = self.version.subscribe();
        let wait = async {
            while !condition(self) {
                version.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(3600), wait).await;
        assert!(
            waited.is_ok(),
            "waiting for {what}: {:#?}",
            self.state.lock().objects
        );
    }

    fn write(&self, path: &str, object: Option<Value>) -> Value {
        let mut state = self.state.lock();
        let version = *self.version.borrow() + 1;
        let (kind, mut object) = match object {
            Some(object) if state.objects.contains_key(path) => ("MODIFIED", object),
            Some(object) => ("ADDED", object),
            None => match state.objects.remove(path) {
                Some(object) => ("DELETED", object),
                None => return Value::Null,
            },
        };
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if kind != "DELETED" {
            state.objects.insert(path.to_owned(), object.clone());
        }
        let event = json!({ "type": kind, "object": object });
        drop(self.events.send((path.to_owned(), event)));
        drop(state);
        self.version.send_replace(version);
        object
    }

    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        self.state
            .lock()
            .requests
            .push(format!("{} {path}", parts.method));
        let object_path = path.strip_suffix("/status").unwrap_or(&path).to_owned();
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, &query),
            Method::GET => match self.get(&path) {
                Some(object) => Json(object).into_response(),
                None if is_collection(&path) => Json(self.list(&path, &query)).into_response(),
                None => not_found(&path),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().map_or_else(
                    || format!("generated-{}", self.state.lock().requests.len()),
                    str::to_owned,
                );
                (
                    StatusCode::CREATED,
                    Json(self.write(&format!("{path}/{name}"), Some(body))),
                )
                    .into_response()
            }
            Method::PATCH => match self.get(&object_path) {
                Some(mut object) => {
                    merge(&mut object, &body);
                    Json(self.write(&object_path, Some(object))).into_response()
                }
                None => not_found(&path),
            },
            Method::DELETE => match self.write(&path, None) {
                Value::Null => not_found(&path),
                object => Json(object).into_response(),
            },
            _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        }
    }

    fn list(&self, path: &str, query: &str) -> Value {
        let state = self.state.lock();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(object_path, _)| is_in(object_path, path, query))
            .map(|(_, object)| object)
            .collect();
        let version = self.version.borrow().to_string();
        json!({ "metadata": { "resourceVersion": version }, "items": items })
    }

    fn watch(&self, path: &str, query: &str) -> Response {
        let (path, query) = (path.to_owned(), query.to_owned());
        let from: u64 = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        // Nothing is replayed: what changed between list and watch is sent as it is now.
        let receiver = self.events.subscribe();
        let missed: Vec<Value> = {
            let state = self.state.lock();
            let newer = state.objects.iter().filter(|(object_path, object)| {
                let version = object["metadata"]["resourceVersion"].as_str();
                is_in(object_path, &path, &query)
                    && version
                        .and_then(|v| v.parse::<u64>().ok())
                        .is_some_and(|v| v > from)
            });
            newer
                .map(|(_, object)| json!({ "type": "ADDED", "object": object }))
                .collect()
        };
        let live = BroadcastStream::new(receiver).filter_map(move |event| {
            let (object_path, event) = event.unwrap();
            let wanted = is_in(&object_path, &path, &query);
            futures::future::ready(wanted.then_some(event))
        });
        let lines = futures::stream::iter(missed).chain(live);
        let lines = lines.map(|event| Ok::<_, Infallible>(format!("{event}\n")));
        Body::from_stream(lines).into_response()
    }
}

fn is_collection(path: &str) -> bool {
    // /api/v1/pods, /api/v1/namespaces/ns/pods, /apis/g/v/leases...
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let rest = if parts.first() == Some(&"api") {
        &parts[2..]
    } else {
        &parts[3..]
    };
    matches!(rest, [_] | ["namespaces", _, _])
}

fn is_in(object: &str, collection: &str, query: &str) -> bool {
    let Some((parent, name)) = object.rsplit_once('/') else {
        return false;
    };
    let plural = collection.rsplit('/').next().unwrap_or_default();
    let all = !collection.contains("/namespaces/");
    let named = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("fieldSelector=metadata.name%3D"))
        .is_none_or(|wanted| wanted == name);
    named && (parent == collection || (all && parent.ends_with(&format!("/{plural}"))))
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}

fn not_found(path: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": "NotFound", "message": format!("{path} not found"), "code": 404,
    });
    (StatusCode::NOT_FOUND, Json(status)).into_response()
}
