//! Tests of the server as its clients see it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skiff_storage::memory::MemoryStore;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use crate::{ApiServer, ApiServerError, ApiServerOptions, UserInfo};

mod admission;
mod bad_input;
mod connect;
mod crud;
mod delete;
mod https;
mod read;
mod reviews;
mod watch;

/// A running server on a memory store.
struct Server {
    server: ApiServer,
    router: Router,
    _run: JoinHandle<Result<(), ApiServerError>>,
    _stop: DropGuard,
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    fn ok(self) -> Value {
        assert!(self.code < 300, "{} {}", self.code, self.body);
        self.body
    }

    /// The message of a failure.
    #[track_caller]
    fn fails(self, code: u16, reason: &str) -> String {
        assert_eq!(
            (self.code, self.body["reason"].as_str()),
            (code, Some(reason)),
            "{}",
            self.body
        );
        assert_eq!(self.body["kind"], "Status");
        self.body["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Server {
    async fn start() -> Self {
        Self::with(ApiServerOptions::default()).await
    }

    async fn with(options: ApiServerOptions) -> Self {
        let server = ApiServer::new(Arc::new(MemoryStore::new()), options);
        let token = CancellationToken::new();
        let run = tokio::spawn({
            let (server, token) = (server.clone(), token.clone());
            async move { server.run(token).await }
        });
        while !server.is_ready() {
            assert!(!run.is_finished(), "{:?}", run.await);
            tokio::task::yield_now().await;
        }
        Self {
            router: server.router(),
            server,
            _run: run,
            _stop: token.drop_guard(),
        }
    }

    /// Sends a request as an administrator and returns the response unread.
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body).unwrap();
        request
            .extensions_mut()
            .insert(UserInfo::component("system:test"));
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
        let (parts, body) = self.raw(method, path, headers, body).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Body::empty()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], Body::empty()).await
    }

    async fn post(&self, path: &str, value: &Value) -> Answer {
        self.with_body("POST", path, "application/json", value)
            .await
    }

    async fn put(&self, path: &str, value: &Value) -> Answer {
        self.with_body("PUT", path, "application/json", value).await
    }

    async fn patch(&self, kind: &str, path: &str, value: &Value) -> Answer {
        self.with_body(
            "PATCH",
            path,
            &format!("application/{kind}-patch+json"),
            value,
        )
        .await
    }

    async fn with_body(&self, method: &str, path: &str, media_type: &str, value: &Value) -> Answer {
        let headers = [(header::CONTENT_TYPE.as_str(), media_type)];
        self.send(method, path, &headers, Body::from(value.to_string()))
            .await
    }

    async fn config_map(&self, name: &str, labels: &Value) -> Value {
        self.post(CONFIG_MAPS, &config_map(name, labels)).await.ok()
    }

    async fn pod(&self, name: &str) -> Value {
        self.post(PODS, &pod(name)).await.ok()
    }
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const NAMESPACES: &str = "/api/v1/namespaces";

fn config_map(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels}, "data": {"key": "value"},
    })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    })
}

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "busybox"}]},
            },
        },
    })
}
