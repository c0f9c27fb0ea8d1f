//! As much of an API server as the proxy uses: list (by pages) and watch of what it watches, and Events, in memory.
#![expect(clippy::unwrap_used, reason = "a fake for tests")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    ops::Bound,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt as _, channel::mpsc, stream};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, server::conn::http1};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Where Services are.
pub const SERVICES: &str = "/api/v1/services";
/// Where Nodes are.
pub const NODES: &str = "/api/v1/nodes";
/// Where EndpointSlices are.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Where Events about what is in no namespace, or in that of [`service`], are written.
const EVENTS: &str = "/events";

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

/// The objects, and who watches them.
#[derive(Clone, Debug, Default)]
pub struct FakeApi {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// Everything that happened, by revision: a watch begins where its list ended.
    log: Vec<(u64, &'static str, Bytes)>,
    watchers: Vec<(&'static str, mpsc::UnboundedSender<Bytes>)>,
    events: Vec<Value>,
}

impl FakeApi {
    /// A client in this process.
    #[must_use]
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Stores an object and tells all who watch.
    pub fn put(&self, kind: &'static str, mut object: Value) {
        let mut inner = self.inner.lock().unwrap();
        inner.revision += 1;
        object["metadata"]["resourceVersion"] = json!(inner.revision.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let before = inner
            .objects
            .entry(kind)
            .or_default()
            .insert(name, object.clone());
        inner.tell(
            kind,
            if before.is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            },
            &object,
        );
    }

    /// Removes an object and tells all who watch.
    pub fn delete(&self, kind: &'static str, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.revision += 1;
        let object = inner.objects.entry(kind).or_default().remove(name).unwrap();
        inner.tell(kind, "DELETED", &object);
    }

    /// Answers on a port of loopback, for clients in other processes.
    ///
    /// # Errors
    /// If there is none to be had.
    pub async fn listen(&self) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let api = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = api.clone();
                let service = hyper::service::service_fn(move |request| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.answer(request).await) }
                });
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        Ok(addr)
    }

    /// The Events that were written: each of what, why and with which words.
    #[must_use]
    pub fn events(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let inner = self.inner.lock().unwrap();
        let events = inner.events.iter().map(|event| {
            let about = &event["involvedObject"];
            let about = format!("{}/{}", text(&about["kind"]), text(&about["name"]));
            (about, text(&event["reason"]), text(&event["message"]))
        });
        events.collect()
    }

    async fn answer<B>(&self, request: Request<B>) -> Response<AnyBody>
    where
        B: hyper::body::Body<Error: std::fmt::Debug>,
    {
        if request.uri().path().contains(EVENTS) {
            let is_new = request.method() == Method::POST;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            // Else one that is counted up.
            if is_new {
                let event = serde_json::from_slice(&body).unwrap();
                self.inner.lock().unwrap().events.push(event);
            }
            return json_response(Full::new(body).boxed_unsync());
        }
        let mut inner = self.inner.lock().unwrap();
        let path = request.uri().path();
        let kind = [SERVICES, NODES, SLICES]
            .into_iter()
            .find(|kind| *kind == path)
            .unwrap();
        let query: BTreeMap<&str, &str> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let body = if query.contains_key("watch") {
            inner.watch(kind, query["resourceVersion"].parse().unwrap())
        } else {
            let limit = query.get("limit").map(|limit| limit.parse().unwrap());
            inner.list(kind, query.get("continue").copied(), limit)
        };
        json_response(body)
    }
}

fn json_response(body: AnyBody) -> Response<AnyBody> {
    Response::builder()
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

impl Inner {
    fn watch(&mut self, kind: &'static str, from: u64) -> AnyBody {
        let (sender, receiver) = mpsc::unbounded();
        let begin = self.log.partition_point(|(at, _, _)| *at <= from);
        let missed = self.log[begin..].iter().filter(|(_, of, _)| *of == kind);
        for (_, _, line) in missed {
            sender.unbounded_send(line.clone()).unwrap();
        }
        self.watchers.push((kind, sender));
        let open = receiver.chain(stream::pending());
        StreamBody::new(open.map(|line| Ok::<_, Infallible>(Frame::data(line)))).boxed_unsync()
    }

    fn list(&mut self, kind: &'static str, after: Option<&str>, limit: Option<usize>) -> AnyBody {
        let objects = self.objects.entry(kind).or_default();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = objects.range::<str, _>((start, Bound::Unbounded));
        let page: Vec<_> = rest.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
        let more = page.last().filter(|_| rest.next().is_some());
        let metadata = json!({
            "resourceVersion": self.revision.to_string(),
            "continue": more.map(|(name, _)| name.as_str()).unwrap_or_default(),
        });
        let items: Vec<&Value> = page.iter().map(|(_, object)| *object).collect();
        let list =
            json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
        Full::new(Bytes::from(list.to_string())).boxed_unsync()
    }

    fn tell(&mut self, kind: &'static str, event: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": event, "object": object})));
        self.log.push((self.revision, kind, line.clone()));
        for (watched, sender) in &self.watchers {
            if *watched == kind {
                // Those who are gone hear nothing.
                drop(sender.unbounded_send(line.clone()));
            }
        }
    }
}

/// A ClusterIP Service.
#[must_use]
pub fn service(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "dev", "name": name},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]}})
}

/// Its endpoints, all ready.
#[must_use]
pub fn slice(service: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|addr| json!({"addresses": [addr], "conditions": {"ready": true}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "dev", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}
