//! As much of an API server as the proxy uses: list and watch of Services and EndpointSlices, in memory.
#![expect(clippy::unwrap_used, reason = "a fake for tests")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt as _, channel::mpsc, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::{Value, json};

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

/// The objects, and who watches them.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// Everything that happened, by revision: a watch begins where its list ended.
    log: Vec<(u64, &'static str, Bytes)>,
    watchers: Vec<(&'static str, mpsc::UnboundedSender<Bytes>)>,
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let response = api.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        Client::new(service, "default")
    }

    /// Stores an object and tells all who watch.
    pub(crate) fn put(&self, kind: &'static str, mut object: Value) {
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
    pub(crate) fn delete(&self, kind: &'static str, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.revision += 1;
        let object = inner.objects.entry(kind).or_default().remove(name).unwrap();
        inner.tell(kind, "DELETED", &object);
    }

    fn answer(&self, request: &Request<Body>) -> Response<AnyBody> {
        let mut inner = self.inner.lock().unwrap();
        let path = request.uri().path();
        let kind = [SERVICES, NODES, SLICES]
            .into_iter()
            .find(|kind| *kind == path)
            .unwrap();
        let query = request.uri().query().unwrap_or_default();
        let body = if query.contains("watch=") {
            let (sender, receiver) = mpsc::unbounded();
            let from = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("resourceVersion="));
            let from: u64 = from.unwrap().parse().unwrap();
            let missed = inner
                .log
                .iter()
                .filter(|(at, of, _)| *at > from && *of == kind);
            for (_, _, line) in missed {
                sender.unbounded_send(line.clone()).unwrap();
            }
            inner.watchers.push((kind, sender));
            let open = receiver.chain(stream::pending());
            StreamBody::new(open.map(|line| Ok::<_, Infallible>(Frame::data(line)))).boxed_unsync()
        } else {
            let items: Vec<&Value> = inner
                .objects
                .get(kind)
                .into_iter()
                .flatten()
                .map(|(_, o)| o)
                .collect();
            let metadata = json!({"resourceVersion": inner.revision.to_string()});
            let list =
                json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
            Full::new(Bytes::from(list.to_string())).boxed_unsync()
        };
        Response::builder()
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    }
}

impl Inner {
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
pub(crate) fn service(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "dev", "name": name},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]}})
}

/// Its endpoints, all ready.
pub(crate) fn slice(service: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|addr| json!({"addresses": [addr], "conditions": {"ready": true}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "dev", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}
